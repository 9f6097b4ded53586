"""Retrieval by scorers: recall, languages, the command."""

import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.data.entries import concept_indices
from dalle_mini_impl.data.pair import Caption, caption_in_language
from dalle_mini_impl.evaluate import scorer as measure
from dalle_mini_impl.evaluate.recall import recalls
from dalle_mini_impl.evaluate.scorer import LanguageReport, evaluate_scorer, plot_recalls, table_cells
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError


def entry(key, *captions, **details):
    """A picture of a store; captions are (text, language)."""
    return SimpleNamespace(key=key, captions=tuple(Caption(*caption) for caption in captions), details=details)


def test_pictures_of_one_concept_have_one_index():
    indices = concept_indices([entry("a", concept="cat"), entry("b"), entry("c", concept="cat"), entry("d")])
    assert indices[0] == indices[2]
    assert len(set(indices)) == 3


def test_caption_in_language_is_the_first_of_it_or_of_all():
    captions = entry("a", ("eins", "de"), ("one", "en"), ("two", "en")).captions
    assert caption_in_language(captions, "en").text == "one"
    assert caption_in_language(captions, "fr").text == "eins"


def test_recalls_by_hand():
    # Three pictures and their names; the first two have the same concept, and the third fits its name best.
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8], [0.7, 0.6, 0.5]])
    metrics = recalls(similarity, torch.tensor([4, 4, 7]))
    assert metrics["image_to_text_at_1"] == pytest.approx(1 / 3)
    assert metrics["image_to_text_at_5"] == metrics["text_to_image_at_10"] == 1
    # Names to pictures: the first finds the third (wrong), the second the first (right), the third the second (wrong).
    assert metrics["text_to_image_at_1"] == pytest.approx(1 / 3)
    # The concepts' names are the first and the third: .1 < .5, .2 < .8, .7 > .5: none is right.
    assert metrics["zero_shot"] == 0
    assert recalls(similarity.fliplr(), torch.tensor([7, 4, 4]))["zero_shot"] == pytest.approx(1 / 3)


# --- languages


class BrightnessStore(SimpleNamespace):
    """Pictures identified by their brightness: that of row n is n."""

    def __len__(self):
        return len(self.entries)

    def take(self, rows):
        return torch.tensor(rows, dtype=torch.uint8)[:, None, None, None].expand(-1, 5, 5, 4).numpy()


STORE = BrightnessStore(
    entries=[
        entry("a", ("0", "en"), ("7", "en"), ("0", "de"), concept="sun"),
        entry("b", ("1", "en"), concept="moon"),
        entry("c", ("2", "en"), ("1", "de"), concept="star"),
        entry("d", ("0", "en"), ("0", "de"), concept="sun"),
    ]
)


@pytest.fixture
def row_scorer(monkeypatch):
    """A scorer for which a picture fits the text that is its row's number; row 3 looks like row 0."""
    monkeypatch.setattr("dalle_mini_impl.evaluate.scorer.pixels_on_white", lambda rgba, size: torch.from_numpy(rgba))
    directions = torch.eye(10)
    return SimpleNamespace(
        image_size=5,
        embed_images=lambda pixels: directions[pixels[:, 0, 0, 0].long() % 3],
        embed_texts=lambda texts: directions[[int(text) for text in texts]],
    )


def test_each_language_is_measured_on_its_own_pictures(row_scorer):
    english, german = evaluate_scorer(row_scorer, STORE)
    assert (english.language, english.pictures, german.language, german.pictures) == ("en", 4, "de", 3)
    assert english.recalls["text_to_image_at_1"] == english.recalls["zero_shot"] == 1
    # In German the third picture is named "1", which fits no picture with a German caption.
    assert german.recalls["image_to_text_at_1"] == pytest.approx(2 / 3)
    (alone,) = evaluate_scorer(row_scorer, STORE, ["de"])
    assert alone == german


def test_unknown_language_is_refused(row_scorer):
    with pytest.raises(UserError, match="no picture has a caption in 'fr'; there are de, en"):
        evaluate_scorer(row_scorer, STORE, ["fr"])


def test_recalls_are_plotted(row_scorer, tmp_path):
    pytest.importorskip("matplotlib")
    reports = evaluate_scorer(row_scorer, STORE)
    with Image.open(plot_recalls(reports, tmp_path / "bars.png")) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 3
    assert table_cells(reports[0])["text to image at 1"] == "1.000"


def test_missing_matplotlib_names_its_extra(row_scorer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib.*eval"):
        plot_recalls(evaluate_scorer(row_scorer, STORE), tmp_path / "bars.png")


# --- the command


def test_command_prints_and_writes_the_training_metrics(trained, tmp_path):
    path = tmp_path / "scorer.json"
    arguments = ["evaluate", "scorer", str(trained.folder / "model"), "--data", str(trained.folder / "store")]
    result = CliRunner().invoke(dalle, [*arguments, "--json", str(path), "--device", "cpu"], catch_exceptions=False)
    (language,) = json.loads(path.read_text())["languages"]
    assert language["pictures"] == 14
    assert f"{language['recalls']['zero_shot']:.3f}" in result.output
    last = [line for line in trained.log("scorer") if "zero_shot" in line][-1]
    scorer = Scorer.from_pretrained(str(trained.folder / "model"))
    assert language["recalls"].keys() == last.keys() - {"step"}
    assert scorer.image_size == 16


def test_command_prints_many_warnings_as_one_line(trained, monkeypatch):
    def evaluate(*_):
        for number in range(3):
            warnings.warn(f"caption {number} was cut", stacklevel=1)
        return [LanguageReport("en", 5, {"text_to_image_at_1": 0.5})]

    monkeypatch.setattr(measure, "evaluate_scorer", evaluate)
    result = CliRunner().invoke(
        dalle, ["evaluate", "scorer", str(trained.folder / "model"), "--data", str(trained.folder / "store")]
    )
    assert result.stderr.splitlines() == ["warning: caption 0 was cut; 2 more such warnings"]
