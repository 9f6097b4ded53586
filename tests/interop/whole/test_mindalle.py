"""An imported minDALL-E computes what the slow reference computes; files that do not fit are refused."""

import pytest
import torch
import yaml
from accelerate import init_empty_weights
from helpers.foreign_examples import build_imported
from helpers.foreign_mindalle import HEADS, SMALL, mindalle_logits, mindalle_shapes
from helpers.foreign_tensors import greedy_ids, on_meta_device, random_gpt_tensors

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.whole import mindalle
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.likelihood import image_logits
from dalle_mini_impl.util.errors import UserError

PAD = 17
"""Text id of [PAD]."""
LAYERS = SMALL["layers"]


@pytest.fixture
def small():
    """Tensors of a small model, and what was imported from its file."""
    tensors = random_gpt_tensors(mindalle_shapes(**SMALL))
    torch.save({"state_dict": tensors}, "stage2_last.ckpt")
    return tensors, mindalle.load("stage2_last.ckpt", HEADS, PAD)


def padded(caption):
    return torch.tensor([*caption, *[PAD] * (SMALL["text_length"] - len(caption))])


@pytest.mark.parametrize("caption", [[], [4, 11, 3], [28, 0, 1, 6, 2]])
def test_logits_match_the_reference(small, caption):
    tensors, imported = small
    transformer, stream = build_imported(imported)
    image_ids = torch.randint(23, (1, 3, 3), generator=torch.Generator().manual_seed(3))
    text, image = mindalle_logits(tensors, LAYERS, HEADS, padded(caption), image_ids.flatten()[:-1])
    torch.testing.assert_close(image_logits(transformer, stream, caption, image_ids)[0], image, atol=1e-4, rtol=0)
    with torch.inference_mode():
        logits = transformer.logits(transformer(stream.prefix([caption])), stream.text_range)[0, :-1]
    # The padding id of each position has the logit of [PAD], and [PAD] itself is impossible
    positions = torch.arange(1, SMALL["text_length"])
    paddings = logits[positions - 1, SMALL["text_vocab"] + positions]
    torch.testing.assert_close(paddings, text[:, PAD], atol=1e-4, rtol=0)
    text[:, PAD] = logits[:, PAD]
    torch.testing.assert_close(logits[:, : SMALL["text_vocab"]], text, atol=1e-4, rtol=0)
    assert (logits[:, PAD] < -9000).all()


def test_greedy_ids_match_the_reference_with_and_without_guidance(small):
    tensors, imported = small
    transformer, stream = build_imported(imported)

    def logits_after(caption):
        return lambda ids: mindalle_logits(tensors, LAYERS, HEADS, padded(caption), ids)[1]

    greedy = SamplingConfig(temperature=0, guidance=1)
    sampled = generate(transformer, stream, Prompt([4, 11, 3], []), [1], greedy).image_ids[0]
    assert torch.equal(sampled.flatten(), greedy_ids(logits_after([4, 11, 3]), 9))
    assert len(sampled.unique()) > 2

    def guided_logits(ids):
        conditional, unconditional = logits_after([4, 11, 3])(ids), logits_after([])(ids)
        return unconditional + 2.5 * (conditional - unconditional)

    guided_greedy = SamplingConfig(temperature=0, guidance=2.5)
    guided = generate(transformer, stream, Prompt([4, 11, 3], []), [1], guided_greedy).image_ids[0]
    assert torch.equal(guided.flatten(), greedy_ids(guided_logits, 9))
    assert not torch.equal(guided, sampled)


def test_published_model_has_the_expected_names_shapes_and_config():
    shapes = mindalle_shapes(layers=42, width=1536, text_vocab=16384, n_ids=16384, text_length=64, side=16)
    weights = Weights("stage2_last.ckpt", on_meta_device(shapes))
    imported = mindalle.convert(weights, 24, PAD)
    with init_empty_weights():
        expected = build_transformer(imported.config, imported.stream).state_dict()
    assert {name: value.shape for name, value in imported.tensors.items()} == {
        name: value.shape for name, value in expected.items()
    }
    n_parameters = sum(value.numel() for value in weights.tensors.values())
    paddings = 2 * 64 * 1536  # embeddings and rows of the head
    head_bias = 16384 + 64 + 16384
    assert sum(value.numel() for value in expected.values()) == n_parameters + paddings + head_bias
    assert (len(shapes), n_parameters) == (680, 1_291_081_728)
    assert imported.stream == StreamConfig(
        text_length=64, text_vocab=16384, grid=(16, 16), image_vocab=16384, bos_id=-1, pad_id=PAD
    )


@pytest.mark.parametrize(
    ("changes", "pad_id", "message"),
    [
        ({"blocks.1.attn.key.bias": None}, PAD, r"with 1 missing \(blocks.1.attn.key.bias\); download"),
        (
            {"blocks.2.mlp.0.weight": torch.zeros(3, 22), "sos": torch.zeros(1)},
            PAD,
            r"with 1 unknown \(sos\); "
            r"1 of another shape \(blocks.2.mlp.0.weight is \(3, 22\), expected \(88, 22\)\); download",
        ),
        ({"tok_emb_txt.weight": None}, PAD, "expected a tensor whose name ends with tok_emb_txt.weight, got"),
        (
            {"pos_emb_img.weight": torch.zeros(8, 22)},
            PAD,
            "expected a square number of image positions, got 8 in s.ckpt",
        ),
        ({"pos_emb_txt.weight": None}, PAD, "expected a tensor pos_emb_txt.weight, which determines the shape"),
        ({}, 29, "whose padding is one of the ids 0 … 28 of s.ckpt, got id 29; use the tokenizer"),
        ({}, -1, "whose padding is one of the ids 0 … 28 of s.ckpt, got id -1; use"),
    ],
)
def test_file_that_does_not_fit_is_refused(changes, pad_id, message):
    tensors = {**random_gpt_tensors(mindalle_shapes(**SMALL)), **changes}
    torch.save({"state_dict": {name: value for name, value in tensors.items() if value is not None}}, "s.ckpt")
    with pytest.raises(UserError, match=message):
        mindalle.load("s.ckpt", HEADS, pad_id)


def test_head_count_is_read_from_config_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    settings = {"stage1": {}, "stage2": {"hparams": {"n_heads": 5, "gelu_use_approx": False}}}
    for content, n_head in ((settings, 5), ({"stage2": {"hparams": {}}}, 24), ({}, 24), ([1], 24)):
        path.write_text(yaml.safe_dump(content))
        assert mindalle.read_head_count(tmp_path) == n_head
    for hparams, message in (
        ({"gelu_use_approx": True}, "expected the exact GELU, got gelu_use_approx in .*config.yaml"),
        ({"n_heads": "many"}, "expected n_heads of 1 or more, got 'many' in"),
        ({"n_heads": 0}, "expected n_heads of 1 or more, got 0 in"),
    ):
        path.write_text(yaml.safe_dump({"stage2": {"hparams": hparams}}))
        with pytest.raises(UserError, match=message):
            mindalle.read_head_count(tmp_path)
    path.write_text("a: [")
    with pytest.raises(UserError, match=r"minDALL-E's settings .*config\.yaml is not YAML in UTF-8"):
        mindalle.read_head_count(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read minDALL-E's settings .*config\.yaml: No such file"):
        mindalle.read_head_count(tmp_path)


def test_head_count_that_does_not_divide_the_width_is_refused():
    torch.save(random_gpt_tensors(mindalle_shapes(**SMALL)), "s.ckpt")
    message = r"expected a number of heads that divides the width 22 of s.ckpt, got 5; give the config.yaml"
    with pytest.raises(UserError, match=message):
        mindalle.load("s.ckpt", 5, PAD)
