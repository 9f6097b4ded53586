"""Training on pictures of one's own beside the former commands: what both get, what is measured, the sheet."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from helpers.training import draw_shape
from PIL import Image

from dalle_mini_impl.bench import own, readme_commands
from dalle_mini_impl.bench.own import OwnSettings, choose_captions, cropped_share, own_rows, sheet
from dalle_mini_impl.config.yaml_io import load
from dalle_mini_impl.evaluate.judges import pixel_judge
from dalle_mini_impl.evaluate.reference_pictures import open_reference_pictures
from dalle_mini_impl.train.stages import STAGES
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import open_picture

COLOURS = {"red": (230, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "black": (20, 20, 20)}


@pytest.fixture
def pictures(tmp_path):
    """32 drawings of 16 captions, two wide ones whose sides are cut off by cropping."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(32):
        shape, colour = ("disc", "ring", "bar", "cross")[number % 4], list(COLOURS)[number // 4 % 4]
        image = draw_shape(shape, COLOURS[colour])
        if number < 2:
            wide = Image.new("RGBA", (150, 48))
            wide.paste(image, (0, 0))
            wide.paste(image, (102, 0))
            image = wide
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a {colour} {shape}")
    return folder


@pytest.fixture
def trained(monkeypatch, tiny_model):
    """Stand-ins for both trainings and the judge; the list gets what was run."""
    calls = []

    def run(arguments, log):
        calls.append(arguments)
        if arguments[1] == "all":
            out = log.parent / "new"
            shutil.copytree(tiny_model, out / "model")
            (out / "configs").mkdir()
            (out / "configs/image_tokenizer.yaml").write_text("data: {fit: pad}")

    def run_former(source, validation, folder, steps):
        calls.append([str(source), validation, steps])
        shutil.copytree(tiny_model, folder / "model")

    monkeypatch.setattr(own, "run_command", run)
    monkeypatch.setattr(own, "run_commands", run_former)
    monkeypatch.setattr(own, "efficientnet_judge", pixel_judge)
    return calls


def test_former_commands_have_their_settings(tmp_path):
    whole = readme_commands.configs(tmp_path / "pictures", 0.1, tmp_path)
    assert list(whole) == [name for name, stage in STAGES.items() if stage.in_all_presets]
    for stage, settings in whole.items():
        (tmp_path / "config.yaml").write_text(json.dumps(settings))
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == settings
        config = load(STAGES[stage].config, tmp_path / "config.yaml")
        if hasattr(config, "augment"):
            assert (config.augment.background, config.augment.keep_inside) == (0.25, False)
        if hasattr(config, "data"):
            assert (config.data.fit, config.data.validation) == ("crop", 0.1)
        if stage == "transformer":
            assert (config.sampling.rank, config.sampling.temperature, config.sampling.guidance) == ("likelihood", 1, 3)
    assert [whole[stage]["run"]["steps"] for stage in ("image-tokenizer", "transformer", "scorer")] == [800, 800, 200]
    assert readme_commands.configs(tmp_path, 0.1, tmp_path, 3)["scorer"]["run"]["steps"] == 3


def test_failed_command_is_told_with_its_last_lines(tmp_path):
    with pytest.raises(UserError, match=r"train nothing.*exit code 2: .*; see .*x\.log"):
        readme_commands.run_command(["train", "nothing"], tmp_path / "x.log")


def test_both_ways_are_trained_on_the_same_pictures_and_measured(pictures, trained, tmp_path, monkeypatch):
    settings = OwnSettings(
        source=str(pictures), minutes=2, validation=0.3, former_steps=5, captions=3, candidates=3, prompts=2, shown=2
    )
    rows = {row.name: row for row in own_rows(settings, tmp_path / "out")}
    everything, former = trained
    assert everything[:3] == ["train", "all", str(pictures)]
    assert {"2", "data.validation=0.3"} <= set(everything)
    assert former == [str(pictures), 0.3, 5]
    assert rows["own/cropped"].ours == 0
    assert rows["own/cropped"].theirs == 2 / 32
    for kind in ("seen", "held-out"):
        for k in (1, 5):
            row = rows[f"own/{kind}/top-{k}"]
            assert row.ours == row.theirs  # the same model
            assert 0 <= row.details["new"]["low"] <= row.ours <= row.details["new"]["high"] <= 1
    assert rows["own/minutes"].ours > 0
    picture = open_picture(tmp_path / "out/own.png")
    assert picture.width >= 4 * own.SHEET_SIDE
    assert picture.height >= 2 * own.SHEET_SIDE
    again = {row.name: row.ours for row in own_rows(settings, tmp_path / "out")}
    assert again == {name: row.ours for name, row in rows.items()}
    assert len(trained) == 2  # what is done is not done again
    with pytest.raises(UserError, match="with others"):
        next(own_rows(OwnSettings(source=str(pictures)), tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt"):
        next(own_rows(settings, tmp_path / "mine"))


def test_new_way_can_be_measured_alone(pictures, trained, tmp_path):
    settings = OwnSettings(source=str(pictures), former=False, captions=1, candidates=1, prompts=1, shown=1)
    rows = list(own_rows(settings, tmp_path / "out"))
    assert [calls[:2] for calls in trained] == [["train", "all"]]
    assert {row.name: row.peer for row in rows}.items() >= {"own/seen/top-1": "", "own/minutes": ""}.items()
    assert all(math.isnan(row.theirs) for row in rows)
    assert open_picture(tmp_path / "out/own.png").height < 2 * own.SHEET_SIDE


def test_training_that_was_broken_off_begins_anew(pictures, trained, tmp_path, monkeypatch):
    settings = OwnSettings(source=str(pictures), captions=1, candidates=1, prompts=1, shown=1)
    (tmp_path / "out/former").mkdir(parents=True)
    (tmp_path / "out/own.json").write_text(json.dumps({"settings": own.asdict(settings), "seconds": {}}))
    (tmp_path / "out/former/left").write_text("x")
    list(own_rows(settings, tmp_path / "out"))
    assert not (tmp_path / "out/former/left").exists()


def test_captions_of_training_pictures_are_not_held_out(pictures, tmp_path):
    own.build_store(own._reference_config(pictures, OwnSettings(validation=0.3), tmp_path))
    reference = open_reference_pictures(tmp_path / "reference", 16)
    kinds = {kind: choose_captions(reference, kind, 99) for kind in own.KINDS}
    texts = {kind: {caption.text for caption in captions} for kind, captions in kinds.items()}
    assert texts["seen"]
    assert texts["held-out"]
    assert not texts["seen"] & texts["held-out"]
    splits = {kind: {reference.store.entries[c.index].split for c in captions} for kind, captions in kinds.items()}
    assert splits == {"seen": {"train"}, "held-out": {"validation"}}
    assert choose_captions(reference, "seen", 2) == kinds["seen"][:2]


def test_share_of_cropped_pictures(pictures):
    assert cropped_share(pictures, "crop") == 2 / 32
    assert cropped_share(pictures, "auto") == 0


def test_sheet_has_both_ways_beside_each_other():
    drawn = {
        name: own.Drawn({}, [[Image.new("RGB", (8, 8), colour)] * 2] * 3)
        for name, colour in (("new", "red"), ("former", "blue"))
    }
    pixels = np.asarray(sheet(["a", "b", "c"], drawn)).reshape(-1, 3)
    counts = [int((pixels == colour).all(1).sum()) for colour in ((255, 0, 0), (0, 0, 255))]
    assert counts == [6 * own.SHEET_SIDE**2] * 2


def test_command_compares_own_pictures_only_when_asked(pictures, trained, tmp_path, run, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    run("bench", "--quick", "--only", "own", "--own-source", pictures, "--own-out", tmp_path / "out",
        "--json", tmp_path / "rows.json")  # fmt: skip
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["name"] for row in rows} >= {"own/seen/top-1", "own/minutes", "own/cropped"}
    assert "--minutes" in trained[0]
    assert trained[0][trained[0].index("--minutes") + 1] == "0.1"
