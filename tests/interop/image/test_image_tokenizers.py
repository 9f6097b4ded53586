"""Imported image tokenizers compute what the originals do."""

import math

import pytest
import torch
from helpers import foreign_image_tokenizers
from helpers.foreign_image_tokenizers import random_tensors
from safetensors.torch import save_file
from torch.nn import functional as F

from dalle_mini_impl.config.model import ImageTokenizerConfig, ImportedNetworkConfig
from dalle_mini_impl.interop.image import dalle_pytorch, llamagen, openai_dvae, taming
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.result import check, layout
from dalle_mini_impl.model.foreign import quantizers as imported
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.logit_laplace import mean_pixels
from dalle_mini_impl.util.errors import UserError

VQGAN = {"ch": 32, "ch_mult": (1, 1, 2), "attention": (2,), "z": 13, "embed": 7, "ids": 61}
STAGES = 3


def pictures(height, width, seed=0, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same(tokenizer, pixels, image_ids, decoded):
    """The same ids, of which there are some, and pictures within 1e-5 of the reference's."""
    ids = tokenizer.encode(pixels)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, image_ids)
    assert len(ids.unique()) > 5
    assert decoded.std() > 0.05
    with torch.inference_mode():
        vectors = tokenizer.quantizer.lookup(ids.flatten(1)).unflatten(1, ids.shape[1:])
        pixels = tokenizer.decoder(vectors.movedim(-1, 1))
        if tokenizer.config.likelihood == "laplace":  # the reference is bounded already
            pixels = mean_pixels(pixels).clamp(-1, 1)
        torch.testing.assert_close(pixels, decoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(ids), decoded.clamp(-1, 1), atol=1e-5, rtol=0)


# --- VQGAN


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": (0, 2), "embed": 13},
        {"attention": (), "middle": False, "blocks": 1},
        {"ch_mult": (2, 1, 3)},
    ],
    ids=["f4", "attention in two stages", "no attention", "a first stage wider than the stem"],
)
def test_vqgan_is_the_reference(tmp_path, changes):
    settings = {**VQGAN, **changes}
    tensors = random_tensors(foreign_image_tokenizers.vqgan_shapes(**settings))
    save_file(tensors, tmp_path / "vqgan.safetensors")
    tokenizer = taming.load(tmp_path / "vqgan.safetensors", 20).tokenizer
    blocks = settings.get("blocks", 2)

    pixels = pictures(20, 28)
    ids = foreign_image_tokenizers.nearest_ids(
        foreign_image_tokenizers.vqgan_encode(tensors, pixels, STAGES, blocks), tensors["quantize.embedding.weight"]
    )
    z = tensors["quantize.embedding.weight"][ids].movedim(-1, 1)
    assert_same(tokenizer, pixels, ids, foreign_image_tokenizers.vqgan_decode(tensors, z, STAGES, blocks))
    assert ids.shape == (2, 5, 7)
    assert (tokenizer.codebook_size, tokenizer.config.factor, tokenizer.config.grid) == (61, 4, (5, 5))


def test_gumbel_vqgan_takes_the_likeliest_id(tmp_path):
    tensors = random_tensors(foreign_image_tokenizers.vqgan_shapes(**{**VQGAN, "embed": 13}, gumbel=True))
    save_file(tensors, tmp_path / "gumbel.safetensors")
    tokenizer = taming.load(tmp_path / "gumbel.safetensors", 20).tokenizer

    pixels = pictures(20, 28)
    ids = foreign_image_tokenizers.conv(
        tensors, "quantize.proj", foreign_image_tokenizers.vqgan_encode(tensors, pixels, STAGES)
    ).argmax(1)
    z = tensors["quantize.embed.weight"][ids].movedim(-1, 1)
    assert_same(tokenizer, pixels, ids, foreign_image_tokenizers.vqgan_decode(tensors, z, STAGES))
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels))


@pytest.mark.parametrize("normalised", [True, False])
def test_llamagen_is_a_vqgan_whose_vectors_may_be_normalised(tmp_path, normalised):
    shapes = foreign_image_tokenizers.vqgan_shapes(**VQGAN)
    tensors = random_tensors(shapes)
    tensors["quantize.embedding.weight"] *= torch.linspace(0.2, 3, 61)[:, None]  # lengths matter only to one of them
    names = foreign_image_tokenizers.llamagen_names(shapes, STAGES)
    save_file({names[name]: value for name, value in tensors.items()}, tmp_path / "vq.safetensors")
    tokenizer = llamagen.load(tmp_path / "vq.safetensors", 20, codebook_norm=normalised).tokenizer

    pixels = pictures(20, 28)
    z, table = foreign_image_tokenizers.vqgan_encode(tensors, pixels, STAGES), tensors["quantize.embedding.weight"]
    if normalised:
        z, table = z / z.square().sum(1, keepdim=True).sqrt(), table / table.square().sum(1, keepdim=True).sqrt()
    ids = foreign_image_tokenizers.nearest_ids(z, table)
    assert_same(
        tokenizer, pixels, ids, foreign_image_tokenizers.vqgan_decode(tensors, table[ids].movedim(-1, 1), STAGES)
    )


# --- OpenAI's dVAE


def test_openai_dvae_is_the_reference(tmp_path):
    shapes = foreign_image_tokenizers.openai_shapes(hidden=16, init=11, ids=61)
    encoder, decoder = (random_tensors(part, seed, gain=1.6) for seed, part in enumerate(shapes))
    for tensors in (encoder, decoder):  # residuals are divided by 64: else they would not show
        tensors.update({name: 40 * value for name, value in tensors.items() if name.endswith("conv_4.w")})
    paths = [tmp_path / "decoder.safetensors", tmp_path / "encoder.safetensors"]
    for path, tensors in zip(paths, (decoder, encoder), strict=True):
        save_file(tensors, path)
    tokenizer = openai_dvae.load(paths, 24).tokenizer

    pixels = pictures(40, 24, count=5)
    ids = foreign_image_tokenizers.openai_encode(encoder, pixels)
    decoded = foreign_image_tokenizers.openai_decode(decoder, ids)
    assert_same(tokenizer, pixels, ids, decoded)
    assert (decoded == 1).any()  # what lies beyond is cut off
    assert (decoded < 1).any()
    assert ids.shape == (5, 5, 3)


# --- DALLE-pytorch's DiscreteVAE

HALF, COLOURS = ((0.5,) * 3, (0.5,) * 3), ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


@pytest.mark.parametrize(("layers", "blocks"), [(1, 0), (3, 0), (2, 2), (3, 1)])
@pytest.mark.parametrize(("mean", "std"), [HALF, COLOURS, ((0.0,) * 3, (1.0,) * 3)], ids=["half", "colours", "none"])
def test_dalle_pytorch_vae_is_the_reference(tmp_path, layers, blocks, mean, std):
    tensors = random_tensors(
        foreign_image_tokenizers.dalle_pytorch_shapes(layers, blocks, hidden=11, embed=7, ids=61), gain=1.6
    )
    save_file(tensors, tmp_path / "vae.safetensors")
    tokenizer = dalle_pytorch.load(tmp_path / "vae.safetensors", 24, mean, std).tokenizer

    pixels = pictures(24, 40)
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    ids = foreign_image_tokenizers.dalle_pytorch_run(tensors, "encoder", ((pixels + 1) / 2 - shift) / scale).argmax(1)
    out = foreign_image_tokenizers.dalle_pytorch_run(tensors, "decoder", tensors["codebook.weight"][ids].movedim(-1, 1))
    assert_same(tokenizer, pixels, ids, 2 * (out * scale + shift) - 1)
    assert tokenizer.config.factor == 2**layers


# --- quantizers


def test_nearest_takes_the_first_of_equals_and_any_number_of_vectors(monkeypatch):
    quantizer = imported.Nearest(3, 2, cosine=False)
    quantizer.embedding.weight.data = torch.tensor([[1.0, 0], [0, 2], [1, 0]])
    z = torch.tensor([[[0.9, 0.1], [0.1, 1.2], [-1.0, 3.0]], [[5.0, 0.0], [0.0, 0.9], [-1.0, 0.0]]])
    vectors, ids, loss = quantizer(z)
    assert ids.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert vectors.tolist() == quantizer.embedding.weight[ids].tolist()
    assert float(loss) == 0
    monkeypatch.setattr(imported, "ROWS", 4)
    assert torch.equal(quantizer(z)[1], ids)


def test_by_angle_lengths_do_not_matter():
    quantizer = imported.Nearest(2, 2, cosine=True)
    quantizer.embedding.weight.data = torch.tensor([[0.1, 0.0], [9.0, 9.0]])
    z = torch.tensor([[[100.0, 1.0], [0.01, 0.01]]])
    vectors, ids, _ = quantizer(z)
    assert ids.tolist() == [[0, 1]]
    torch.testing.assert_close(vectors[0], torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]))


@pytest.mark.parametrize("kind", ["nearest", "logits"])
def test_ids_are_chosen_in_full_precision(kind):
    torch.manual_seed(0)
    quantizer = (
        imported.Nearest(61, 7, cosine=False)
        if kind == "nearest"
        else imported.Logits(7, 61, torch.nn.Embedding(61, 5))
    )
    z = torch.randn(5, 301, 7)
    ids = quantizer(z)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z)[1], ids)


def test_one_hot_convolution_is_what_a_convolution_makes_of_one_hot_ids():
    layer = imported.OneHotConvolution(61, 7)
    ids = torch.arange(60).view(3, 20)
    expected = F.conv1d(F.one_hot(ids, 61).movedim(-1, 1).float(), layer.weight[..., 0], layer.bias)
    torch.testing.assert_close(layer(ids), expected.movedim(1, -1))


# --- full size: names and numbers of what is published, without its memory

F16 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "attention": (4,), "z": 256, "embed": 256}
PUBLISHED = {
    "imagenet f16-1024": ({**F16, "ids": 1024}, 343, 72_141_699),
    "imagenet f16-16384": ({**F16, "ids": 16384}, 343, 76_073_859),
    "gumbel f8": (
        {**F16, "ch_mult": (1, 1, 2, 4), "attention": (3,), "ids": 8192, "gumbel": True}, 301, 68_995_971,
    ),
    "LDM f8-256": (
        {**F16, "ch_mult": (1, 2, 2, 4), "attention": (3,), "z": 4, "embed": 4, "ids": 256}, 299, 67_652_783,
    ),
}  # fmt: skip


def on_meta(shapes):
    return Weights("a file", {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


def parameters(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vqgans_have_our_layout(name):
    settings, tensors, numbers = PUBLISHED[name]
    shapes = foreign_image_tokenizers.vqgan_shapes(**settings)
    assert (len(shapes), parameters(shapes)) == (tensors, numbers)
    config = taming.config_of(on_meta(shapes), 256)
    assert layout(config, taming.foreign_name) == shapes
    check(on_meta(shapes), layout(config, taming.foreign_name))
    assert config == ImageTokenizerConfig(
        network="taming",
        quantizer="logits" if settings.get("gumbel") else "nearest",
        image_size=256,
        factor=2 ** (len(settings["ch_mult"]) - 1),
        channels=tuple(128 * m for m in settings["ch_mult"]),
        encoder_blocks=2,
        decoder_blocks=3,
        codebook_size=settings["ids"],
        embed_dim=settings["embed"],
        imported=ImportedNetworkConfig(stem=128, z_channels=settings["z"], attention=settings["attention"]),
    )


def test_published_llamagen_has_our_layout(monkeypatch, tmp_path):
    shapes = foreign_image_tokenizers.vqgan_shapes(**{**F16, "embed": 8, "ids": 16384})
    names = foreign_image_tokenizers.llamagen_names(shapes, 5)
    theirs = {names[name]: shape for name, shape in shapes.items()}
    assert "decoder.conv_blocks.0.attn.2.proj_out.weight" in theirs
    content = {name: torch.empty(shape, device="meta") for name, shape in theirs.items()}
    content["quantize.codebook_used"] = torch.empty(65536, device="meta")
    seen = []
    monkeypatch.setattr(llamagen, "read", lambda path, trust: {"model": {}, "ema": content})
    monkeypatch.setattr(llamagen, "fill", lambda weights, config, name: seen.append((layout(config, name), config)))
    llamagen.load("vq_ds16_c2i.pt")
    ((ours, config),) = seen
    assert ours == theirs
    assert (config.factor, config.codebook_size, config.embed_dim, config.quantizer) == (16, 16384, 8, "cosine")


def test_published_openai_dvae_has_our_layout():
    encoder, decoder = foreign_image_tokenizers.openai_shapes(hidden=256, init=128, ids=8192)
    assert (len(encoder), parameters(encoder)) == (74, 53_786_240)
    assert (len(decoder), parameters(decoder)) == (76, 43_829_766)
    shapes = {f"encoder.{name}": shape for name, shape in encoder.items()}
    shapes |= {f"decoder.{name}": shape for name, shape in decoder.items()}
    config = openai_dvae.config_of(on_meta(shapes), 256)
    assert layout(config, openai_dvae.foreign_name) == shapes
    assert (config.factor, config.codebook_size, config.embed_dim) == (8, 8192, 128)
    assert config.channels == (256, 512, 1024, 2048)


# --- what cannot be built


def imported_config(**changes):
    settings = {"network": "taming", "quantizer": "nearest", "image_size": 32, "factor": 4, "channels": (32, 32, 64)}
    return ImageTokenizerConfig(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vqgan"}, "unknown network 'vqgan'; expected vqvae, taming, openai-dvae, dalle-pytorch"),
        ({"factor": 8}, "factor 8 with 3 stages was given, which do not fit network 'taming'"),
        ({"network": "openai-dvae", "factor": 8}, "factor 8 with 3 stages .* 'openai-dvae'"),
        ({"network": "dalle-pytorch"}, "factor 4 with 3 stages .* 'dalle-pytorch'"),
        ({"network": "dalle-pytorch", "channels": (), "factor": 1}, "factor 1 with 0 stages"),
        ({"channels": (32, 48, 64)}, "a width of 48 was given; widths must be multiples of 32"),
        ({"imported": ImportedNetworkConfig(stem=8)}, "a width of 8"),
        ({"quantizer": "vq"}, "unknown quantizer 'vq'; network 'taming' has nearest, cosine or logits"),
        ({"image_size": 30}, "image_size 30 is not a multiple of factor 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ImageTokenizer(imported_config(**changes), commitment=None)


@pytest.mark.parametrize("network", ["taming", "openai-dvae", "dalle-pytorch"])
def test_imported_networks_are_not_trained(network):
    with pytest.raises(UserError, match=f"network '{network}' was given to train, but it can only be imported"):
        ImageTokenizer(imported_config(network=network))


def test_forward_decodes_what_encode_finds():
    tokenizer = ImageTokenizer(imported_config(codebook_size=61, embed_dim=7), commitment=None).eval()
    pixels = pictures(16, 24)
    with torch.no_grad():
        result = tokenizer(pixels)
    assert torch.equal(result.image_ids, tokenizer.encode(pixels))
    assert torch.equal(result.pixels.clamp(-1, 1), tokenizer.decode(result.image_ids))
