"""`dalle data scenes` writes a set that the readers read."""

import json

import pytest
from click.testing import CliRunner
from helpers.emoji import make_emoji_set
from PIL import Image

from dalle_mini_impl.cli.data import data
from dalle_mini_impl.config.scenes import LANGUAGES
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs


@pytest.fixture(scope="module")
def emoji_set(tmp_path_factory):
    return make_emoji_set(tmp_path_factory.mktemp("set"))


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_scenes_are_written_with_captions_and_truth(tmp_path, emoji_set):
    for name in ("a", "b"):
        arguments = [str(emoji_set), "--out", str(tmp_path / name), "--count", "30", "--size", "32"]
        result = CliRunner().invoke(data, ["scenes", *arguments])
        assert result.exit_code == 0, result.output
    assert written(tmp_path / "a") == written(tmp_path / "b")
    log = SkipLog()
    pairs = list(read_pairs(tmp_path / "a" / "metadata.jsonl", log))
    assert not log.entries
    assert len(pairs) == 30
    assert {pair.captions[0].language for pair in pairs} == set(LANGUAGES)
    assert {pair.image.size for pair in pairs} == {(32, 32)}
    assert all(pair.details["plan"]["objects"] for pair in pairs)
    manifest = json.loads((tmp_path / "a" / "scenes.json").read_text())
    assert manifest["synthetic"] is True
    assert sum(manifest["counts"]["tasks"].values()) == 30
    assert manifest["credits"]["twemoji"]["licence"] == "CC-BY-4.0"


def test_options_choose_tasks_language_and_held_out_combinations(tmp_path, emoji_set):
    arguments = ["--task", "colour", "--languages", "de", "--held-out", "--count", "5", "--size", "16"]
    result = CliRunner().invoke(data, ["scenes", str(emoji_set), "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out" / "scenes.json").read_text())
    assert manifest["counts"]["tasks"] == {"colour": 5}
    assert manifest["counts"]["languages"] == {"de": 5}
    assert manifest["split"] == "held_out"


def test_pictures_of_another_set_are_refused(tmp_path, refused):
    (tmp_path / "mine").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 9, 9)).save(tmp_path / "mine" / f"{number}.png")
        (tmp_path / "mine" / f"{number}.txt").write_text(f"picture {number}")
    message = refused("data", "scenes", tmp_path / "mine", "--out", tmp_path / "out")
    assert "got pictures of which none can stand in a scene" in message
    assert not (tmp_path / "out").exists()


def test_single_objects_are_never_held_out(tmp_path, emoji_set, refused):
    arguments = ("--held-out", "--task", "single", "--out", tmp_path / "out")
    assert "name another task" in refused("data", "scenes", emoji_set, *arguments)


def test_folder_of_something_else_is_not_replaced(tmp_path, emoji_set, refused):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "name another folder" in refused("data", "scenes", emoji_set, "--out", tmp_path)
