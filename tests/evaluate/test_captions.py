"""Naming pictures by the likelihood, and `dalle evaluate captions`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.data.pair import Caption
from dalle_mini_impl.evaluate import captions as measure
from dalle_mini_impl.evaluate.captions import evaluate_captions, make_naming_task, top_k_shares
from dalle_mini_impl.util.errors import UserError


def entry(*captions):
    """A picture of a store; captions are (text, language)."""
    return SimpleNamespace(captions=tuple(Caption(*caption) for caption in captions))


class BrightnessStore(SimpleNamespace):
    """Pictures identified by their brightness: that of row n is n."""

    def take(self, rows):
        return np.broadcast_to(np.asarray(rows, dtype=np.uint8)[:, None, None, None], (len(rows), 5, 5, 4))


STORE = BrightnessStore(
    entries=[
        entry(("sun", "en"), ("a sun", "en"), ("Sonne", "de")),
        entry(("moon", "en")),
        entry(("Stern", "de")),
        entry(("sun", "en")),
        entry(("tree", "en")),
    ]
)


def test_naming_task_has_the_first_names_in_one_language():
    task = make_naming_task(STORE, "en", 100, seed=0)
    assert task.names == ["moon", "sun", "tree"]
    assert sorted(task.picture_indices.tolist()) == [0, 1, 3, 4]
    assert [task.names[name] for name in task.true_names] == [
        STORE.entries[row].captions[0].text for row in task.picture_indices
    ]
    assert make_naming_task(STORE, "en", 2, seed=0).picture_indices.tolist() == task.picture_indices[:2].tolist()
    samples = {tuple(make_naming_task(STORE, "en", 2, seed=seed).picture_indices) for seed in range(9)}
    assert samples != {tuple(task.picture_indices[:2])}
    with pytest.raises(UserError, match="no picture has a caption in 'fr'; there are de, en"):
        make_naming_task(STORE, "fr", 2, seed=0)


def test_top_k_shares_count_ties_against_the_right_name():
    scores = torch.tensor([[3.0, 2, 1, 0, 0, 0], [3, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6], [5, 5, 5, 5, 5, 5]])
    shares = top_k_shares(scores, torch.tensor([0, 1, 1, 2]))
    assert [share.value for share in shares] == [0.25, 0.75]


def test_methods_are_measured_on_the_same_pictures(monkeypatch):
    # Brightness is the image id. The transformer prefers "sun" always, blindly nothing; the scorer is always right.
    monkeypatch.setattr(measure, "pixels_on_white", lambda rgba, size: torch.from_numpy(rgba[:, 0, 0, 0].copy()))
    task = make_naming_task(STORE, "en", 100, seed=0)
    true_names = {0: "sun", 1: "moon", 3: "sun", 4: "tree"}

    def table(names, ids, blind=False, progress=lambda pairs: None):
        progress(len(ids) * len(names))
        return torch.tensor([[float(name == "sun" and not blind) for name in names] for _ in ids])

    model = SimpleNamespace(
        image_tokenizer=SimpleNamespace(config=SimpleNamespace(size=(5, 5)), encode=lambda pixels: pixels),
        transformer=SimpleNamespace(device=torch.device("cpu")),
        caption_model=SimpleNamespace(
            likelihood_table=table, text_nats=lambda names: torch.tensor([2.0 * (name == "tree") for name in names])
        ),
        scorer=SimpleNamespace(
            image_size=5,
            embed_images=lambda pixels: torch.tensor(
                [[float(true_names[row] == name) for name in task.names] for row in pixels.tolist()]
            ),
            embed_texts=lambda names: torch.eye(len(names)),
        ),
    )
    progress: list[int] = []
    reports = evaluate_captions(model, STORE, task, progress.append)
    assert progress == [12]
    top = {report.method: report.shares[0].value for report in reports}
    assert top == {
        "chance": pytest.approx(1 / 3),
        "likelihood": 0.5,
        "likelihood + prior": 0.25,
        "likelihood, blind": 0,
        "CLIP scorer": 1,
    }
    assert all(report.shares[1].value == 1 for report in reports)
    assert {(report.language, report.pictures, report.names) for report in reports} == {("en", 4, 3)}
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in measure.report_table(reports).splitlines()]
    assert rows[0] == ["language", "by", "pictures", "names", "top-1", "top-5"]
    assert rows[2] == ["en", "chance", "4", "3", "0.3333", "1.0000"]
    assert rows[3][:5] == ["en", "likelihood", "4", "3", ".50 (.15–.85)"]


def test_command_prints_and_writes_all_methods(trained, tmp_path):
    path = tmp_path / "captions.json"
    fixed = [str(trained.folder / "model"), "--data", str(trained.folder / "store"), "--device", "cpu"]
    words = ["--languages", "en", "--pictures", "3", "--json", str(path)]
    result = CliRunner().invoke(dalle, ["evaluate", "captions", *fixed, *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(path.read_text())
    assert [report["method"] for report in figures["reports"]] == [
        "chance",
        "likelihood",
        "likelihood + prior",
        "likelihood, blind",
        "CLIP scorer",
    ]
    assert {report["pictures"] for report in figures["reports"]} == {3}
    assert "| CLIP scorer" in result.stdout
