"""`dalle evaluate zero-shot`, with a scorer whose embeddings are directions in the plane."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.scorers import AngleModel, make_scorer
from PIL import Image

from dalle_mini_impl.cli.evaluate import evaluate
from dalle_mini_impl.evaluate.zero_shot import (
    ZeroShotResult,
    accuracy_table,
    confusion_picture,
    find_classes,
    measure_zero_shot,
)
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def invoke(monkeypatch):
    def from_pretrained(name, device):
        assert (name, device) == ("emoji", "cpu")
        return make_scorer(AngleModel())

    monkeypatch.setattr(Scorer, "from_pretrained", from_pretrained)
    return lambda command, *words: CliRunner().invoke(command, [*(str(word) for word in words), "--device", "cpu"])


@pytest.fixture
def folder(tmp_path):
    """Pictures whose embedding is that of label a or b, mostly in that label's folder; c has the embedding of a."""
    for name, reds in {"a": (127, 130, 242), "b_b": (242, 240), "c": (127,), "empty": (), ".hidden": (127,)}.items():
        (tmp_path / "set" / name / "deep").mkdir(parents=True)
        for number, red in enumerate(reds):
            Image.new("RGB", (23, 29), (red, 0, 0)).save(tmp_path / "set" / name / "deep" / f"{number}.png")
    (tmp_path / "set" / "a" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "set" / "a" / "notes.txt").write_text("no picture")
    return tmp_path / "set"


def test_zero_shot_counts_hits_and_mistakes(invoke, folder, tmp_path):
    files = ("--json", tmp_path / "out.json", "--confusion", tmp_path / "out.png")
    result = invoke(evaluate, "zero-shot", folder, *files)
    assert result.exit_code == 0, result.output
    assert "broken.jpg: not a picture: no known format" in result.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert written["top_1"]["value"] == pytest.approx(4 / 6)
    assert written["top_5"]["value"] == 1
    assert written["classes"]["b b"] == {"pictures": 2, "top_1": 2, "top_5": 2}
    assert (written["scorer"], written["templates"], len(written["skipped"])) == ("emoji", ["{}"], 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:-2]]
    assert rows[0] == ["c", "1", "0.00", "1.00", "a"]
    assert rows[1] == ["a", "3", "0.67", "1.00", "b b"]
    assert rows[2] == ["b b", "2", "1.00", "1.00", ""]
    assert rows[3][:2] == ["all", "6"]
    assert rows[3][2].startswith(".67 (")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == picture.height > 3 * 32


def test_top_five_counts_the_first_five_of_more_classes(tmp_path):
    # Equal cosines keep the classes' order: of seven equal classes the sixth is not among the first five.
    for label in "acdefgh":
        (tmp_path / label).mkdir()
        Image.new("RGB", (3, 3), (127, 0, 0)).save(tmp_path / label / "picture.png")
    result = measure_zero_shot(make_scorer(AngleModel()), find_classes(tmp_path))
    assert result.hits.tolist() == [[1, 1]] + [[0, 1]] * 4 + [[0, 0]] * 2
    assert [value.value for value in result.accuracy()] == pytest.approx([1 / 7, 5 / 7])


def test_confusion_picture_has_fractions_and_names():
    confusion = torch.tensor([[3, 0, 1], [0, 0, 0], [2, 2, 4]])
    names = ("a", "猫 🐈", "a name much too long for the margin it has in the picture")
    result = ZeroShotResult(names, confusion, torch.zeros(3, 2, dtype=torch.int64), ())
    pixels = np.asarray(confusion_picture(result)).astype(int)
    start = len(pixels) - 4 - 3 * 32

    def colour(row, column):
        return pixels[start + 32 * row + 3, start + 32 * column + 3].tolist()

    assert colour(0, 0) == [64, 255, 64]
    assert colour(0, 2) == [255, 191, 191]
    assert colour(1, 1) == [255, 255, 255]
    assert colour(2, 2) == [128, 255, 128]
    assert pixels[:start, start:].min() < 128 > pixels[start:, :start].min()  # names above and at the left
    assert pixels[: start - 1, : start - 1].min() == 255
    assert "| all" in accuracy_table(result)


def test_names_beside_a_confusion_picture_may_be_in_any_language():
    def picture(name):
        return np.asarray(confusion_picture(ZeroShotResult((name,), torch.ones(1, 1), torch.zeros(1, 2).long(), ())))

    assert not np.array_equal(picture("ččč"), picture("žžž"))  # boxes would be equal


def test_confusion_picture_of_a_thousand_classes():
    result = ZeroShotResult(
        tuple(map(str, range(1000))), torch.eye(1000, dtype=torch.int64), torch.ones(1000, 2).long(), ()
    )
    picture = confusion_picture(result)
    assert picture.size == (3008, 3008)


def test_folders_without_classes_are_refused(invoke, tmp_path):
    (tmp_path / "one" / "cats").mkdir(parents=True)
    (tmp_path / "void").mkdir()
    for name in ("cats/cat.png", "dog.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / "one" / name)
    messages = (("absent", "expected a folder with"), ("void", "got 0; give one"), ("one", "got 1; give one"))
    for name, message in messages:
        result = invoke(evaluate, "zero-shot", tmp_path / name)
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
    (tmp_path / "one" / "cats" / "cat.png").write_bytes(b"")
    (tmp_path / "one" / "dogs").mkdir()
    (tmp_path / "one" / "dogs" / "dog.png").write_bytes(b"")
    result = invoke(evaluate, "zero-shot", tmp_path / "one")
    assert "none of the 2 pictures is readable" in str(result.exception)


def test_hidden_folders_are_no_pictures_of_a_class(folder):
    before = find_classes(folder)
    (folder / "a/deep/.ipynb_checkpoints").mkdir()
    (folder / "a/deep/0.png").rename(folder / "a/deep/.ipynb_checkpoints/0-checkpoint.png")
    after = find_classes(folder)
    assert len(after["a"]) == len(before["a"]) - 1
    assert list(after) == list(before)


def test_splits_are_no_classes(folder, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(folder, tmp_path / "data" / split)
    with pytest.raises(UserError, match=r"got the splits test, train, val; give one of them, such as .*/data/val$"):
        find_classes(tmp_path / "data")
    assert list(find_classes(tmp_path / "data/val")) == ["a", "b b", "c"]
