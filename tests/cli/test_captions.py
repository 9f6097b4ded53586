"""`dalle write`, `dalle caption` and `dalle evaluate captions`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import GRID
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.evaluate import captions as measure
from dalle_mini_impl.evaluate.captions import evaluate_captions, make_naming_task, shares
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def run(tiny_model):
    def invoke(*words):
        command = ["--model", str(tiny_model), "--device", "cpu"]
        result = CliRunner().invoke(dalle, [words[0], *command, *map(str, words[1:])], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return invoke


@pytest.fixture
def pictures(tmp_path, tiny_dalle):
    ids = torch.randint(61, (2, *GRID), generator=torch.Generator().manual_seed(0))
    for name, image in zip("ab", tiny_dalle.decode(ids), strict=True):
        image.save(tmp_path / f"{name}.png")
    return [tmp_path / "a.png", tmp_path / "b.png"]


# --- write


def test_write_prints_captions_likeliest_first(run, tiny_dalle):
    how = ("write", "a red", "--candidates", 17, "--keep", 3, "--seed", 5, "--temperature", 0.8, "--top-k", 50)
    expected = tiny_dalle.complete_text("a red", candidates=17, keep=3, seed=5, temperature=0.8, top_k=50)
    assert len(expected) == 3
    lines = [line.split(maxsplit=1) for line in run(*how).stdout.splitlines()]
    assert [text for _, text in lines] == [text for text, _ in expected]
    assert [float(nats) for nats, _ in lines] == pytest.approx([nats for _, nats in expected], abs=0.006)
    entries = json.loads(run(*how, "--json").stdout)
    assert [(entry["text"], entry["nats"]) for entry in entries] == expected
    assert run(*how, "--top-p", 0.2).stdout != run(*how).stdout


def test_write_begins_anew(run):
    run("write", "--candidates", 3)


def test_write_refuses_bad_input(refused, tiny_model):
    fixed = ("--model", tiny_model, "--device", "cpu")
    for words, message in (
        (("a red heart with a hat",), "text ids was given, at most 6 leave room to go on; shorten it"),
        (("--candidates", 0), "candidates 0 and keep 10 were given"),
        (("--top-k", 999), "top_k 999 was given"),
        (("--seed", -1), "seed -1 was given"),
    ):
        error = refused("write", *fixed, *words)
        assert message in error
        assert error.count("\n") == 1


# --- caption


def test_caption_ranks_what_is_given(run, pictures, tmp_path, tiny_dalle):
    (tmp_path / "captions.txt").write_text("a cat\n\na tree\n", encoding="utf-8")
    how = ("caption", *pictures, "--labels", "a house,star", "--captions", tmp_path / "captions.txt", "--keep", 3)
    expected = []
    with Image.open(pictures[0]) as image:
        expected = tiny_dalle.caption(image, ["a house", "star", "a cat", "a tree"], keep=3)
    result = run(*how)
    lines = result.stdout.splitlines()
    assert [lines[0], lines[4]] == [str(path) for path in pictures]
    assert [line.split(maxsplit=1) for line in lines[1:4]] == [[f"{one.gain:+.2f}", one.text] for one in expected]
    assert result.stderr.splitlines() == ["ranking 4 captions for 2 pictures"]
    entries = json.loads(run(*how, "--json").stdout)
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    assert entries[0]["captions"] == [vars(one) for one in expected]
    blind, prior = (json.loads(run(*how, "--json", option).stdout) for option in ("--blind", "--prior"))
    assert blind[0]["captions"][0]["gain"] != entries[0]["captions"][0]["gain"]
    sums = [one["gain"] + one["nats"] for one in prior[0]["captions"]]
    assert sums == sorted(sums, reverse=True)


def test_caption_samples_where_nothing_is_given(run, pictures, tiny_dalle):
    result = run("caption", pictures[0], "--beginning", "a red", "--candidates", 17, "--seed", 5, "--json")
    with Image.open(pictures[0]) as image:
        expected = tiny_dalle.caption(image, beginning="a red", candidates=17, seed=5)
    (entry,) = json.loads(result.stdout)
    assert [one["text"] for one in entry["captions"]] == [one.text for one in expected]


def test_caption_refuses_bad_input(refused, pictures, tmp_path, tiny_model):
    (tmp_path / "empty.txt").write_text("\n")
    fixed = ("--model", tiny_model, "--device", "cpu")
    for words, message in (
        ((pictures[0], "--captions", tmp_path / "empty.txt"), "no label came"),
        ((pictures[0], "--captions", tmp_path / "absent.txt"), "cannot read labels"),
        ((tmp_path / "absent.png", "--labels", "a,b"), "absent.png is not a readable picture"),
        ((pictures[0], "--labels", "a,b", "--keep", 0), "keep 0 were given"),
    ):
        error = refused("caption", *fixed, *words)
        assert message in error
        assert error.splitlines()[-1].startswith("error: ")


# --- evaluate captions


def entry(*captions):
    return SimpleNamespace(captions=tuple(Caption(*caption) for caption in captions))


class Store(SimpleNamespace):
    """Pictures that are told apart by their brightness: row n has n."""

    def take(self, rows):
        return np.broadcast_to(np.asarray(rows, dtype=np.uint8)[:, None, None, None], (len(rows), 5, 5, 4))


STORE = Store(
    entries=[
        entry(("sun", "en"), ("a sun", "en"), ("Sonne", "de")),
        entry(("moon", "en")),
        entry(("Stern", "de")),
        entry(("sun", "en")),
        entry(("tree", "en")),
    ]
)


def test_a_quiz_asks_for_first_names_in_one_language():
    quiz = make_naming_task(STORE, "en", 100, seed=0)
    assert quiz.names == ["moon", "sun", "tree"]
    assert sorted(quiz.rows.tolist()) == [0, 1, 3, 4]
    assert [quiz.names[number] for number in quiz.true] == [STORE.entries[row].captions[0].text for row in quiz.rows]
    assert make_naming_task(STORE, "en", 2, seed=0).rows.tolist() == quiz.rows[:2].tolist()
    assert {tuple(make_naming_task(STORE, "en", 2, seed=seed).rows) for seed in range(9)} != {tuple(quiz.rows[:2])}
    with pytest.raises(UserError, match="no picture has a caption in 'fr'; there are de, en"):
        make_naming_task(STORE, "fr", 2, seed=0)


def test_shares_count_ties_against_the_right_name():
    scores = torch.tensor([[3.0, 2, 1, 0, 0, 0], [3, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6], [5, 5, 5, 5, 5, 5]])
    found = shares(scores, torch.tensor([0, 1, 1, 2]))
    assert [one.value for one in found] == [0.25, 0.75]


def test_ways_are_measured_side_by_side(monkeypatch):
    # Brightness is the image id; the transformer knows suns, blindly nothing, the scorer everything.
    monkeypatch.setattr(measure, "pixels_on_white", lambda rgba, size: torch.from_numpy(rgba[:, 0, 0, 0].copy()))
    quiz = make_naming_task(STORE, "en", 100, seed=0)
    rows = {0: "sun", 1: "moon", 3: "sun", 4: "tree"}

    def table(names, ids, blind=False, progress=lambda pairs: None):
        progress(len(ids) * len(names))
        return torch.tensor([[float(name == "sun" and not blind) for name in names] for _ in ids])

    model = SimpleNamespace(
        image_tokenizer=SimpleNamespace(config=SimpleNamespace(image_size=5), encode=lambda pixels: pixels),
        transformer=SimpleNamespace(device=torch.device("cpu")),
        caption_model=SimpleNamespace(
            table=table, text_nats=lambda names: torch.tensor([2.0 * (name == "tree") for name in names])
        ),
        scorer=SimpleNamespace(
            image_size=5,
            embed_images=lambda pixels: torch.tensor(
                [[float(rows[row] == name) for name in quiz.names] for row in pixels.tolist()]
            ),
            embed_texts=lambda names: torch.eye(len(names)),
        ),
    )
    told = []
    reports = evaluate_captions(model, STORE, quiz, told.append)
    assert told == [12]
    top = {one.way: one.shares[0].value for one in reports}
    assert top == {
        "chance": pytest.approx(1 / 3),
        "likelihood": 0.5,
        "likelihood + prior": 0.25,
        "likelihood, blind": 0,
        "CLIP scorer": 1,
    }
    assert all(one.shares[1].value == 1 for one in reports)
    assert {(one.language, one.pictures, one.names) for one in reports} == {("en", 4, 3)}
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in measure.table(reports).splitlines()]
    assert rows[0] == ["language", "by", "pictures", "names", "top-1", "top-5"]
    assert rows[2] == ["en", "chance", "4", "3", "0.3333", "1.0000"]
    assert rows[3][:5] == ["en", "likelihood", "4", "3", ".50 (.15–.85)"]


def test_the_command_prints_and_writes(trained, tmp_path):
    path = tmp_path / "captions.json"
    fixed = [str(trained.folder / "model"), "--data", str(trained.folder / "store"), "--device", "cpu"]
    words = ["--languages", "en", "--pictures", "3", "--json", str(path)]
    result = CliRunner().invoke(dalle, ["evaluate", "captions", *fixed, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    facts = json.loads(path.read_text())
    assert [one["way"] for one in facts["reports"]] == [
        "chance",
        "likelihood",
        "likelihood + prior",
        "likelihood, blind",
        "CLIP scorer",
    ]
    assert {one["pictures"] for one in facts["reports"]} == {3}
    assert "| CLIP scorer" in result.stdout
