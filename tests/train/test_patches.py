"""A transformer over patches of image ids, trained and used through everything that draws, completes and describes."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.training import BatchMaker
from PIL import Image

from dalle_mini_impl import DalleMini
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.model.build import load_transformer
from dalle_mini_impl.model.patches import PatchTransformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.util.errors import UserError

SIZE = ("data.store_size=32",)
PICTURES = (*SIZE, "model.image_size=32", "run.steps=2", "run.validate_every=2", "run.sample_every=2")
SHAPE = ("model.patch=2", "model.n_embd=64", "model.tied_head=true")
PATCHES = (*SHAPE, "run.steps=4", "run.validate_every=2", "run.sample_every=2")


@pytest.fixture(scope="module")
def home(untrained, tmp_path_factory):
    """All five stages with 4 × 4 ids per picture in 2 × 2 patches."""
    home = untrained.copy(tmp_path_factory.mktemp("patches") / "home", "store")
    home.run("text_tokenizer", *SIZE)
    home.run("image_tokenizer", *PICTURES)
    home.run("encode", *SIZE, "soft_ids=3")
    home.run("transformer", *PATCHES)
    home.run("scorer", *SIZE, "model.image_size=32", "run.steps=2", "run.validate_every=2")
    return home


@pytest.fixture(scope="module")
def model(home):
    return DalleMini.from_pretrained(home.folder / "model", "cpu")


def test_the_part_says_how_large_patches_are(home, model):
    part = read_part(home.folder / "model", "transformer").config
    assert part["stream"]["patch"] == part["transformer"]["patch"] == 2
    assert part["transformer"]["tied_head"]
    exact = DalleMini.from_pretrained(home.folder / "model", "cpu", precision="fp32")
    assert isinstance(exact.transformer, PatchTransformer)


def test_soft_targets_and_another_start_train_too(home, tmp_path):
    soft = home.copy(tmp_path / "soft")
    soft.run("transformer", *PATCHES, "image_targets=soft")
    assert all(line["image"] < 4 for line in soft.log("transformer") if "image" in line)
    later = home.copy(tmp_path / "later")
    start = f"start_from={home.folder / 'model'}"
    later.run("transformer", start, "run.steps=2", *SHAPE)
    assert read_part(later.folder / "model", "transformer").config["stream"]["patch"] == 2
    with pytest.raises(UserError, match=r"expected model\.patch 2 as in the transformer of start_from"):
        later.run("transformer", start, "run.steps=2", "model.n_embd=64", "model.patch=1")


@pytest.mark.parametrize("tied", ["true", "false"])
def test_patches_start_from_a_transformer_without(trained, tmp_path, tied, capsys):
    home = trained.copy(tmp_path / "home", "transformer")
    old = load_transformer(trained.folder / "model")[0]
    still = ("optimizer.learning_rate=0", "optimizer.muon_learning_rate=0", "run.steps=2", "run.sample_every=0")
    start = (f"start_from={trained.folder / 'model'}", "model.patch=2", f"model.tied_head={tied}")
    home.run("transformer", *still, *start)
    assert "text_length" not in capsys.readouterr().out  # which is that of the old one
    new, config = load_transformer(home.folder / "model")
    assert isinstance(new, PatchTransformer)
    assert torch.equal(new.embed.weight, old.embed.weight)
    assert tied == "true" or torch.equal(new.head.weight, old.head.weight)
    stream = Stream(config)
    prefix = stream.prefix([[5, 6, 7]])
    white = torch.full((1, stream.patch_length), stream.image_offset + 3)
    with torch.inference_mode():
        # What the text gives is as before, and a patch of four equal ids is seen as one of them was.
        assert torch.allclose(new(prefix)[:, :-1], old(prefix)[:, :-1], atol=1e-5)
        seen = new.merge(new.embed(white).flatten(-2))
        assert torch.allclose(seen, old.embed(white[:, 0]), atol=1e-5)
        # The first id of a patch is predicted from what predicted the only one; its position is all that is added.
        assert float(torch.cosine_similarity(new(prefix)[:, -1], old(prefix)[:, -1])) > 0.99


def test_whole_patches_are_hidden(home):
    settings = (*SHAPE, "id_corruption=0", "caption_dropout=0", "bpe_dropout=0")
    inputs, clean = (BatchMaker(home, *settings, f"id_dropout={share}").make()[0] for share in (1, 0))
    gone = (inputs != clean)[:, -15:]  # of the last patch only three ids are inputs
    patches = torch.nn.functional.pad(gone, (0, 1), value=False)
    patches[:, -1] = gone[:, -1]
    assert bool((patches.unflatten(1, (4, 4)).float().mean(2) % 1 == 0).all())
    assert 0 < float(gone.float().mean()) < 1


def test_pictures_are_drawn_completed_tiled_and_previewed(model):
    result = model.generate("a red disc", candidates=4, keep=4, seed=0)
    assert [image.image.size for image in result] == [(32, 32)] * 4
    again = model.generate("a red disc", keep=1, seeds=[result[2].seed])
    assert torch.equal(again[0].image_ids, result[2].image_ids)
    assert model.log_likelihood("a red disc", again[0].image_ids[None]).shape == (1, 16)
    completed = model.complete(Image.new("RGB", (32, 32), "red"), "a red disc", candidates=2, keep=2, rows=2)
    assert torch.equal(completed[0].image_ids[:2], completed[1].image_ids[:2])
    assert len(model.generate("a red disc", candidates=2, keep=2, tile=True)) == 2
    previews = list(model.stream_previews("a red disc", candidates=2, keep=2, show=1, share=1.0))
    assert previews[-1].images[0].size == (32, 32)
    assert len({np.asarray(preview.images[0]).tobytes() for preview in previews}) > 1


def test_the_command_line_draws_and_describes_it(home, tmp_path):
    folder = str(home.folder / "model")
    out, picture = str(tmp_path / "grid.png"), str(tmp_path / "disc.png")
    Image.new("RGB", (40, 32), "red").save(picture)
    sampling = ["--model", folder, "--candidates", "8", "--keep", "1", "--out", out]
    for arguments in (
        ["sample", "a red disc", *sampling],
        ["sample", "a red disc", *sampling, "--prune", "--tile", "--precision", "int8", "--chunk", "3"],
        ["sample", "--from", out, "--model", folder, "--out", str(tmp_path / "again.png")],
        ["complete", picture, "a red disc", *sampling, "--box", "25%,50%,75%,100%", "--prune", "--preview", out],
        ["complete", picture, "a red disc", *sampling, "--variations", "--tile"],
        ["caption", picture, "--labels", "a red disc,a blue box", "--blind", "--model", folder],
        ["info", folder],
        ["write", "a red", "--model", folder],
        ["plan", str(home.folder / "transformer.yaml"), "model.patch=2", "--grid", "4"],
    ):
        result = CliRunner().invoke(dalle, arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("rows", "later"), [(1, "; 2 kept cells come after the first redrawn one"), (2, "")])
def test_kept_cells_that_come_later_are_counted_in_patches(home, tmp_path, rows, later):
    picture = tmp_path / "disc.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    options = ["--model", str(home.folder / "model"), "--candidates", "1", "--out", str(tmp_path / "grid.png")]
    result = CliRunner().invoke(dalle, ["complete", str(picture), "--keep-rows", str(rows), *options])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stderr.splitlines() if line.startswith("redrawing"))
    assert line.startswith(f"redrawing {16 - 4 * rows} of 16 cells{later}")
    assert bool(later) == ("kept cells" in line)
