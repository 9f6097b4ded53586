"""Whole models of other projects, imported by `dalle import` and drawn from like our own."""

import json

import numpy as np
import pytest
import torch
import yaml
from helpers import foreign_image_tokenizers, foreign_transformers
from helpers.foreign_image_tokenizers import random_tensors
from helpers.foreign_transformers import MIN, MIN_HEADS, MIN_LAYERS, RU_HEADS, greedy, random_transformer, rudalle_file
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint import parts as checkpoint

pytest.importorskip("tokenizers")

TOKENS = ["[UNK]", *"acedrt", *(f"{char}</w>" for char in "acedrt"), "ca", "cat</w>", "re", "red</w>", "[PAD]"]
VOCAB = {token: number for number, token in enumerate(TOKENS)}
PAD = VOCAB["[PAD]"]
MERGES = "#version: 0.2\nc a\nca t</w>\nr e\nre d</w>\n"
BPE = "6 1\n9601 4\n97 5\n99 6\n116 7\n114 8\n101 9\n6 5 10\n1 0 2 3\n"
"""YouTokenToMe: ▁ a c t r e and the rule c+a; unknown 1, padding 0, BOS 2, EOS 3."""
RED_CAT = [2, 4, 8, 9, 1, 4, 10, 7, 3]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def vqgan(gumbel=False):
    """A VQGAN of 23 ids, one for each 2 × 2 pixels."""
    sizes = {"z": 11, "embed": 11 if gumbel else 7, "ids": 23, "blocks": 1}
    return random_tensors(foreign_image_tokenizers.vqgan_shapes(32, (1, 1), (1,), gumbel=gumbel, **sizes))


@pytest.fixture
def mindalle(tmp_path):
    """The folder of a small minDALL-E, and the tensors of its transformer."""
    (tmp_path / "min/tokenizer").mkdir(parents=True)
    tensors = random_transformer(foreign_transformers.mindalle_shapes(**MIN))
    hparams = {"embed_dim": 22, "n_heads": MIN_HEADS, "gelu_use_approx": False}
    (tmp_path / "min/config.yaml").write_text(yaml.safe_dump({"stage2": {"hparams": hparams}}))
    (tmp_path / "min/tokenizer/bpe-16k-vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "min/tokenizer/bpe-16k-merges.txt").write_text(MERGES)
    torch.save({"state_dict": vqgan()}, tmp_path / "min/stage1_last.ckpt")
    torch.save({"state_dict": tensors}, tmp_path / "min/stage2_last.ckpt")
    return tensors


@pytest.fixture
def rudalle(tmp_path):
    """The files of a small ruDALL-E, and what the reference takes."""
    (tmp_path / "bpe.model").write_text(BPE)
    torch.save({"state_dict": {**vqgan(gumbel=True), "loss.weight": torch.zeros(2)}}, tmp_path / "vae.ckpt")
    return rudalle_file(tmp_path / "model.bin", 2, length=11, text=51)


RUDALLE = ("import", "rudalle", "model.bin", "--heads", RU_HEADS)


def same_pixels(image, decoded):
    """Whether a picture is what a reference decodes, (1, 3, H, W) in [-1, 1], up to rounding."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return (pixels - (decoded[0].clamp(-1, 1) + 1) * 127.5).abs().max() < 1


def test_an_imported_mindalle_draws_what_the_original_does(run, mindalle):
    printed = run("import", "mindalle", "min", "--out", "model")
    assert "23 ids, 3×3 for 6×6 pixels" in printed
    model = DalleMini.from_pretrained("model", device="cpu")
    assert (model.sampling.top_k, model.sampling.guidance) == (23, 1)  # of the project's 256, as many as there are
    assert model.encode("Red Cat!") == [VOCAB["red</w>"], VOCAB["cat</w>"], VOCAB["[UNK]"]]

    caption = torch.tensor([VOCAB["red</w>"], VOCAB["cat</w>"], PAD, PAD, PAD])
    ids = greedy(
        lambda ids: foreign_transformers.mindalle_logits(mindalle, MIN_LAYERS, MIN_HEADS, caption, ids)[1], 9
    ).view(1, 3, 3)
    result = model.generate("red cat", candidates=1, keep=1, temperature=0, top_k=0)
    assert torch.equal(torch.as_tensor(result[0].image_ids), ids[0])
    tensors = vqgan()
    z = tensors["quantize.embedding.weight"][ids].movedim(-1, 1)
    assert same_pixels(result[0].image, foreign_image_tokenizers.vqgan_decode(tensors, z, 2, 1))


def test_an_imported_rudalle_draws_what_the_original_does(run, rudalle):
    printed = run(*RUDALLE, "--vae", "vae.ckpt", "--text-tokenizer", "bpe.model", "--out", "model")
    assert "23 ids, 7×7 for 14×14 pixels" in printed
    model = DalleMini.from_pretrained("model", device="cpu")
    assert (model.sampling.top_k, model.sampling.top_p, model.sampling.guidance) == (23, 0.995, 1)
    assert model.encode(" REd  CAT") == RED_CAT

    tensors, masks = rudalle
    text = torch.tensor([*RED_CAT, 0, 0])
    ids = greedy(
        lambda ids: foreign_transformers.rudalle_logits(tensors, masks, 4, RU_HEADS, 2, text, ids)[:, 51:], 49
    ).view(1, 7, 7)
    result = model.generate("red cat", candidates=1, keep=1, temperature=0, top_k=0, top_p=1.0)
    assert torch.equal(torch.as_tensor(result[0].image_ids), ids[0])
    tensors = vqgan(gumbel=True)
    z = tensors["quantize.embed.weight"][ids].movedim(-1, 1)
    assert same_pixels(result[0].image, foreign_image_tokenizers.vqgan_decode(tensors, z, 2, 1))


@pytest.mark.parametrize("kind", ["mindalle", "rudalle"])
def test_imported_models_sample_complete_and_rerank(run, kind, request, tmp_path):
    request.getfixturevalue(kind)
    arguments = {
        "mindalle": ("import", "mindalle", "min"),
        "rudalle": (*RUDALLE, "--vae", "vae.ckpt", "--text-tokenizer", "bpe.model"),
    }[kind]
    run(*arguments, "--out", "model")
    assert (tmp_path / "model/MODEL_CARD.md").read_text().startswith("# ")
    model = DalleMini.from_pretrained("model", device="cpu")
    result = model.generate("red cat", candidates=5, keep=3, top_k=11)
    likelihoods = [
        float(model.log_likelihood("red cat", torch.as_tensor(candidate.image_ids)[None]).sum()) for candidate in result
    ]
    assert likelihoods == sorted(likelihoods, reverse=True)
    guided = model.generate("red cat", candidates=5, keep=5, guidance=3.0)
    assert len({tuple(torch.as_tensor(one.image_ids).flatten().tolist()) for one in guided}) > 1
    run("sample", "red cat", "--model", "model", "--candidates", 3, "--keep", 2, "--out", "grid.png")
    result[0].image.save("one.png")
    run(
        "complete",
        "one.png",
        "red cat",
        "--model",
        "model",
        "--keep-rows",
        1,
        "--candidates",
        2,
        "--keep",
        1,
        "--out",
        "done.png",
    )
    assert Image.open("done.png").size[0] >= result[0].image.size[0]
    assert {"mindalle": "CC-BY-NC-SA-4.0", "rudalle": "ru"}[kind] in run("info", "model")


def test_a_mindalle_trained_further_takes_the_files_beside_it(run, mindalle, tmp_path):
    torch.save({"state_dict": {name: value + 0.1 for name, value in mindalle.items()}}, tmp_path / "min/mine.ckpt")
    run("import", "mindalle", "min/mine.ckpt", "--out", "mine")
    weights = checkpoint.read_part(tmp_path / "mine", "transformer").tensors["blocks.0.mlp.up.weight"]
    assert torch.equal(weights, mindalle["blocks.0.mlp.0.weight"] + 0.1)


def test_parts_may_be_imported_one_by_one(run, rudalle, tmp_path):
    assert "has no image tokenizer; give --vae" in run(*RUDALLE, "--out", "model", code=1)
    run("import", "taming-vqgan", "vae.ckpt", "--image-size", 14, "--out", "model")
    assert "model has no text tokenizer yet" in run(*RUDALLE, "--out", "model")
    run("import", "text-tokenizer", "bpe.model", "--lowercase", "--bos", "--eos", "--out", "model")
    one_by_one = DalleMini.from_pretrained("model", device="cpu")
    run(*RUDALLE, "--vae", "vae.ckpt", "--text-tokenizer", "bpe.model", "--out", "at-once")
    at_once = DalleMini.from_pretrained("at-once", device="cpu")
    results = [model.generate("red cat", candidates=1, keep=1) for model in (one_by_one, at_once)]
    assert results[0][0].image.tobytes() == results[1][0].image.tobytes()


def test_parts_that_do_not_belong_together_are_refused(run, rudalle, mindalle, tmp_path):
    message = run(*RUDALLE, "--vae", "min/stage1_last.ckpt", "--out", "model")
    assert "model has no text tokenizer yet" in message  # nothing tells its 23 ids from the right ones
    run("import", "taming-vqgan", "vae.ckpt", "--image-size", 12, "--out", "small")
    message = run(*RUDALLE, "--out", "small", code=1)
    assert "has 23 ids on a grid of (6, 6), the transformer 23 on one of (7, 7)" in message
    tokens = {**VOCAB, **{f"x{number}": len(VOCAB) + number for number in range(12)}}
    (tmp_path / "min/tokenizer/bpe-16k-vocab.json").write_text(json.dumps(tokens))
    message = run("import", "mindalle", "min", "--out", "other", code=1)
    assert "text tokenizer has 30 ids, the transformer 29; use the one it was trained with" in message
    assert not (tmp_path / "other").exists()


def test_parts_that_are_there_are_kept(run, mindalle, tmp_path):
    (tmp_path / "bpe.model").write_text(BPE)
    run("import", "text-tokenizer", "bpe.model", "--out", "mixed")
    assert "use another model_dir or the same tokenizer" in run("import", "mindalle", "min", "--out", "mixed", code=1)
    assert [path.name for path in (tmp_path / "mixed").iterdir()] == ["text_tokenizer.json"]
    run("import", "mindalle", "min", "--out", "model")
    assert "image_tokenizer.safetensors is there already" in run("import", "mindalle", "min", "--out", "model", code=1)
    assert "transformer.safetensors is there already" in run(*RUDALLE, "--out", "model", code=1)


def test_the_decoder_of_wavelets_is_refused(run, rudalle, tmp_path):
    tensors = {
        f"model.{name}".replace("model.decoder.", "model.decoder.decoder."): value
        for name, value in vqgan(gumbel=True).items()
    }
    torch.save({"state_dict": {**tensors, "model.decoder.idwt.g0_col": torch.zeros(1)}}, tmp_path / "dwt.ckpt")
    message = run(*RUDALLE, "--vae", "dwt.ckpt", "--out", "model", code=1)
    assert "dwt.ckpt is ruDALL-E's VQGAN that decodes wavelets (dwt); only the one without" in message
    assert not (tmp_path / "model").exists()


def test_files_that_hold_more_need_trust(run, mindalle):
    torch.save({"state_dict": mindalle, "callbacks": {Exception: 3}}, "min/stage2_last.ckpt")
    assert "--trust-pickle" in run("import", "mindalle", "min", "--out", "model", code=1)
    run("import", "mindalle", "min", "--out", "model", "--trust-pickle")
    assert DalleMini.from_pretrained("model", device="cpu").stream.config.pad_id == PAD


def test_missing_files_are_named(run, mindalle, tmp_path):
    (tmp_path / "min/stage1_last.ckpt").unlink()
    assert "no file min/stage1_last.ckpt" in run("import", "mindalle", "min", "--out", "model", code=1)
    (tmp_path / "min/tokenizer/bpe-16k-merges.txt").unlink()
    assert "bpe-16k-merges.txt" in run("import", "mindalle", "min", "--out", "model", code=1)
    assert "config.yaml is missing" in run("import", "mindalle", "nowhere", "--out", "model", code=1)
