"""Pictures that are not square, through all stages and everything that uses the model: 24×40 pixels, 3×5 ids."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.training import STAGES, config_of
from PIL import Image

from dalle_mini_impl import DalleMini, UserError
from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.painting.painter import Painter, PaintSettings
from dalle_mini_impl.painting.targets import parse_targets
from dalle_mini_impl.train import scorer as scorer_stage
from dalle_mini_impl.train.shared.scene_rows import SceneRows

HEIGHT, WIDTH = 24, 40
SHORT = ("run.steps=2", "run.validate_every=2", "run.sample_every=2")
STORE = ("data.store_size=0", f"data.store_height={2 * HEIGHT}", f"data.store_width={2 * WIDTH}")
SETTINGS = {
    "text_tokenizer": STORE,
    "image_tokenizer": (*STORE, "model.image_size=0", f"model.height={HEIGHT}", f"model.width={WIDTH}", *SHORT),
    "encode": STORE,
    "transformer": ("model.attention_masks=[row, column, conv]", "model.mask_kernel=3", "model.n_layer=3", *SHORT),
    "scorer": (*STORE, *SHORT),
}


@pytest.fixture(scope="module")
def wide(untrained, tmp_path_factory):
    """All five stages, trained on wide pictures."""
    home = untrained.copy(tmp_path_factory.mktemp("wide") / "home", "store")
    for number, path in enumerate(sorted((home.folder / "pictures").glob("*.png"))):
        with Image.open(path) as image:  # wide, tall and square ones
            image.resize(((96, 48), (30, 60), (48, 48))[number % 3]).save(path)
    for stage in STAGES:
        home.run(stage, *SETTINGS[stage])
    return home


@pytest.fixture
def model(wide):
    return DalleMini.from_pretrained(wide.folder / "model", "cpu")


def test_every_stage_keeps_the_proportions(wide):
    store = open_store(config_of(wide, "encode", *STORE).data, "train")
    assert store.pixels.shape[1:] == (2 * HEIGHT, 2 * WIDTH, 4)
    assert json.loads((wide.folder / "ids" / "cache.json").read_text())["grid"] == [3, 5]
    assert np.load(wide.folder / "ids" / "train" / "image_ids.npy").shape[2:] == (3, 5)
    assert read_part(wide.folder / "model", "transformer").config["stream"]["grid"] == [3, 5]
    assert read_part(wide.folder / "model", "scorer").config["fit"] == "squash"
    sheet = Image.open(next((wide.folder / "image_tokenizer").glob("samples-*.png")))
    assert sheet.width == 4 + 16 * (WIDTH + 4)
    assert (sheet.height - 4) % (HEIGHT + 4) == 0


def test_validation_pictures_are_encoded_as_they_are_stored(wide, model):
    store = open_store(config_of(wide, "encode", *STORE).data, "validation")
    ids = model.image_tokenizer.encode(pixels_on_white(store.take(np.arange(len(store))), (HEIGHT, WIDTH)))
    assert (ids.numpy() == np.load(wide.folder / "ids" / "validation" / "image_ids.npy")[:, 0]).all()


def test_pictures_are_sampled_ranked_and_shown(model, tmp_path):
    result = model.generate("a red disc", candidates=5, keep=3, seed=1, rank="both")
    assert [one.image.size for one in result] == [(WIDTH, HEIGHT)] * 3
    assert all(one.image_ids.shape == (3, 5) for one in result)
    assert result.grid(columns=3).size == (3 * (WIDTH + 4) + 4, HEIGHT + 8)
    again = model.generate("a red disc", candidates=5, keep=3, seed=1, rank="both")
    assert [one.image.tobytes() for one in again] == [one.image.tobytes() for one in result]
    likelihood = model.log_likelihood("a red disc", result[0].image_ids[None])
    assert likelihood.shape == (1, 15)


def test_the_scorer_sees_all_of_a_picture(model):
    pixels = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    changed = pixels.clone()
    changed[:, :, :, :3] *= -1  # a part that the middle square does not hold
    before, after = (model.scorer.embed_pixels(one) for one in (pixels, changed))
    assert not torch.allclose(before, after, atol=1e-4)


def test_pictures_are_completed_varied_and_tiled(model):
    picture = Image.new("RGB", (100, 60), (200, 30, 40))
    completed = model.complete(picture, "a red disc", rows=1, candidates=2, keep=1, seed=3)
    assert completed[0].image.size == (WIDTH, HEIGHT)
    known = model.image_tokenizer.encode(
        torch.from_numpy(np.asarray(completed.source)).permute(2, 0, 1)[None] / 127.5 - 1
    )
    assert torch.equal(completed[0].image_ids[0], known[0, 0])
    box = model.complete(picture, "a red disc", box=(0, 0, 20, 60), candidates=1, seed=3)
    assert box[0].image.size == (WIDTH, HEIGHT)
    varied = model.variations(picture, "a red disc", strength=0.5, candidates=1, seed=3)
    assert varied[0].image_ids.shape == (3, 5)
    tiled = model.generate("a red disc", candidates=1, seed=4, tile=True)
    assert tiled[0].image.size == (WIDTH, HEIGHT)


def test_painting_starts_in_the_models_size(model):
    painter = Painter(model.image_tokenizer, {"own": model.scorer}, parse_targets("a red disc"), PaintSettings(steps=1))
    assert len(list(painter)) == 1
    assert painter.result().image.size == (WIDTH, HEIGHT)


def test_captions_are_ranked_for_pictures_of_any_proportions(model):
    ranked = model.caption(Image.new("RGB", (70, 50), "red"), ["a red disc", "a blue bar"])
    assert len(ranked) == 2


def test_commands_name_height_and_width(wide, tmp_path):
    info = CliRunner().invoke(dalle, ["info", str(wide.folder / "model")])
    assert "24×40 pixels <-> 3×5 ids" in info.output
    arguments = ["sample", "a red disc", "--model", str(wide.folder / "model"), "-n", "2", "-k", "2", "-o"]
    result = CliRunner().invoke(dalle, [*arguments, str(tmp_path / "grid.png")])
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "grid.png").size == (2 * (WIDTH + 4) + 4, HEIGHT + 8)


@pytest.mark.slow
def test_reconstruction_is_measured(wide, tmp_path):
    arguments = ["evaluate", "image-tokenizer", str(wide.folder / "model"), "--data", str(wide.folder / "store")]
    result = CliRunner().invoke(dalle, [*arguments, "--sheet", str(tmp_path / "s.png"), "--split", "train"])
    assert result.exit_code == 0, result.output
    assert " 40 " in result.output


def test_reconstructed_pictures_of_the_scorer_are_squashed_after_decoding(wide, model, monkeypatch):
    config = config_of(wide, "scorer", *STORE, "reconstructed_share=1")
    store = open_store(config.data, "train")
    sizes = []
    encode = model.image_tokenizer.encode
    monkeypatch.setattr(
        model.image_tokenizer, "encode", lambda pixels: sizes.append(pixels.shape[2:]) or encode(pixels)
    )
    captions = scorer_stage.CaptionSampler(store.entries, {})
    size = model.image_tokenizer.config.size
    batch = scorer_stage.make_batch(store, SceneRows(12), captions, model.text_tokenizer, size, config, 0, slice(0, 5))
    pixels = scorer_stage.reconstruct(batch, model.image_tokenizer)
    assert sizes == [(HEIGHT, WIDTH)]
    assert pixels.shape == (5, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("model.image_size=16", "model.height=24", "model.width=40"),
            "expected model.image_size, or model.height and",
        ),
        (("model.height=24", "model.width=0"), "expected model.image_size, or model.height and model.width, got 0"),
        (
            ("model.height=16", "model.width=32"),
            r"stored pictures have 48×80 pixels .* set data.store_height=32 data.st",
        ),
        (
            ("model.height=16", "model.width=32", "data.store_height=0", "data.store_width=0"),
            "holds pictures of 48×80 pixels, expected at least the 16×32 .* rebuild with `.* --size 64x128 ",
        ),
        (("data.store_height=48", "data.store_width=0"), "expected data.store_size, or data.store_height and"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wide, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        wide.run("image_tokenizer", *SETTINGS["image_tokenizer"], *settings, f"run.model_dir={tmp_path}")


def test_height_and_width_are_multiples_of_the_factor():
    with pytest.raises(UserError, match="expected height and width to be a multiple of factor 8, got 24 and 41"):
        ImageTokenizer(ImageTokenizerConfig(height=24, width=41, channels=(16,)))


def test_equal_height_and_width_are_the_square_short_form():
    assert ImageTokenizerConfig(height=24, width=24) == ImageTokenizerConfig(image_size=24)
    assert ImageTokenizerConfig().size == (64, 64)


def test_export_to_dalle_pytorch_is_refused(wide, tmp_path):
    result = CliRunner().invoke(dalle, ["export", "dalle-pytorch", str(wide.folder / "model"), str(tmp_path / "m.pt")])
    assert result.exit_code != 0
