"""`dalle import mindalle` and `rudalle`: whole models sample the pictures of the originals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import foreign_mindalle, foreign_rudalle
from helpers.foreign_mindalle import mindalle_logits, mindalle_shapes
from helpers.foreign_rudalle import rudalle_logits, write_rudalle_file
from helpers.foreign_tensors import greedy_ids, random_gpt_tensors, random_tensors
from helpers.foreign_vqgan import vqgan_decode, vqgan_shapes
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.parts import read_part

pytest.importorskip("tokenizers")

TOKENS = ["[UNK]", *"acedrt", *(f"{char}</w>" for char in "acedrt"), "ca", "cat</w>", "re", "red</w>", "[PAD]"]
VOCAB = {token: token_id for token_id, token in enumerate(TOKENS)}
PAD = VOCAB["[PAD]"]
MERGES = "#version: 0.2\nc a\nca t</w>\nr e\nre d</w>\n"
BPE_MODEL = "6 1\n9601 4\n97 5\n99 6\n116 7\n114 8\n101 9\n6 5 10\n1 0 2 3\n"
"""YouTokenToMe: ▁ a c t r e and the rule c+a; unknown 1, padding 0, BOS 2, EOS 3."""
RED_CAT = [2, 4, 8, 9, 1, 4, 10, 7, 3]
"""Ids of "red cat" with `BPE_MODEL`."""
RUDALLE = ("import", "rudalle", "model.bin", "--heads", foreign_rudalle.HEADS)
ALL_OF_RUDALLE = (*RUDALLE, "--vae", "vae.ckpt", "--text-tokenizer", "bpe.model")


def vqgan(gumbel=False):
    """Tensors of a VQGAN with 23 ids, one for each 2 × 2 pixels."""
    embed_dim = 11 if gumbel else 7
    shapes = vqgan_shapes(32, (1, 1), (1,), z_channels=11, embed_dim=embed_dim, n_ids=23, blocks=1, gumbel=gumbel)
    return random_tensors(shapes)


@pytest.fixture
def mindalle_tensors(tmp_path):
    """Writes the folder `min` of a small minDALL-E; the tensors of its transformer."""
    (tmp_path / "min/tokenizer").mkdir(parents=True)
    tensors = random_gpt_tensors(mindalle_shapes(**foreign_mindalle.SMALL))
    hparams = {"embed_dim": 22, "n_heads": foreign_mindalle.HEADS, "gelu_use_approx": False}
    (tmp_path / "min/config.yaml").write_text(yaml.safe_dump({"stage2": {"hparams": hparams}}))
    (tmp_path / "min/tokenizer/bpe-16k-vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "min/tokenizer/bpe-16k-merges.txt").write_text(MERGES)
    torch.save({"state_dict": vqgan()}, tmp_path / "min/stage1_last.ckpt")
    torch.save({"state_dict": tensors}, tmp_path / "min/stage2_last.ckpt")
    return tensors


@pytest.fixture
def rudalle_tensors_and_masks(tmp_path):
    """Writes the files of a small ruDALL-E v2; tensors and masks of its transformer."""
    (tmp_path / "bpe.model").write_text(BPE_MODEL)
    torch.save({"state_dict": {**vqgan(gumbel=True), "loss.weight": torch.zeros(2)}}, tmp_path / "vae.ckpt")
    return write_rudalle_file(tmp_path / "model.bin", 2, text_length=11, text_ids=51)


def same_pixels(image, decoded):
    """Whether a picture is what a reference decodes, (1, 3, H, W) in [-1, 1], up to rounding."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return (pixels - (decoded[0].clamp(-1, 1) + 1) * 127.5).abs().max() < 1


def test_imported_mindalle_samples_the_picture_of_the_reference(run, mindalle_tensors):
    printed = run("import", "mindalle", "min", "--out", "model")
    assert "23 ids, 3×3 for 6×6 pixels" in printed
    model = DalleMini.from_pretrained("model", device="cpu")
    assert (model.sampling.top_k, model.sampling.guidance) == (23, 1)  # at most the number of image ids
    assert model.encode("Red Cat!") == [VOCAB["red</w>"], VOCAB["cat</w>"], VOCAB["[UNK]"]]

    caption = torch.tensor([VOCAB["red</w>"], VOCAB["cat</w>"], PAD, PAD, PAD])

    def logits_after(ids):
        layers, heads = foreign_mindalle.SMALL["layers"], foreign_mindalle.HEADS
        return mindalle_logits(mindalle_tensors, layers, heads, caption, ids)[1]

    ids = greedy_ids(logits_after, 9).view(1, 3, 3)
    result = model.generate("red cat", candidates=1, keep=1, temperature=0, top_k=0)
    assert torch.equal(torch.as_tensor(result[0].image_ids), ids[0])
    tensors = vqgan()
    z = tensors["quantize.embedding.weight"][ids].movedim(-1, 1)
    assert same_pixels(result[0].image, vqgan_decode(tensors, z, 2, 1))


def test_imported_rudalle_samples_the_picture_of_the_reference(run, rudalle_tensors_and_masks):
    printed = run(*ALL_OF_RUDALLE, "--out", "model")
    assert "23 ids, 7×7 for 14×14 pixels" in printed
    model = DalleMini.from_pretrained("model", device="cpu")
    assert (model.sampling.top_k, model.sampling.top_p, model.sampling.guidance) == (23, 0.995, 1)
    assert model.encode(" REd  CAT") == RED_CAT

    tensors, masks = rudalle_tensors_and_masks
    text = torch.tensor([*RED_CAT, 0, 0])

    def logits_after(ids):
        return rudalle_logits(tensors, masks, 4, foreign_rudalle.HEADS, 2, text, ids)[:, 51:]

    ids = greedy_ids(logits_after, 49).view(1, 7, 7)
    result = model.generate("red cat", candidates=1, keep=1, temperature=0, top_k=0, top_p=1.0)
    assert torch.equal(torch.as_tensor(result[0].image_ids), ids[0])
    tensors = vqgan(gumbel=True)
    z = tensors["quantize.embed.weight"][ids].movedim(-1, 1)
    assert same_pixels(result[0].image, vqgan_decode(tensors, z, 2, 1))


@pytest.mark.parametrize(
    ("fixture", "arguments", "in_info"),
    [
        ("mindalle_tensors", ("import", "mindalle", "min"), "CC-BY-NC-SA-4.0"),
        ("rudalle_tensors_and_masks", ALL_OF_RUDALLE, "ru"),
    ],
    ids=["mindalle", "rudalle"],
)
def test_imported_models_sample_complete_and_rerank(run, fixture, arguments, in_info, request):
    request.getfixturevalue(fixture)
    run(*arguments, "--out", "model")
    assert Path("model/MODEL_CARD.md").read_text().startswith("# ")
    model = DalleMini.from_pretrained("model", device="cpu")
    result = model.generate("red cat", candidates=5, keep=3, top_k=11)
    likelihoods = [
        float(model.log_likelihood("red cat", torch.as_tensor(candidate.image_ids)[None]).sum()) for candidate in result
    ]
    assert likelihoods == sorted(likelihoods, reverse=True)
    guided = model.generate("red cat", candidates=5, keep=5, guidance=3.0)
    assert len({tuple(torch.as_tensor(candidate.image_ids).flatten().tolist()) for candidate in guided}) > 1
    run("sample", "red cat", "--model", "model", "--candidates", 3, "--keep", 2, "--out", "grid.png")
    result[0].image.save("one.png")
    options = ("--model", "model", "--keep-rows", 1, "--candidates", 2, "--keep", 1, "--out", "done.png")
    run("complete", "one.png", "red cat", *options)
    assert Image.open("done.png").size[0] >= result[0].image.size[0]
    assert in_info in run("info", "model")


def test_another_transformer_of_mindalle_is_imported_with_the_files_beside_it(run, mindalle_tensors):
    trained_further = {name: value + 0.1 for name, value in mindalle_tensors.items()}
    torch.save({"state_dict": trained_further}, "min/further.ckpt")
    run("import", "mindalle", "min/further.ckpt", "--out", "further")
    weights = read_part(Path("further"), "transformer").tensors["blocks.0.mlp.up.weight"]
    assert torch.equal(weights, mindalle_tensors["blocks.0.mlp.0.weight"] + 0.1)


def test_parts_can_be_imported_one_by_one(run, rudalle_tensors_and_masks):
    message = run(*RUDALLE, "--out", "model", code=1)
    assert message.startswith("expected an image tokenizer in model, got none; give --vae")
    run("import", "taming-vqgan", "vae.ckpt", "--image-size", 14, "--out", "model")
    assert "warning: model has no text tokenizer, so it cannot read captions" in run(*RUDALLE, "--out", "model")
    run("import", "text-tokenizer", "bpe.model", "--lowercase", "--bos", "--eos", "--out", "model")
    run(*ALL_OF_RUDALLE, "--out", "at-once")
    results = [
        DalleMini.from_pretrained(folder, device="cpu").generate("red cat", candidates=1, keep=1)
        for folder in ("model", "at-once")
    ]
    assert results[0][0].image.tobytes() == results[1][0].image.tobytes()


def test_parts_that_do_not_belong_together_are_refused(run, rudalle_tensors_and_masks, mindalle_tensors, tmp_path):
    # Nothing distinguishes minDALL-E's VQGAN from the right one, because it has as many ids
    printed = run(*RUDALLE, "--vae", "min/stage1_last.ckpt", "--out", "model")
    assert "model has no text tokenizer" in printed
    run("import", "taming-vqgan", "vae.ckpt", "--image-size", 12, "--out", "small")
    assert run(*RUDALLE, "--out", "small", code=1) == (
        "expected an image tokenizer with the transformer's 23 ids on a grid of (7, 7), got 23 on (6, 6); "
        "use the one it was trained with"
    )
    more_tokens = {f"x{number}": len(VOCAB) + number for number in range(12)}
    Path("min/tokenizer/bpe-16k-vocab.json").write_text(json.dumps({**VOCAB, **more_tokens}))
    assert run("import", "mindalle", "min", "--out", "other", code=1) == (
        "expected a text tokenizer with at most the transformer's 29 ids, got 30; use the one it was trained with"
    )
    assert not (tmp_path / "other").exists()


def test_existing_parts_are_not_replaced(run, mindalle_tensors, tmp_path):
    Path("bpe.model").write_text(BPE_MODEL)
    run("import", "text-tokenizer", "bpe.model", "--out", "mixed")
    assert "use another model_dir or the same tokenizer" in run("import", "mindalle", "min", "--out", "mixed", code=1)
    assert [path.name for path in (tmp_path / "mixed").iterdir()] == ["text_tokenizer.json"]
    run("import", "mindalle", "min", "--out", "model")
    message = run("import", "mindalle", "min", "--out", "model", code=1)
    assert message.startswith("expected a folder without image_tokenizer.safetensors, got model/image_tokenizer.safe")
    message = run(*RUDALLE, "--out", "model", code=1)
    assert message.startswith("expected a folder without transformer.safetensors, got model/transformer.safetensors;")


def test_vqgan_that_decodes_to_wavelets_is_refused(run, rudalle_tensors_and_masks, tmp_path):
    tensors = {
        f"model.{name}".replace("model.decoder.", "model.decoder.decoder."): value
        for name, value in vqgan(gumbel=True).items()
    }
    torch.save({"state_dict": {**tensors, "model.decoder.idwt.g0_col": torch.zeros(1)}}, "dwt.ckpt")
    assert run(*RUDALLE, "--vae", "dwt.ckpt", "--out", "model", code=1) == (
        "expected a VQGAN that decodes to pixels, got dwt.ckpt, ruDALL-E's VQGAN that decodes to wavelets (dwt); "
        "give the other one, vqgan.gumbelf8-sber.model.ckpt"
    )
    assert not (tmp_path / "model").exists()


def test_files_with_more_than_tensors_need_trust(run, mindalle_tensors):
    torch.save({"state_dict": mindalle_tensors, "callbacks": {Exception: 3}}, "min/stage2_last.ckpt")
    assert "--trust-pickle" in run("import", "mindalle", "min", "--out", "model", code=1)
    run("import", "mindalle", "min", "--out", "model", "--trust-pickle")
    assert DalleMini.from_pretrained("model", device="cpu").stream.config.pad_id == PAD


def test_missing_files_are_named(run, mindalle_tensors, tmp_path):
    arguments = ("import", "mindalle", "min", "--out", "model")
    (tmp_path / "min/stage1_last.ckpt").unlink()
    assert "got min/stage1_last.ckpt, which does not exist" in run(*arguments, code=1)
    (tmp_path / "min/tokenizer/bpe-16k-merges.txt").unlink()
    assert "got min/tokenizer/bpe-16k-merges.txt: No such file" in run(*arguments, code=1)
    message = run("import", "mindalle", "nowhere", "--out", "model", code=1)
    assert message.startswith(
        "cannot read minDALL-E's settings nowhere/config.yaml: No such file or directory; name the"
    )
