import copy
import math

import pytest
import torch
from helpers.models import IMAGE_TOKENIZER, make_image_tokenizer
from torch import nn
from torch.nn import functional as F

from dalle_mini_impl import ImageTokenizer
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.model.vqvae import OneKernelConv2d
from dalle_mini_impl.util.errors import UserError

SHAPES = {
    4: ((13,), {"factor": 4, "image_size": 20}),
    8: ((13, 17), {"factor": 8, "image_size": 24}),
    16: ((7, 11, 13), {"factor": 16, "image_size": 48}),
}


def make(factor=8, **changes):
    channels, sizes = SHAPES[factor]
    settings = {"channels": channels, "codebook_size": 61, "embed_dim": 5, **sizes, **changes}
    return make_image_tokenizer(ImageTokenizerConfig(**settings))


def random_pixels(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def tokenizer():
    return make()


# --- shapes


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize(("h", "w"), [(3, 3), (2, 5), (7, 1)])
def test_encode_and_decode_shapes(factor, h, w):
    tokenizer = make(factor)
    pixels = random_pixels(2, 3, h * factor, w * factor)
    ids = tokenizer.encode(pixels)
    assert ids.shape == (2, h, w)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 61
    decoded = tokenizer.decode(ids)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == torch.float32
    assert -1 <= float(decoded.min()) <= float(decoded.max()) <= 1


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (256, 32), (96, 256)])
def test_pictures_may_have_another_size_than_in_training(factor, height, width):
    tokenizer = make(factor)
    ids = tokenizer.encode(random_pixels(1, 3, height, width))
    assert ids.shape == (1, height // factor, width // factor)
    assert tokenizer.decode(ids).shape == (1, 3, height, width)
    assert tokenizer.train()(random_pixels(1, 3, height, width)).pixels.shape == (1, 3, height, width)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_factor_may_be_split_between_stem_and_stages(stages):
    tokenizer = make(8, channels=(7, 11, 13, 17)[:stages])
    assert tokenizer.encode(random_pixels(1, 3, 16, 24)).shape == (1, 2, 3)
    assert tokenizer.decode(torch.zeros(1, 2, 3, dtype=torch.int64)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        ("fsq", {"fsq_levels": (5, 4, 3), "codebook_size": 60, "embed_dim": 3}),
        ("lfq", {"codebook_size": 64, "embed_dim": 6}),
        ("simvq", {}),
        ("gumbel", {}),
    ],
)
def test_other_quantizers_work_the_same_way(quantizer, changes):
    tokenizer = make(quantizer=quantizer, **changes)
    pixels = random_pixels(2, 3, 16, 40)
    ids = tokenizer.encode(pixels)
    assert ids.shape == (2, 2, 5)
    assert len(ids.unique()) > 3
    torch.testing.assert_close(tokenizer.decode(ids), tokenizer(pixels).pixels.clamp(-1, 1))
    assert tokenizer.codebook_size == tokenizer.quantizer.codebook_size == changes.get("codebook_size", 61)
    assert torch.equal(tokenizer.train().encode(pixels), ids)  # evaluation is without noise, whatever the mode


def test_encoder_and_decoder_have_their_own_number_of_blocks():
    def blocks(module):
        return sum(type(layer).__name__ == "ResidualBlock" for layer in module.modules())

    tokenizer = make(encoder_blocks=1, decoder_blocks=3)
    assert (blocks(tokenizer.encoder), blocks(tokenizer.decoder)) == (2, 6)


# --- meaning


def test_forward_is_decode_of_encode(tokenizer):
    pixels = random_pixels(3, 3, 16, 40)
    result = tokenizer(pixels)
    assert torch.equal(result.image_ids, tokenizer.encode(pixels))
    torch.testing.assert_close(result.pixels.clamp(-1, 1), tokenizer.decode(result.image_ids))


def test_pictures_of_a_batch_are_independent(tokenizer):
    pixels = random_pixels(5, 3, 16, 40)
    ids = tokenizer.encode(pixels)
    for number in range(5):
        assert torch.equal(tokenizer.encode(pixels[number : number + 1])[0], ids[number])
        torch.testing.assert_close(tokenizer.decode(ids[number : number + 1])[0], tokenizer.decode(ids)[number])


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_one_picture_is_rounded_as_among_others():
    """320 × 8 × 8 is the largest input for which PyTorch takes another algorithm where there is one picture alone."""
    conv = OneKernelConv2d(320, 320, 3, padding=1)
    x = random_pixels(5, 320, 8, 8)
    with torch.inference_mode():
        together = conv(x)
        assert all(torch.equal(conv(x[row : row + 1])[0], together[row]) for row in range(5))
        torch.testing.assert_close(together, F.conv2d(x, conv.weight, conv.bias, padding=1))
    assert conv(x[:1]).requires_grad


def isolate_cells(module):
    """Remove the norms and the outer weights of 3×3 kernels, so that each id depends on its own patch alone."""
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.forward = lambda x: x
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.weight.data *= F.pad(torch.ones(1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 6), (4, 0), (3, 2)])
def test_ids_are_in_the_cells_of_their_patches(factor, row, column):
    tokenizer = make(factor)
    isolate_cells(tokenizer)
    patch = slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor)

    ids = torch.zeros(1, 5, 7, dtype=torch.int64)
    changed = ids.clone()
    changed[0, row, column] = 17
    difference = (tokenizer.decode(ids) - tokenizer.decode(changed)).abs().sum(1)[0]
    assert float(difference[patch].max()) > 0.01
    difference[patch] = 0
    assert not difference.any()

    pixels = random_pixels(1, 3, 5 * factor, 7 * factor)
    changed_pixels = pixels.clone()
    changed_pixels[0, :, patch[0], patch[1]] *= -1
    differs = (tokenizer.encoder(pixels) != tokenizer.encoder(changed_pixels)).any(1)[0]
    assert differs.nonzero().tolist() == [[row, column]]


def test_encode_selects_the_vector_at_the_smallest_angle(tokenizer):
    pixels = random_pixels(2, 3, 24, 40)
    z = tokenizer.encoder(pixels)
    ids = tokenizer.encode(pixels)
    cosines = torch.einsum("bdhw,kd->bhwk", F.normalize(z, dim=1), tokenizer.quantizer.lookup(torch.arange(61)))
    assert torch.equal(cosines.argmax(-1), ids)


def test_decode_z_equals_decode_of_the_ids(tokenizer):
    ids, table = torch.randint(61, (2, 3, 5), generator=torch.Generator().manual_seed(0)), tokenizer.table()
    z = table[ids].permute(0, 3, 1, 2).requires_grad_()
    pixels = tokenizer.decode_z(z)
    torch.testing.assert_close(pixels.detach().clamp(-1, 1), tokenizer.decode(ids))
    (gradient,) = torch.autograd.grad(pixels.sum(), z)
    assert gradient.abs().sum() > 0


def test_all_parts_get_gradients():
    tokenizer = make().train()
    result = tokenizer(random_pixels(2, 3, 16, 24))
    (result.pixels.square().mean() + result.auxiliary).backward()
    without_gradient = [
        name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.any()
    ]
    assert without_gradient == []
    assert result.auxiliary.shape == ()


def test_it_can_learn_one_batch():
    torch.manual_seed(0)
    config = ImageTokenizerConfig(image_size=16, channels=(8, 8), codebook_size=13, embed_dim=5)
    tokenizer = ImageTokenizer(config).train()
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    pixels = colours[:, :, None, None].expand(4, 3, 16, 16)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        result = tokenizer(pixels)
        loss = (result.pixels - pixels).square().mean()
        optimizer.zero_grad()
        (loss + result.auxiliary).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 < 0.5 < losses[0]


# --- what must not change


@pytest.mark.parametrize("training", [True, False])
def test_encode_and_decode_change_neither_codebook_nor_mode(training):
    tokenizer = make().train(training)
    before = copy.deepcopy(tokenizer.state_dict())
    pixels = random_pixels(7, 3, 24, 24)
    tokenizer.decode(tokenizer.encode(pixels))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert all(module.training == training for module in tokenizer.modules())


def test_training_does_change_the_codebook():
    tokenizer = make().train()
    before = copy.deepcopy(tokenizer.quantizer.state_dict())
    tokenizer(random_pixels(7, 3, 24, 24))
    after = tokenizer.quantizer.state_dict()
    assert not torch.equal(after["inner._codebook.embed"], before["inner._codebook.embed"])


def test_arguments_are_not_changed(tokenizer):
    pixels = random_pixels(2, 3, 16, 24)
    before = pixels.clone()
    ids = tokenizer.encode(pixels)
    ids_before = ids.clone()
    tokenizer.decode(ids)
    assert torch.equal(pixels, before)
    assert torch.equal(ids, ids_before)


def test_the_same_picture_has_the_same_ids_in_any_memory_layout(tokenizer):
    pixels = random_pixels(2, 3, 16, 24)
    assert torch.equal(tokenizer.encode(pixels.to(memory_format=torch.channels_last)), tokenizer.encode(pixels))


def test_under_autocast_pixels_stay_full_precision(tokenizer):
    pixels = random_pixels(2, 3, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        ids = tokenizer.encode(pixels)
        decoded = tokenizer.decode(ids)
    assert decoded.dtype == torch.float32
    assert float((decoded - tokenizer.decode(ids)).abs().mean()) < 0.02


# --- errors


@pytest.mark.parametrize("shape", [(15, 24), (16, 25), (4, 8)])
def test_sizes_that_are_not_multiples_of_the_factor_are_refused(tokenizer, shape):
    with pytest.raises(UserError, match=f"multiples of 8 pixels, got {shape[0]}×{shape[1]}"):
        tokenizer.encode(torch.zeros(1, 3, *shape))
    with pytest.raises(UserError, match="multiples of 8"):
        tokenizer(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize("image_id", [-1, 61, 435])
def test_ids_out_of_range_are_refused(tokenizer, image_id):
    ids = torch.tensor([[[3, image_id]]])
    with pytest.raises(UserError, match=f"expected image ids from 0 to 60, got .*{image_id}"):
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 6, "image_size": 24, "channels": (7, 11, 13)}, "got factor 6 with 3 stages"),
        ({"factor": 4, "image_size": 24, "channels": (7, 11, 13, 17)}, "got factor 4 with 4 stages"),
        ({"factor": 8, "image_size": 20}, "expected image_size to be a multiple of factor 8, got 20"),
        ({"quantizer": "none"}, "expected quantizer vq, .*, got 'none'"),
        ({"channels": ()}, "expected channels with a width for each stage, got none"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ImageTokenizer(ImageTokenizerConfig(**changes))


# --- loading


def test_from_pretrained_loads_the_part(tiny_model, tiny_dalle):
    tokenizer = ImageTokenizer.from_pretrained(tiny_model)
    assert tokenizer.config == IMAGE_TOKENIZER
    assert not tokenizer.training
    ids = torch.arange(60).reshape(4, 3, 5)
    assert torch.equal(tokenizer.decode(ids), tiny_dalle.image_tokenizer.decode(ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_any_floating_point_type_are_encoded(tokenizer, dtype):
    pixels = (torch.rand(2, 3, 16, 24) * 2 - 1).to(dtype)
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels.float()))


def test_uint8_pixels_are_values_from_0_to_255(tokenizer):
    pixels = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8)
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels.float() / 127.5 - 1))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            torch.zeros(3, 16, 16),
            r"expected pixels of shape \(B, 3, H, W\), got a tensor of shape \(3, 16, 16\); write pixels\[None\]",
        ),
        (torch.zeros(2, 1, 16, 16), r"shape \(2, 1, 16, 16\); repeat the channel"),
        (torch.zeros(2, 16, 16, 3), r"shape \(2, 16, 16, 3\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.int64), "expected floating-point pixels .* got torch.int64"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.bool), "expected floating-point pixels .* got torch.bool"),
        (torch.full((1, 3, 16, 16), 255.0), r"expected pixels in \[-1, 1\], got values from 255 to 255"),
        (torch.full((1, 3, 16, 16), math.nan), r"expected pixels in \[-1, 1\], got values from nan"),
        (torch.full((1, 3, 16, 16), math.inf), r"expected pixels in \[-1, 1\], got values from inf"),
        ([[0.0]], "expected a tensor of pixels .* got list"),
    ],
)
def test_what_is_no_batch_of_pixels_is_refused(tokenizer, pixels, message):
    with pytest.raises(UserError, match=message):
        tokenizer.encode(pixels)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]
)
def test_ids_of_any_integer_type_are_decoded(tokenizer, dtype):
    ids = torch.arange(15).view(1, 3, 5)
    assert torch.equal(tokenizer.decode(ids.to(dtype)), tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, 5), "expected a tensor of integer image ids, got a tensor of type torch.float32"),
        (torch.zeros(1, 3, 5, dtype=torch.bool), "got a tensor of type torch.bool"),
        (torch.zeros(3, 5, dtype=torch.int64), r"expected image ids of shape \(B, h, w\), got \(3, 5\)"),
        ([[[1, 2]]], "expected a tensor of integer image ids, got list"),
    ],
)
def test_what_are_no_ids_is_refused(tokenizer, ids, message):
    with pytest.raises(UserError, match=message):
        tokenizer.decode(ids)


def test_a_plain_picture_decoded_while_a_tile_is_being_decoded_is_plain(tokenizer):
    ids = torch.randint(61, (1, 3, 5), generator=torch.Generator().manual_seed(0))
    plain, tiled = tokenizer.decode(ids), tokenizer.decode(ids, tile=True)
    assert not torch.equal(plain, tiled)
    during = []

    def decode_once(*_):
        handle.remove()
        during.append(None)  # stands for the picture until it is decoded, as the hook of a copy is not removed
        if len(during) == 1:
            during[0] = tokenizer.decode(ids)

    handle = tokenizer.decoder.register_forward_pre_hook(decode_once)
    assert torch.equal(tokenizer.decode(ids, tile=True), tiled)
    assert torch.equal(during[0], plain)
