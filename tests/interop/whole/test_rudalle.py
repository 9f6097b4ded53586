"""An imported ruDALL-E computes what the slow reference computes; files that do not fit are refused."""

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from helpers.foreign_examples import build_imported
from helpers.foreign_rudalle import HEADS, SMALL, rudalle_logits, rudalle_shapes, write_rudalle_file
from helpers.foreign_tensors import greedy_ids, on_meta_device, random_gpt_tensors

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.whole import rudalle
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.masks import mask_matrix
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.util.errors import UserError

VARIANTS = {
    "v2": (2, {}),
    "v3": (3, {}),
    "v2 with boolean masks": (2, {"mask_dtype": torch.bool}),
    "v3 without sandwich norms": (3, {"mask_dtype": torch.bool, "sandwich": False}),
    "v2 without masks": (2, {"mask_prefix": None}),
    "v2 with masks at the top level": (2, {"mask_prefix": "", "mask_dtype": torch.float16}),
    "v3 with a column mask last": (3, {"layers": 2}),
    "v2 with five layers": (2, {"layers": 5, "side": 13}),
    "v3 with a grid larger than the square": (3, {"side": 13}),
}


@pytest.mark.parametrize(("version", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_logits_and_greedy_ids_match_the_reference(tmp_path, version, changes):
    tensors, masks = write_rudalle_file(tmp_path / "model.bin", version, **changes)
    layers = changes.get("layers", SMALL["layers"])
    side = changes.get("side", SMALL["side"])
    transformer, stream = build_imported(rudalle.load("model.bin", HEADS))
    image_ids = torch.randint(23, (1, side, side), generator=torch.Generator().manual_seed(3))

    def reference_logits(caption, image_ids):
        text_ids = torch.tensor([*caption, *[0] * (SMALL["text_length"] - len(caption))])
        return rudalle_logits(tensors, masks, layers, HEADS, version, text_ids, image_ids)

    for caption in ([], [2, 11, 4, 3], [2, 30, 1, 6, 9, 5]):
        expected = reference_logits(caption, image_ids.flatten())
        with torch.inference_mode():
            logits = transformer.logits(transformer(stream.join(stream.prefix([caption]), image_ids)))
        torch.testing.assert_close(logits[0, : len(expected)], expected, atol=1e-4, rtol=0)
    greedy = SamplingConfig(temperature=0, guidance=1)
    sampled = generate(transformer, stream, Prompt([2, 11, 4, 3], []), [1], greedy).image_ids[0].flatten()
    count = 30  # not all, because the reference has no cache
    expected = greedy_ids(lambda ids: reference_logits([2, 11, 4, 3], ids)[:, SMALL["text_ids"] :], count)
    assert torch.equal(sampled[:count], expected)
    assert len(sampled[:count].unique()) > 3


def test_guided_greedy_ids_match_the_reference(tmp_path):
    tensors, masks = write_rudalle_file(tmp_path / "model.bin", 2)
    transformer, stream = build_imported(rudalle.load("model.bin", HEADS))

    def guided_logits(ids):
        captions = torch.tensor([[2, 11, 4, 3, 0, 0], [0] * 6])
        conditional, unconditional = (
            rudalle_logits(tensors, masks, 4, HEADS, 2, text_ids, ids)[:, SMALL["text_ids"] :] for text_ids in captions
        )
        return unconditional + 2.5 * (conditional - unconditional)

    guided_greedy = SamplingConfig(temperature=0, guidance=2.5)
    sampled = generate(transformer, stream, Prompt([2, 11, 4, 3], []), [1], guided_greedy).image_ids[0]
    assert torch.equal(sampled.flatten(), greedy_ids(guided_logits, 49))


@pytest.mark.parametrize(
    ("layers", "width", "n_parameters", "heads"),
    [(24, 2048, 1_310_410_880, 16), (64, 3840, 11_519_306_624, 60)],
    ids=["Malevich", "Kandinsky"],
)
@pytest.mark.parametrize("version", [2, 3])
def test_published_model_has_the_expected_names_shapes_and_config(version, layers, width, n_parameters, heads):
    shapes = rudalle_shapes(layers, width, text_ids=16384 + 128, n_ids=8192, text_length=128, side=32)
    tensors = on_meta_device(shapes)
    if version == 3:
        tensors["transformer.conv_mask"] = mask_matrix("conv_square", 128, (32, 32))
    imported = rudalle.convert(Weights("pytorch_model.bin", tensors))
    with init_empty_weights():
        expected = build_transformer(imported.config, imported.stream).state_dict()
    assert {name: value.shape for name, value in imported.tensors.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert sum(tensors[name].numel() for name in shapes) == n_parameters
    # Columns of text are zeros; v3 does not use the last text position
    added = 129 * width if version == 2 else 127 * width
    assert sum(value.numel() for value in expected.values()) == n_parameters + added
    assert len(shapes) == 11 + 16 * layers
    assert imported.stream == StreamConfig(
        text_length=128, text_vocab=16384, grid=(32, 32), image_vocab=8192, bos_id=2 if version == 2 else -1, pad_id=0
    )
    masks = imported.config.last_attention_mask, imported.config.mask_origin
    assert masks == (("conv_torus", "target") if version == 2 else ("conv_square", "input"))
    assert imported.config.n_head == heads


@pytest.mark.parametrize(
    ("changes", "n_head", "message"),
    [
        (
            {"transformer.layers.3.attention.dense.bias": None},
            HEADS,
            r"with 1 missing \(transformer.layers.3.attention.dense.bias\); download",
        ),
        (
            {"transformer.layers.0.before_second_addition_layernorm.weight": None},
            HEADS,
            r"with 1 missing \(transformer.layers.0.before_second_addition_layernorm.weight\); download",
        ),
        (
            {"image_col_embeddings.weight": torch.zeros(3, 14), "more": torch.zeros(1)},
            HEADS,
            r"with 1 unknown \(more\); 1 of another shape "
            r"\(image_col_embeddings.weight is \(3, 14\), expected \(7, 14\)\); download",
        ),
        (
            {"text_pos_embeddings.weight": None},
            HEADS,
            "expected a tensor whose name ends with text_pos_embeddings.weight, got",
        ),
        (
            {"image_row_embeddings.weight": None},
            HEADS,
            "expected a tensor image_row_embeddings.weight, which determines",
        ),
        ({}, 3, "expected a number of heads that divides the width 14 of model.bin, got 3; give --heads"),
        ({}, None, "expected a number of heads that divides the width 14 of model.bin, got no known one; give --heads"),
        (
            {"transformer.row_mask": torch.ones(55, 55).tril()},
            HEADS,
            "expected the attention masks of ruDALL-E's v2 or v3, got another row_mask in model.bin",
        ),
        ({"conv_mask": torch.ones(7, 7)}, HEADS, "got another conv_mask in model.bin"),
    ],
)
def test_file_that_does_not_fit_is_refused(changes, n_head, message):
    tensors = {**random_gpt_tensors(rudalle_shapes(**SMALL)), **changes}
    torch.save({name: value for name, value in tensors.items() if value is not None}, "model.bin")
    with pytest.raises(UserError, match=message):
        rudalle.load("model.bin", n_head)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_only_joined_tensors_are_copied_from_the_mapped_file(tmp_path):
    write_rudalle_file(tmp_path / "model.bin", 2)
    tensors = rudalle.load("model.bin", HEADS).tensors
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("model.bin")]
    mapped_ranges = [[int(address, 16) for address in line.split()[0].split("-")] for line in lines]

    def is_mapped(tensor):
        return any(first <= tensor.data_ptr() < end for first, end in mapped_ranges)

    assert {name for name, value in tensors.items() if not is_mapped(value)} == {
        "embed.weight",
        "positions.0.weight",
        "positions.1.weight",
    }


def test_half_precision_is_kept():
    tensors = random_gpt_tensors(rudalle_shapes(**SMALL))
    torch.save({name: value.half() for name, value in tensors.items()}, "model.bin")
    imported = rudalle.load("model.bin", HEADS)
    assert {value.dtype for value in imported.tensors.values()} == {torch.float16}
