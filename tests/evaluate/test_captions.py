"""`dalle evaluate captions`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.evaluate import captions as measure
from dalle_mini_impl.evaluate.captions import evaluate_captions, make_naming_task, shares
from dalle_mini_impl.util.errors import UserError


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
