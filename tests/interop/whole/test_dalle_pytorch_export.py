"""Exported models compute the same in DALLE-pytorch's layout; models that it cannot have are refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import foreign_dalle_pytorch
from helpers.foreign_dalle_pytorch import (
    N_IDS,
    OPTIONS,
    PICTURE,
    VAE,
    DalleOptions,
    dalle_file_content,
    dalle_logits,
    dalle_tensors,
)

from dalle_mini_impl import ImageTokenizer
from dalle_mini_impl.interop.whole import dalle_pytorch
from dalle_mini_impl.interop.whole.dalle_pytorch_export import ExportedModel, to_dalle_pytorch
from dalle_mini_impl.util.errors import UserError


def exportable_model():
    """A model that can be exported."""
    torch.save(dalle_file_content(), "dalle.pt")
    image, transformer = dalle_pytorch.load("dalle.pt")
    return ExportedModel(
        transformer.config,
        transformer.stream,
        transformer.tensors,
        image.tokenizer.config,
        image.tokenizer.state_dict(),
    )


def has_centred_square(options):
    return options.centred and "conv_like" in options.attn_types


@pytest.mark.parametrize(
    "options",
    [pytest.param(value, id=name) for name, value in OPTIONS.items() if not has_centred_square(value)],
)
def test_exported_model_has_the_layout_of_1_6_6_and_the_same_logits(run, options):
    normalization = ((0.4, 0.3, 0.2), (0.5, 0.6, 0.7))
    content = dalle_file_content(options, vae_params={"normalization": normalization})
    torch.save(content, "dalle.pt")
    run("import", "dalle-pytorch", "dalle.pt", "--out", "model")
    run("export", "dalle-pytorch", "model", "--out", "exported.pt")
    exported = torch.load("exported.pt", weights_only=True)
    assert exported["vae_params"] == {
        "image_size": 16,
        "num_layers": 2,
        "num_tokens": N_IDS,
        "codebook_dim": 7,
        "hidden_dim": 11,
        "num_resnet_blocks": 0,
        "normalization": normalization,
    }
    assert exported["hparams"].items() >= options.hparams.items()
    assert all(torch.equal(exported["weights"][f"vae.{name}"], value) for name, value in VAE.items())
    current = dataclasses.replace(
        options,
        wrappers=(5, 4) if options.token_shift else (3, 2),
        tied=False,
        axial_prefix=DalleOptions.axial_prefix,
        version="1.6.6",
    )
    assert exported["weights"].keys() == {*dalle_tensors(current), *(f"vae.{name}" for name in VAE)}
    logits = dalle_logits(exported["weights"], current, [7, 3], PICTURE)
    expected = dalle_logits(content["weights"], options, [7, 3], PICTURE)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    run("import", "dalle-pytorch", "exported.pt", "--out", "again")
    assert ImageTokenizer.from_pretrained("again").config == ImageTokenizer.from_pretrained("model").config


def test_square_around_the_position_of_early_versions_is_not_exported(run):
    torch.save(dalle_file_content(OPTIONS["1.4.2"]), "dalle.pt")
    run("import", "dalle-pytorch", "dalle.pt", "--out", "model")
    message = run("export", "dalle-pytorch", "model", "--out", "exported.pt", code=1)
    assert message.startswith("expected attention mask to be 'full' or ")
    assert "got 'conv_square'; such a model cannot be exported" in message


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "block",
            {"norm": "rms"},
            "expected block.norm to be 'layer', as in DALLE-pytorch, got 'rms'; such a model cannot be exported",
        ),
        ("block", {"mlp": "swiglu"}, "expected block.mlp to be 'geglu', .* got 'swiglu'"),
        ("block", {"hidden": 7}, "expected block.hidden to be 80, as in DALLE-pytorch, got 7;"),
        ("block", {"bias": False}, "expected block.bias to be True, .* got False"),
        ("block", {"qk_norm": True}, "expected block.qk_norm to be False, .* got True"),
        ("block", {"rotate_values": False}, "expected block.rotate_values to be True, .* got False"),
        ("config", {"position": "rope"}, "expected position to be 'table' or 'learned', .* got 'rope'"),
        (
            "config",
            {"attention_masks": ("full", "row")},
            "expected attention mask to be 'full' or 'axial_row' or 'axial_col' or 'conv_like', .* got 'row'",
        ),
        ("config", {"last_attention_mask": "conv"}, "expected attention mask to be .* got 'conv'"),
        ("config", {"mask_kernel": 11}, "expected mask_kernel to be 5, as in DALLE-pytorch, got 11;"),
        ("config", {"mask_origin": "target"}, "expected mask_origin to be 'input', .* got 'target'"),
        ("config", {"last_norms": 2}, "expected last_norms to be 1, .* got 2"),
        ("config", {"tied_head": True}, "expected tied_head to be False, .* got True"),
        ("stream", {"grid": (4, 5)}, r"expected grid to be \(4, 4\), as in DALLE-pytorch, got \(4, 5\);"),
        ("stream", {"bos_id": 2}, "expected bos_id to be 0, .* got 2"),
        ("stream", {"pad_id": -1}, "expected pad_id to be 0, .* got -1"),
        ("stream", {"embed_positions": 4}, r"expected image_embed\.positions to be 0, .* got 4"),
        (
            "image_config",
            {"network": "taming"},
            "expected the image tokenizer's network to be 'dalle-pytorch', .*ming'",
        ),
        (
            "image_config",
            {"image_size": 32},
            "expected the image tokenizer's picture size to be \\(16, 16\\), .* got \\(32, 32\\);",
        ),
    ],
)
def test_settings_that_dalle_pytorch_does_not_have_are_refused(part, changes, message):
    model = exportable_model()
    if part == "block":
        block = dataclasses.replace(model.config.block, **changes)
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, block=block))
    else:
        model = dataclasses.replace(model, **{part: dataclasses.replace(getattr(model, part), **changes)})
    with pytest.raises(UserError, match=message):
        to_dalle_pytorch(model)


def test_biases_of_queries_keys_and_values_are_refused():
    model = exportable_model()
    model.tensors["blocks.1.attention.qkv.bias"][3] = 0.5
    message = r"expected the largest bias of queries, keys and values to be 0\.0, as in DALLE-pytorch, got 0\.5"
    with pytest.raises(UserError, match=message):
        to_dalle_pytorch(model)


def test_image_size_that_is_no_power_of_two_is_refused(monkeypatch):
    monkeypatch.setattr(foreign_dalle_pytorch, "SIDE", 3)
    message = "expected the image tokenizer's image_size to be 2 or 4 or 8 .* got 12"
    with pytest.raises(UserError, match=message):
        to_dalle_pytorch(exportable_model())


def test_model_trained_here_is_refused_by_the_command(tiny_model, refused):
    message = refused("export", "dalle-pytorch", tiny_model, "--out", "dalle.pt")
    assert message.startswith("error: expected block.norm to be 'layer', as in DALLE-pytorch, got 'rms'")
    assert not Path("dalle.pt").exists()
