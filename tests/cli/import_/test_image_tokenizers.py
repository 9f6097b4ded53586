"""`dalle import` of image tokenizers: what it writes, its options, and how it refuses files."""

import argparse
import functools
from typing import Any

import pytest
import torch
import yaml
from helpers.foreign_examples import DISCRETE_VAE, DVAE_DECODER, DVAE_ENCODER, LLAMAGEN, VQGAN
from safetensors import safe_open

from dalle_mini_impl import DalleMini, ImageTokenizer

FILES: dict[str, dict[str, Any]] = {
    "taming-vqgan": {"vqgan.pt": VQGAN},
    "llamagen-vq": {"vq.pt": {"model": LLAMAGEN}},
    "openai-dvae": {"encoder.pt": DVAE_ENCODER, "decoder.pt": DVAE_DECODER},
    "dalle-pytorch-vae": {"vae.pt": {"hparams": {"image_size": 64}, "weights": DISCRETE_VAE}},
}
FACTORS = {"taming-vqgan": 2, "llamagen-vq": 2, "openai-dvae": 8, "dalle-pytorch-vae": 8}


@pytest.fixture
def run_import(run):
    """Run `dalle import`, and return what it printed."""
    return functools.partial(run, "import")


@pytest.mark.parametrize("name", FILES)
def test_every_format_becomes_a_part_that_encodes_and_decodes(run_import, name):
    for file, content in FILES[name].items():
        torch.save(content, file)
    printed = run_import(name, *FILES[name], "--out", "new/part", "--image-size", "48")
    side = 48 // FACTORS[name]
    assert f"61 image ids, each for {FACTORS[name]}×{FACTORS[name]} pixels, {side}×{side} for 48×48" in printed
    tokenizer = ImageTokenizer.from_pretrained("new/part")
    assert f"{len(tokenizer.state_dict())} tensors" in printed
    assert tokenizer.config.grid == (side, side)
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    ids = tokenizer.encode(pixels)
    assert ids.shape == (2, 16 // FACTORS[name], 24 // FACTORS[name])
    assert tokenizer.decode(ids).shape == pixels.shape
    with safe_open("new/part/image_tokenizer.safetensors", "pt") as part:
        assert part.metadata()["identity"] in printed
        assert {str(part.get_tensor(key).dtype) for key in part.keys()} == {"torch.float32"}  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_part_has_the_precision_of_the_file(run_import, dtype):
    torch.save({name: value.to(dtype) for name, value in DISCRETE_VAE.items()}, "vae.pt")
    run_import("dalle-pytorch-vae", "vae.pt", "--out", "part")
    with safe_open("part/image_tokenizer.safetensors", "pt") as part:
        assert {part.get_tensor(key).dtype for key in part.keys()} == {dtype}  # noqa: SIM118
    codebook = ImageTokenizer.from_pretrained("part").quantizer.embed.weight
    assert codebook.dtype == torch.float32
    assert torch.equal(codebook, DISCRETE_VAE["codebook.weight"].to(dtype).float())


def test_options_reach_the_part(run_import):
    torch.save(DISCRETE_VAE, "vae.pt")
    torch.save(LLAMAGEN, "vq.pt")
    run_import("dalle-pytorch-vae", "vae.pt", "--out", "a", "--mean", 0.1, 0.2, 0.3, "--std", 1, 2, 3)
    config = ImageTokenizer.from_pretrained("a").config
    assert (config.imported.mean, config.imported.std, config.image_size) == (
        (0.1, 0.2, 0.3),
        (1.0, 2.0, 3.0),
        256,
    )
    for folder, options, quantizer in (("b", (), "cosine"), ("c", ("--no-codebook-norm",), "nearest")):
        run_import("llamagen-vq", "vq.pt", "--out", folder, *options)
        assert ImageTokenizer.from_pretrained(folder).config.quantizer == quantizer


def test_existing_part_is_not_replaced(run_import, tmp_path):
    torch.save(DISCRETE_VAE, "vae.pt")
    run_import("dalle-pytorch-vae", "vae.pt", "--out", "part")
    before = (tmp_path / "part/image_tokenizer.safetensors").read_bytes()
    message = run_import("dalle-pytorch-vae", "vae.pt", "--out", "part", code=1)
    assert message == (
        "expected a folder without image_tokenizer.safetensors, got part/image_tokenizer.safetensors; "
        "choose another folder for --out"
    )
    assert (tmp_path / "part/image_tokenizer.safetensors").read_bytes() == before


def test_bad_options_are_refused(run_import):
    torch.save(DISCRETE_VAE, "vae.pt")
    vae = ("dalle-pytorch-vae", "vae.pt", "--out", "part")
    assert run_import(*vae, "--std", 1, 0, 1, code=1) == (
        "expected std without 0, by which pixels would be divided, got (1.0, 0.0, 1.0); give other values"
    )
    assert "expected image_size to be a multiple of factor 8, got 20" in run_import(*vae, "--image-size", "20", code=1)
    assert "0 is not in the range" in run_import(*vae, "--image-size", "0", code=2)
    assert "Missing option '--out'" in run_import("dalle-pytorch-vae", "vae.pt", code=2)
    assert "takes 2 values" in run_import("openai-dvae", "vae.pt", "--out", "part", code=2)
    assert "No such command 'vqvae'" in run_import("vqvae", "vae.pt", "--out", "part", code=2)
    assert "Missing argument 'FILE'" in run_import("taming-vqgan", "--out", "part", code=2)


def test_files_with_more_than_tensors_need_trust(run_import):
    torch.save({"state_dict": VQGAN, "args": argparse.Namespace(lr=1)}, "last.ckpt")
    message = run_import("taming-vqgan", "last.ckpt", "--out", "part", code=1)
    assert message.startswith(
        "expected only tensors and plain values, got argparse.Namespace in last.ckpt; such a file"
    )
    assert "can run programs" in message
    assert message.endswith("add --trust-pickle")
    assert "image tokenizer" in run_import("taming-vqgan", "last.ckpt", "--out", "part", "--trust-pickle")


def test_missing_files_folders_and_files_without_tensors_are_refused(run_import, tmp_path):
    for name in ("nowhere.pt", "nowhere.safetensors"):
        message = run_import("taming-vqgan", name, "--out", "part", code=1)
        assert message == f"expected a file to import, got {name}, which does not exist; check the path"
    assert "which is a folder" in run_import("taming-vqgan", tmp_path, "--out", "part", code=1)
    torch.save({"epoch": 3, "note\x1b[2J": "x"}, "empty.pt")
    torch.save([1, 2], "list.pt")
    for name, found in (("empty.pt", "the keys epoch, note\\u001b[2J"), ("list.pt", "a list")):
        message = run_import("taming-vqgan", name, "--out", "part", code=1)
        assert message == (
            f"expected a dictionary of tensors, got {name}, which has none but {found}; give a file of weights"
        )
    assert not (tmp_path / "part").exists()


def test_transformer_is_trained_on_an_imported_part_and_sampled_from(untrained, tmp_path, run_import):
    home = untrained.copy(tmp_path / "home")
    torch.save({"hparams": {"image_size": 16}, "weights": DISCRETE_VAE}, "vae.pt")
    run_import("dalle-pytorch-vae", "vae.pt", "--out", home.folder / "model")
    config = yaml.safe_load((home.folder / "transformer.yaml").read_text())
    config["run"]["steps"] = 1
    (home.folder / "transformer.yaml").write_text(yaml.safe_dump(config))
    for stage in ("text_tokenizer", "encode", "transformer"):
        home.run(stage)
    model = DalleMini.from_pretrained(home.folder / "model", "cpu")
    result = model.generate("a red disc", candidates=2, keep=1)
    assert result[0].image.size == (16, 16)
    assert result[0].image_ids.shape == (2, 2)
    assert model.image_tokenizer.codebook_size == 61
