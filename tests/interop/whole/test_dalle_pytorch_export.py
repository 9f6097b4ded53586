"""Models of ours as files of DALLE-pytorch, without that package."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import foreign_dalle_pytorch
from helpers.foreign_dalle_pytorch import IDS, KINDS, PICTURE, VAE, Kind, content, make_tensors

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.interop.whole import dalle_pytorch as dalle_pytorch_model
from dalle_mini_impl.interop.whole import dalle_pytorch_export as exporting
from dalle_mini_impl.model.image_tokenizer import load_image_tokenizer
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    result = CliRunner().invoke(dalle, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)


def exportable(kind=KINDS["1.6.6"], **changes):
    """A model as `dalle export` reads it from a checkpoint folder."""
    torch.save(content(kind, **changes), "dalle.pt")
    image, transformer = dalle_pytorch_model.load("dalle.pt")
    return exporting.Model(
        transformer.config,
        transformer.stream,
        transformer.tensors,
        image.tokenizer.config,
        image.tokenizer.state_dict(),
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_exported_it_computes_the_same(kind):
    stuff = content(kind, vae_params={"normalization": ((0.4, 0.3, 0.2), (0.5, 0.6, 0.7))})
    torch.save(stuff, "dalle.pt")
    run("import", "dalle-pytorch", "dalle.pt", "--out", "model")
    run("export", "dalle-pytorch", "model", "--out", "again.pt")
    again = torch.load("again.pt", weights_only=True)
    assert again["vae_params"] == {
        "image_size": 16,
        "num_layers": 2,
        "num_tokens": IDS,
        "codebook_dim": 7,
        "hidden_dim": 11,
        "num_resnet_blocks": 0,
        "normalization": ((0.4, 0.3, 0.2), (0.5, 0.6, 0.7)),
    }
    assert again["hparams"].items() >= kind.hparams.items()
    assert all(torch.equal(again["weights"][f"vae.{name}"], value) for name, value in VAE.items())
    newest = dataclasses.replace(kind, nests=(5, 4) if kind.shift else (3, 2), tied=False, axial=Kind.axial)
    assert again["weights"].keys() == {*make_tensors(newest), *(f"vae.{name}" for name in VAE)}
    found, expected = (
        foreign_dalle_pytorch.logits(weights, layout, [7, 3], PICTURE)
        for weights, layout in ((again["weights"], newest), (stuff["weights"], kind))
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    run("import", "dalle-pytorch", "again.pt", "--out", "again")
    assert load_image_tokenizer("again")[0].config == load_image_tokenizer("model")[0].config


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("block", {"norm": "rms"}, "block.norm is 'rms', and DALLE-pytorch has only 'layer'; such a model cannot"),
        ("block", {"mlp": "swiglu"}, "block.mlp is 'swiglu'"),
        ("block", {"hidden": 7}, "block.hidden is 7, and DALLE-pytorch has only 80"),
        ("block", {"bias": False}, "block.bias is False"),
        ("block", {"qk_norm": True}, "block.qk_norm is True"),
        ("block", {"rotate_values": False}, "block.rotate_values is False, and DALLE-pytorch has only True"),
        ("config", {"position": "rope"}, "position is 'rope', and DALLE-pytorch has only 'table', 'learned'"),
        (
            "config",
            {"attention_masks": ("full", "row")},
            "attention mask is 'row', and DALLE-pytorch has only 'full', 'axial_r",
        ),
        ("config", {"last_attention_mask": "conv"}, "attention mask is 'conv'"),
        ("config", {"mask_kernel": 11}, "mask_kernel is 11, and DALLE-pytorch has only 5"),
        ("config", {"mask_origin": "target"}, "mask_origin is 'target'"),
        ("config", {"last_norms": 2}, "last_norms is 2"),
        ("stream", {"grid": (4, 5)}, r"grid is \(4, 5\), and DALLE-pytorch has only \(4, 4\)"),
        ("stream", {"bos_id": 2}, "bos_id is 2"),
        ("stream", {"pad_id": -1}, "pad_id is -1"),
        ("image_config", {"network": "taming"}, "the image tokenizer's network is 'taming'"),
        ("image_config", {"image_size": 32}, "the image tokenizer's image_size is 32, and DALLE-pytorch has only 16"),
    ],
)
def test_what_the_package_does_not_have_is_not_exported(part, changes, message):
    model = exportable()
    if part == "block":
        block = dataclasses.replace(model.config.block, **changes)
        changes = {"config": dataclasses.replace(model.config, block=block)}
    else:
        changes = {part: dataclasses.replace(getattr(model, part), **changes)}
    with pytest.raises(UserError, match=message):
        exporting.export(dataclasses.replace(model, **changes))


def test_neither_are_biases_nor_odd_sizes_that_it_does_not_have(monkeypatch):
    model = exportable()
    model.tensors["blocks.1.attention.qkv.bias"][3] = 0.5
    with pytest.raises(UserError, match=r"the largest bias of queries, keys and values is 0\.5"):
        exporting.export(model)
    monkeypatch.setattr(foreign_dalle_pytorch, "SIDE", 3)
    with pytest.raises(UserError, match="image_size is 12, and DALLE-pytorch has only 2, 4, 8"):
        exporting.export(exportable())


def test_a_model_of_ours_cannot_be_exported(tiny_model, refused):
    assert "block.norm is 'rms'" in refused("export", "dalle-pytorch", tiny_model, "--out", "dalle.pt")
    assert not Path("dalle.pt").exists()
