"""`dalle classify` and `dalle evaluate zero-shot`, with a scorer that points pictures and words in the plane."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.scorers import LENGTH, SIZE, Compass, Convinced, LetterTokenizer, make_scorer
from PIL import Image

from dalle_mini_impl.cli.classify import classify
from dalle_mini_impl.cli.evaluate import evaluate
from dalle_mini_impl.evaluate.zero_shot import ZeroShot, confusion_picture, find_classes, table, zero_shot
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError

SCORERS = {
    "emoji": lambda: make_scorer(Compass()),
    "hf:yes": lambda: Scorer(Convinced(), LetterTokenizer(), Preprocess(SIZE, activation="sigmoid"), LENGTH),
}


@pytest.fixture
def invoke(monkeypatch):
    def from_pretrained(name, device):
        assert device == "cpu"
        return SCORERS[name]()

    monkeypatch.setattr(Scorer, "from_pretrained", from_pretrained)
    return lambda command, *words: CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture
def run(invoke):
    return lambda *words: invoke(classify, *words)


@pytest.fixture
def pictures(tmp_path):
    # Red 0.9 * 127.5 above the middle points to "b", the middle itself to "a".
    paths = []
    for name, red in (("up", 242), ("along", 127)):
        Image.new("RGB", (23, 29), (red, 0, 0)).save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    return paths


def test_command_prints_likeliest_label_first(run, pictures):
    result = run(*pictures, "--labels", "a, b")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[3]) == tuple(str(path) for path in pictures)
    assert [line.split()[-1] for line in lines[1:3] + lines[4:6]] == ["b", "a", "a", "b"]
    assert lines[4].split()[0] == f"{1 / (1 + math.exp(-5)):.1%}"  # red 127 lies within 0.005 of angle 0


def test_command_prints_json(run, pictures):
    result = run(*pictures, "--labels", "a", "--labels", "b", "--json")
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    assert [entry["labels"][0]["label"] for entry in entries] == ["b", "a"]
    assert sum(label["probability"] for label in entries[0]["labels"]) == pytest.approx(1)


def test_labels_come_once_from_options_and_file(run, pictures, tmp_path):
    (tmp_path / "labels.txt").write_text("a\n\nb, with comma\n", encoding="utf-8")
    result = run(pictures[0], "--labels", "a,å", "--labels-file", tmp_path / "labels.txt", "--json")
    labels = [label["label"] for label in json.loads(result.stdout)[0]["labels"]]
    assert sorted(labels) == ["a", "b, with comma", "å"]
    result = run(pictures[0], "--labels", "a,b,c", "--top", "2", "--json")
    assert len(json.loads(result.stdout)[0]["labels"]) == 2


def test_command_prints_csv(run, pictures):
    result = run(*pictures, "--labels", "a", "--labels", "b, c", "--labels", "b", "--csv", "--top", 2)
    rows = list(csv.reader(result.stdout.splitlines()))
    assert rows[0] == ["image", "label", "probability"]
    assert [row[:2] for row in rows[1:]] == [
        [str(path), label] for path, label in zip(np.repeat(pictures, 2), ("b", "a", "a", "c"), strict=True)
    ]
    assert float(rows[3][2]) == pytest.approx(0.5, abs=0.01)  # a and c point the same way: the first comes first


def test_templates_change_what_labels_say(run, pictures):
    # The first letter decides: in front of the label, "b" points both labels the same way.
    result = run(pictures[0], "--labels", "a,b", "--template", "b {}", "--json")
    assert [entry["probability"] for entry in json.loads(result.stdout)[0]["labels"]] == [0.5, 0.5]
    result = run(pictures[0], "--labels", "a,b", "--template", "b {}", "--template", "{}!", "--json")
    first = json.loads(result.stdout)[0]["labels"][0]
    red, middle = 242 / 127.5 - 1, math.pi / 4  # the mean of both directions lies between them
    odds = 5 * (math.sin(red) - math.cos(red - middle))
    assert first["label"] == ("b" if odds > 0 else "a")
    assert first["probability"] == pytest.approx(1 / (1 + math.exp(-abs(odds))), abs=1e-5)


def test_scorers_that_judge_each_label_take_one(run, pictures):
    result = run(pictures[0], "--labels", "a", "--scorer", "hf:yes", "--json")
    assert json.loads(result.stdout)[0]["labels"] == [{"label": "a", "probability": 1.0}]


def test_many_pictures_pass_in_parts(run, pictures, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.cli.classify.CHUNK", 2)
    result = run(*pictures, *pictures, pictures[0], "--labels", "a,b", "--json")
    assert [entry["labels"][0]["label"] for entry in json.loads(result.stdout)] == ["b", "a", "b", "a", "b"]


def test_any_label_is_fine(run, pictures):
    labels = ["🦄 👩‍🚀", "قلب أحمر", "x" * 10_000]
    result = run(pictures[0], *(word for label in labels for word in ("--labels", label)), "--json")
    assert sorted(entry["label"] for entry in json.loads(result.stdout)[0]["labels"]) == sorted(labels)


def test_command_refuses_bad_input(run, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:40])
    (tmp_path / "latin.txt").write_bytes(b"\xe5")
    for words, message in (
        ((tmp_path / "absent.png", "--labels", "a,b"), "absent.png is not a readable picture"),
        ((tmp_path / "broken.png", "--labels", "a,b"), "broken.png is not a readable picture"),
        ((pictures[0], "--labels", " ,"), "no label came"),
        ((pictures[0],), "no label came"),
        ((pictures[0], "--labels", "a"), "the one label 'a' came"),
        ((pictures[0], "--labels", "a,b", "--template", "photo"), "the templates ['photo'] came"),
        ((pictures[0], "--labels-file", tmp_path / "absent.txt"), "cannot read labels"),
        ((pictures[0], "--labels-file", tmp_path / "latin.txt"), "cannot read labels"),
    ):
        result = run(*words)
        assert isinstance(result.exception, UserError), words
        assert message in str(result.exception)


# --- dalle evaluate zero-shot


@pytest.fixture
def folder(tmp_path):
    """Pictures that point to a or to b, mostly in their own class's folder; c points where a does, behind it."""
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
    assert "broken.jpg is not a readable picture" in result.stderr
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert facts["top_1"]["value"] == pytest.approx(4 / 6)
    assert facts["top_5"]["value"] == 1
    assert facts["classes"]["b b"] == {"pictures": 2, "top_1": 2, "top_5": 2}
    assert (facts["scorer"], facts["templates"], len(facts["skipped"])) == ("emoji", ["{}"], 1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:-2]]
    assert rows[0] == ["c", "1", "0.00", "1.00", "a"]
    assert rows[1] == ["a", "3", "0.67", "1.00", "b b"]
    assert rows[2] == ["b b", "2", "1.00", "1.00", ""]
    assert rows[3][:2] == ["all", "6"]
    assert rows[3][2].startswith(".67 (")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == picture.height > 3 * 32


def test_top_five_of_more_classes(tmp_path):
    # Equal cosines keep the classes' order: of seven that point the same way, the sixth is not among five.
    for label in "acdefgh":
        (tmp_path / label).mkdir()
        Image.new("RGB", (3, 3), (127, 0, 0)).save(tmp_path / label / "picture.png")
    result = zero_shot(make_scorer(Compass()), find_classes(tmp_path))
    assert result.hits.tolist() == [[1, 1]] + [[0, 1]] * 4 + [[0, 0]] * 2
    assert [value.value for value in result.accuracy()] == pytest.approx([1 / 7, 5 / 7])


def test_confusion_picture_shows_shares_and_names():
    confusion = torch.tensor([[3, 0, 1], [0, 0, 0], [2, 2, 4]])
    names = ("a", "猫 🐈", "a name much too long for the place it has on the picture")
    result = ZeroShot(names, confusion, torch.zeros(3, 2, dtype=torch.int64), ())
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
    assert "| all" in table(result)


def test_a_thousand_classes_still_fit():
    result = ZeroShot(tuple(map(str, range(1000))), torch.eye(1000, dtype=torch.int64), torch.ones(1000, 2).long(), ())
    picture = confusion_picture(result)
    assert picture.size == (3008, 3008)


def test_folders_that_hold_no_classes_are_refused(invoke, tmp_path):
    (tmp_path / "one" / "cats").mkdir(parents=True)
    (tmp_path / "void").mkdir()
    for name in ("cats/cat.png", "dog.png"):
        Image.new("RGB", (3, 3)).save(tmp_path / "one" / name)
    for name, message in (("absent", "is no folder"), ("void", "holds 0 folders"), ("one", "holds 1 folders")):
        result = invoke(evaluate, "zero-shot", tmp_path / name)
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
    (tmp_path / "one" / "cats" / "cat.png").write_bytes(b"")
    (tmp_path / "one" / "dogs").mkdir()
    (tmp_path / "one" / "dogs" / "dog.png").write_bytes(b"")
    result = invoke(evaluate, "zero-shot", tmp_path / "one")
    assert "none of the 2 pictures is readable" in str(result.exception)
