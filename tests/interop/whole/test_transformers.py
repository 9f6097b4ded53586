"""Imported transformers compute what the originals do."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import init_empty_weights
from helpers import foreign_transformers
from helpers.foreign_transformers import (
    MIN,
    MIN_HEADS,
    MIN_LAYERS,
    RU,
    RU_HEADS,
    greedy,
    random_transformer,
    rudalle_file,
)
from helpers.scorers import PAD

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.whole import mindalle, rudalle
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.likelihood import image_logits
from dalle_mini_impl.util.errors import UserError

GREEDY = SamplingConfig(temperature=0, guidance=1)


def build(imported):
    """The module of what was imported, every tensor in its place."""
    transformer = build_transformer(imported.config, imported.stream).eval()
    transformer.load_state_dict(imported.tensors)
    return transformer, Stream(imported.stream)


def image_ids(side, count, seed=3):
    return torch.randint(count, (1, side, side), generator=torch.Generator().manual_seed(seed))


# --- minDALL-E


@pytest.fixture
def minimal(tmp_path):
    tensors = random_transformer(foreign_transformers.mindalle_shapes(**MIN))
    torch.save({"state_dict": tensors}, tmp_path / "stage2_last.ckpt")
    return tensors, mindalle.load(tmp_path / "stage2_last.ckpt", MIN_HEADS, PAD)


def padded(caption):
    return torch.tensor([*caption, *[PAD] * (MIN["length"] - len(caption))])


@pytest.mark.parametrize("caption", [[], [4, 11, 3], [28, 0, 1, 6, 2]])
def test_mindalle_is_the_reference(minimal, caption):
    tensors, imported = minimal
    transformer, stream = build(imported)
    ids = image_ids(3, 23)
    text, image = foreign_transformers.mindalle_logits(
        tensors, MIN_LAYERS, MIN_HEADS, padded(caption), ids.flatten()[:-1]
    )
    ours = image_logits(transformer, stream, caption, ids)[0]
    torch.testing.assert_close(ours, image, atol=1e-4, rtol=0)
    with torch.inference_mode():
        scores = transformer.logits(transformer(stream.prefix([caption])), stream.text_range)[0, :-1]
    places = torch.arange(1, MIN["length"])
    endings = scores[places - 1, MIN["text"] + places]
    torch.testing.assert_close(endings, text[:, PAD], atol=1e-4, rtol=0)
    text[:, PAD] = scores[:, PAD]
    torch.testing.assert_close(scores[:, : MIN["text"]], text, atol=1e-4, rtol=0)
    assert (scores[:, PAD] < -9000).all()


def test_mindalle_draws_the_same_ids(minimal):
    tensors, imported = minimal
    transformer, stream = build(imported)

    def logits_after(caption):
        return lambda ids: foreign_transformers.mindalle_logits(tensors, MIN_LAYERS, MIN_HEADS, padded(caption), ids)[1]

    drawn = generate(transformer, stream, Prompt([4, 11, 3], []), [1], GREEDY).image_ids[0]
    assert torch.equal(drawn.flatten(), greedy(logits_after([4, 11, 3]), 9))
    assert len(drawn.unique()) > 2

    def guided(ids):
        given, null = logits_after([4, 11, 3])(ids), logits_after([])(ids)
        return null + 2.5 * (given - null)

    settings = SamplingConfig(temperature=0, guidance=2.5)
    with_guidance = generate(transformer, stream, Prompt([4, 11, 3], []), [1], settings).image_ids[0]
    assert torch.equal(with_guidance.flatten(), greedy(guided, 9))
    assert not torch.equal(with_guidance, drawn)


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def assert_whole(imported, more):
    """All tensors are those of our module, which has so many numbers more than the file."""
    with init_empty_weights():
        wanted = build_transformer(imported.config, imported.stream).state_dict()
    assert {name: value.shape for name, value in wanted.items()} == {
        name: value.shape for name, value in imported.tensors.items()
    }
    return sum(value.numel() for value in wanted.values()) - more


def test_mindalle_at_full_size():
    shapes = foreign_transformers.mindalle_shapes(layers=42, C=1536, text=16384, ids=16384, length=64, side=16)
    imported = mindalle.from_weights(Weights("stage2_last.ckpt", on_meta(shapes)), 24, PAD)
    paddings, bias = 2 * 64 * 1536, 16384 + 64 + 16384
    assert assert_whole(imported, paddings + bias) == sum(map(math.prod, shapes.values())) == 1_291_081_728
    assert len(shapes) == 680
    assert imported.stream == StreamConfig(
        text_length=64, text_vocab=16384, grid=(16, 16), image_vocab=16384, bos_id=-1, pad_id=PAD
    )


@pytest.mark.parametrize(
    ("changes", "pad_id", "message"),
    [
        ({"blocks.1.attn.key.bias": None}, PAD, r"1 missing \(blocks.1.attn.key.bias\)$"),
        (
            {"blocks.2.mlp.0.weight": torch.zeros(3, 22), "sos": torch.zeros(1)},
            PAD,
            r"1 not known \(sos\); 1 of another shape \(blocks.2.mlp.0.weight is \(3, 22\), expected \(88, 22\)\)$",
        ),
        ({"tok_emb_txt.weight": None}, PAD, "has no tensor whose name ends with tok_emb_txt.weight"),
        ({"pos_emb_img.weight": torch.zeros(8, 22)}, PAD, "is for 8 image ids; expected a square"),
        ({"pos_emb_txt.weight": None}, PAD, "has no pos_emb_txt.weight, which tells the shape"),
        ({}, 29, "padding is id 29, but .* has ids 0 … 28; use the tokenizer"),
        ({}, -1, "padding is id -1, but"),
    ],
)
def test_a_mindalle_that_does_not_fit_is_refused(tmp_path, changes, pad_id, message):
    tensors = {**random_transformer(foreign_transformers.mindalle_shapes(**MIN)), **changes}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    torch.save({"state_dict": tensors}, tmp_path / "s.ckpt")
    with pytest.raises(UserError, match=message):
        mindalle.load(tmp_path / "s.ckpt", MIN_HEADS, pad_id)


def test_mindalles_heads_are_told_by_its_config(tmp_path):
    settings = {"stage1": {}, "stage2": {"hparams": {"n_heads": 5, "gelu_use_approx": False}}}
    path = tmp_path / "config.yaml"
    for content, number in ((settings, 5), ({"stage2": {"hparams": {}}}, 24), ({}, 24), ([1], 24)):
        path.write_text(yaml.safe_dump(content))
        assert mindalle.heads(tmp_path) == number
    for hparams, message in (
        ({"gelu_use_approx": True}, "says gelu_use_approx; only models with the exact GELU"),
        ({"n_heads": "many"}, "n_heads is 'many', expected 1 or more"),
        ({"n_heads": 0}, "n_heads is 0, expected 1 or more"),
    ):
        path.write_text(yaml.safe_dump({"stage2": {"hparams": hparams}}))
        with pytest.raises(UserError, match=message):
            mindalle.heads(tmp_path)
    path.write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml is missing or damaged"):
        mindalle.heads(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"config.yaml is missing or damaged"):
        mindalle.heads(tmp_path)
    torch.save(random_transformer(foreign_transformers.mindalle_shapes(**MIN)), tmp_path / "s.ckpt")
    with pytest.raises(UserError, match=r"is 22 wide, which 5 heads cannot share; give the config.yaml"):
        mindalle.load(tmp_path / "s.ckpt", 5, PAD)


# --- ruDALL-E


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (2, {}),
        (3, {}),
        (2, {"dtype": torch.bool}),
        (3, {"dtype": torch.bool, "sandwich": False}),
        (2, {"masks": None}),
        (2, {"masks": "", "dtype": torch.float16}),
        (3, {"layers": 2}),
        (2, {"layers": 5, "side": 13}),
        (3, {"side": 13}),
    ],
    ids=[
        "v2",
        "v3",
        "v2 bool",
        "v3 plain",
        "v2 bare",
        "v2 masks at the top",
        "v3 column last",
        "v2 five layers",
        "v3 13",
    ],
)
def test_rudalle_is_the_reference(tmp_path, version, changes):
    tensors, masks = rudalle_file(tmp_path / "model.bin", version, **changes)
    layers, side = changes.get("layers", 4), changes.get("side", 7)
    transformer, stream = build(rudalle.load(tmp_path / "model.bin", RU_HEADS))
    ids = image_ids(side, 23)

    def logits(text_ids, image):
        text = torch.tensor([*text_ids, *[0] * (RU["length"] - len(text_ids))])
        return foreign_transformers.rudalle_logits(tensors, masks, layers, RU_HEADS, version, text, image)

    for caption in ([], [2, 11, 4, 3], [2, 30, 1, 6, 9, 5]):
        whole = logits(caption, ids.flatten())
        with torch.inference_mode():
            ours = transformer.logits(transformer(stream.join(stream.prefix([caption]), ids)))[0, : len(whole)]
        torch.testing.assert_close(ours, whole, atol=1e-4, rtol=0)
    drawn = generate(transformer, stream, Prompt([2, 11, 4, 3], []), [1], GREEDY).image_ids[0].flatten()
    count = 30  # enough, and the reference knows no cache
    assert torch.equal(drawn[:count], greedy(lambda ids: logits([2, 11, 4, 3], ids)[:, RU["text"] :], count))
    assert len(drawn[:count].unique()) > 3


def test_guidance_with_an_imported_rudalle(tmp_path):
    tensors, masks = rudalle_file(tmp_path / "model.bin", 2)
    transformer, stream = build(rudalle.load(tmp_path / "model.bin", RU_HEADS))

    def guided(ids):
        texts = torch.tensor([[2, 11, 4, 3, 0, 0], [0] * 6])
        given, null = (
            foreign_transformers.rudalle_logits(tensors, masks, 4, RU_HEADS, 2, text, ids)[:, RU["text"] :]
            for text in texts
        )
        return null + 2.5 * (given - null)

    settings = SamplingConfig(temperature=0, guidance=2.5)
    drawn = generate(transformer, stream, Prompt([2, 11, 4, 3], []), [1], settings).image_ids[0]
    assert torch.equal(drawn.flatten(), greedy(guided, 49))


@pytest.mark.parametrize(
    ("layers", "C", "parameters"),
    [(24, 2048, 1_310_410_880), (64, 3840, 11_519_306_624)],
    ids=["Malevich", "Kandinsky"],
)
@pytest.mark.parametrize("version", [2, 3])
def test_rudalle_at_full_size(version, layers, C, parameters):
    shapes = foreign_transformers.rudalle_shapes(layers=layers, C=C, text=16384 + 128, ids=8192, length=128, side=32)
    tensors = on_meta(shapes)
    if version == 3:
        tensors["transformer.conv_mask"] = mask_matrix("conv_square", 128, (32, 32))
    imported = rudalle.from_weights(Weights("pytorch_model.bin", tensors))
    zeros = 129 * C if version == 2 else 127 * C
    assert assert_whole(imported, zeros) == sum(map(math.prod, shapes.values())) == parameters
    assert len(shapes) == 11 + 16 * layers
    assert imported.stream == StreamConfig(
        text_length=128, text_vocab=16384, grid=(32, 32), image_vocab=8192, bos_id=2 if version == 2 else -1, pad_id=0
    )
    masks = imported.config.last_attention_mask, imported.config.mask_origin
    assert masks == (("conv_torus", "target") if version == 2 else ("conv_square", "input"))
    assert imported.config.n_head == (16 if C == 2048 else 60)


@pytest.mark.parametrize(
    ("changes", "n_head", "message"),
    [
        (
            {"transformer.layers.3.attention.dense.bias": None},
            RU_HEADS,
            r"1 missing \(transformer.layers.3.attention.dense.bias\)$",
        ),
        (
            {"transformer.layers.0.before_second_addition_layernorm.weight": None},
            RU_HEADS,
            r"1 missing \(transformer.layers.0.before_second_addition_layernorm.weight\)$",
        ),
        (
            {"image_col_embeddings.weight": torch.zeros(3, 14), "more": torch.zeros(1)},
            RU_HEADS,
            r"1 not known \(more\); 1 of another shape "
            r"\(image_col_embeddings.weight is \(3, 14\), expected \(7, 14\)\)$",
        ),
        ({"text_pos_embeddings.weight": None}, RU_HEADS, "no tensor whose name ends with text_pos_embeddings.weight"),
        ({"image_row_embeddings.weight": None}, RU_HEADS, "has no image_row_embeddings.weight, which tells the shape"),
        ({}, 3, "is 14 wide, which 3 heads share; give --heads, a divisor of it"),
        ({}, None, "is 14 wide, which an unknown number of heads share; give --heads"),
        ({"transformer.row_mask": torch.ones(55, 55).tril()}, RU_HEADS, "row_mask is none of the masks of ruDALL-E's"),
        ({"conv_mask": torch.ones(7, 7)}, RU_HEADS, "conv_mask is none of the masks"),
    ],
)
def test_a_rudalle_that_does_not_fit_is_refused(tmp_path, changes, n_head, message):
    tensors = {**random_transformer(foreign_transformers.rudalle_shapes(**RU)), **changes}
    torch.save({name: value for name, value in tensors.items() if value is not None}, tmp_path / "model.bin")
    with pytest.raises(UserError, match=message):
        rudalle.load(tmp_path / "model.bin", n_head)


# --- files


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_tensors_of_a_file_take_no_memory_until_they_are_joined(tmp_path):
    rudalle_file(tmp_path / "model.bin", 2)
    ours = rudalle.load(tmp_path / "model.bin", RU_HEADS).tensors
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("model.bin")]
    parts = [[int(number, 16) for number in line.split()[0].split("-")] for line in lines]

    def mapped(tensor):
        return any(first <= tensor.data_ptr() < end for first, end in parts)

    assert {name for name, value in ours.items() if not mapped(value)} == {
        "embed.weight",
        "positions.0.weight",
        "positions.1.weight",
    }


def test_half_precision_is_kept(tmp_path):
    tensors = random_transformer(foreign_transformers.rudalle_shapes(**RU))
    torch.save({name: value.half() for name, value in tensors.items()}, tmp_path / "model.bin")
    imported = rudalle.load(tmp_path / "model.bin", RU_HEADS)
    assert {value.dtype for value in imported.tensors.values()} == {torch.float16}
