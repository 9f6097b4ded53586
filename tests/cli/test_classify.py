"""`dalle classify`, with a scorer whose embeddings are directions in the plane."""

import csv
import json
import math
import os
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.scorers import LENGTH, SIZE, AngleModel, CertainSigmoidModel, LetterTokenizer, make_scorer
from PIL import Image

from dalle_mini_impl.cli.classify import classify
from dalle_mini_impl.data.sample import decode_picture
from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.scorer.picture_files import embed_picture_files
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError

SCORERS = {
    "emoji": lambda: make_scorer(AngleModel()),
    "hf:yes": lambda: Scorer(CertainSigmoidModel(), LetterTokenizer(), Preprocess(SIZE, activation="sigmoid"), LENGTH),
}


@pytest.fixture
def run(monkeypatch):
    """Run `dalle classify` with one of `SCORERS`."""

    def from_pretrained(name, device):
        assert device == "cpu"
        return SCORERS[name]()

    monkeypatch.setattr(Scorer, "from_pretrained", from_pretrained)
    return lambda *words: CliRunner().invoke(classify, [*(str(word) for word in words), "--device", "cpu"])


@pytest.fixture
def pictures(tmp_path):
    """One picture with the direction of "b" (red 0.9 * 127.5 above the middle), one with that of "a" (the middle)."""
    paths = []
    for name, red in (("up", 242), ("along", 127)):
        Image.new("RGB", (23, 29), (red, 0, 0)).save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    return paths


def test_likeliest_labels_are_printed_first(run, pictures):
    result = run(*pictures, "--labels", "a, b")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[3]) == tuple(str(path) for path in pictures)
    assert [line.split()[-1] for line in lines[1:3] + lines[4:6]] == ["b", "a", "a", "b"]
    assert lines[4].split()[0] == f"{1 / (1 + math.exp(-5)):.1%}"  # red 127 lies within 0.005 of angle 0


def test_json_goes_to_standard_output_alone(run, pictures):
    result = run(*pictures, "--labels", "a", "--labels", "b", "--json", "-")
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    assert [entry["labels"][0]["label"] for entry in entries] == ["b", "a"]
    assert sum(label["probability"] for label in entries[0]["labels"]) == pytest.approx(1)


def test_labels_of_options_and_file_are_taken_once_each(run, pictures, tmp_path):
    (tmp_path / "labels.txt").write_text("a\n\nb, with comma\n", encoding="utf-8")
    result = run(pictures[0], "--labels", "a,å", "--texts-file", tmp_path / "labels.txt", "--json", "-")
    labels = [label["label"] for label in json.loads(result.stdout)[0]["labels"]]
    assert sorted(labels) == ["a", "b, with comma", "å"]
    result = run(pictures[0], "--labels", "a,b,c", "--keep", "2", "--json", "-")
    assert len(json.loads(result.stdout)[0]["labels"]) == 2


def test_csv_and_a_json_file_can_be_written_together(run, pictures, tmp_path):
    result = run(*pictures, "--labels", "a,b", "--csv", "--json", tmp_path / "out.json")
    rows = list(csv.reader(result.stdout.splitlines()))
    entries = json.loads((tmp_path / "out.json").read_text())
    assert [row[1] for row in rows[1:]] == [one["label"] for entry in entries for one in entry["labels"]]
    assert result.stderr.splitlines()[-1] == str(tmp_path / "out.json")


def test_csv_goes_to_standard_output(run, pictures):
    result = run(*pictures, "--labels", "a", "--labels", "b, c", "--labels", "b", "--csv", "--keep", 2)
    rows = list(csv.reader(result.stdout.splitlines()))
    assert rows[0] == ["image", "label", "probability"]
    assert [row[:2] for row in rows[1:]] == [
        [str(path), label] for path, label in zip(np.repeat(pictures, 2), ("b", "a", "a", "c"), strict=True)
    ]
    assert float(rows[3][2]) == pytest.approx(0.5, abs=0.01)  # a and c have the same direction: the first comes first


def test_labels_are_put_into_templates(run, pictures):
    # The first letter gives the direction: with "b" in front, both labels have the same one.
    result = run(pictures[0], "--labels", "a,b", "--template", "b {}", "--json", "-")
    assert [entry["probability"] for entry in json.loads(result.stdout)[0]["labels"]] == [0.5, 0.5]
    result = run(pictures[0], "--labels", "a,b", "--template", "b {}", "--template", "{}!", "--json", "-")
    first = json.loads(result.stdout)[0]["labels"][0]
    red, middle = 242 / 127.5 - 1, math.pi / 4  # the mean of both directions lies between them
    odds = 5 * (math.sin(red) - math.cos(red - middle))
    assert first["label"] == ("b" if odds > 0 else "a")
    assert first["probability"] == pytest.approx(1 / (1 + math.exp(-abs(odds))), abs=1e-5)


def test_scorers_with_independent_probabilities_accept_one_label(run, pictures):
    result = run(pictures[0], "--labels", "a", "--scorer", "hf:yes", "--json", "-")
    assert json.loads(result.stdout)[0]["labels"] == [{"label": "a", "probability": 1.0}]


def test_many_pictures_are_embedded_in_chunks(run, pictures, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.scorer.picture_files.MAX_FILES", 2)
    result = run(*pictures, *pictures, pictures[0], "--labels", "a,b", "--json", "-")
    assert [entry["labels"][0]["label"] for entry in json.loads(result.stdout)] == ["b", "a", "b", "a", "b"]


def test_labels_may_be_of_any_script_and_length(run, pictures):
    labels = ["🦄 👩‍🚀", "قلب أحمر", "x" * 10_000]
    result = run(pictures[0], *(word for label in labels for word in ("--labels", label)), "--json", "-")
    assert sorted(entry["label"] for entry in json.loads(result.stdout)[0]["labels"]) == sorted(labels)


def test_bad_input_is_refused(run, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:40])
    (tmp_path / "latin.txt").write_bytes(b"\xe5")
    for words, message in (
        ((tmp_path / "absent.png", "--labels", "a,b"), "got none among the 1 files that can be read"),
        ((tmp_path / "broken.png", tmp_path, "--labels", "a,b"), "got none among the 2 files that can be read"),
        ((pictures[0], "--labels", " ,"), "expected at least one text, got none"),
        ((pictures[0],), "expected at least one text, got none"),
        ((pictures[0], "--labels", "a,b", "--csv", "--json", "-"), "expected --csv or --json -, got both"),
        ((pictures[0], "--labels", "a"), "expected at least two labels, got only 'a'"),
        ((pictures[0], "--labels", "a,b", "--template", "photo"), "each with {} for the label, got ['photo']"),
        ((pictures[0], "--texts-file", tmp_path / "absent.txt"), "expected a UTF-8 file with one text per line, got"),
        ((pictures[0], "--texts-file", tmp_path / "latin.txt"), "expected a UTF-8 file with one text per line, got"),
    ):
        result = run(*words)
        assert isinstance(result.exception, UserError), words
        assert message in str(result.exception)


def test_pictures_that_cannot_be_read_are_listed_and_the_others_classified(run, pictures, tmp_path):
    (tmp_path / "cut.png").write_bytes(pictures[0].read_bytes()[:60])
    os.mkfifo(tmp_path / "pipe.png")
    files = (tmp_path / "cut.png", pictures[0], tmp_path / "pipe.png", tmp_path, pictures[1], tmp_path / "absent.png")
    result = run(*files, "--labels", "a,b", "--json", "-")
    assert result.exit_code == 0
    assert [entry["labels"][0]["label"] for entry in json.loads(result.stdout)] == ["b", "a"]
    skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == [str(files[index]) for index in (0, 2, 3, 5)]


def test_labels_that_are_the_same_to_the_scorer_are_named(run, pictures):
    result = run(pictures[0], "--labels", "a,b,c")
    assert "note: 'a', 'c' are the same to the scorer" in result.stderr
    assert "note" not in run(pictures[0], "--labels", "a,b").stderr


def test_pixels_decoded_at_the_same_time_are_bounded(tmp_path, monkeypatch):
    lock, now, most = threading.Lock(), [0], [0]

    def decode(data):
        image = decode_picture(data)
        pixels = image.width * image.height
        with lock:
            now[0] += pixels
            most[0] = max(most[0], now[0])
        image.resize((64, 64)).resize(image.size)
        with lock:
            now[0] -= pixels
        return image

    monkeypatch.setattr(picture_files, "decode_picture", decode)
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 300 * 300)
    for number in range(12):
        Image.new("RGB", (200, 200), (number, 0, 0)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (400, 400)).save(tmp_path / "large.png")
    paths = sorted(tmp_path.iterdir())
    embedded = [picture for batch in embed_picture_files(make_scorer(), paths, lambda path: path) for picture in batch]
    assert [picture.item for picture in embedded] == paths
    assert all(picture.embedding is not None for picture in embedded)
    assert most[0] <= 400 * 400
