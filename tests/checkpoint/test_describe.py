"""Description of checkpoints, and agreement of the shipped one's figures with the measurements."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.models import SAMPLING
from helpers.priors import add_prior

from dalle_mini_impl.checkpoint import parts as checkpoint
from dalle_mini_impl.checkpoint.describe import checkpoint_info, info_lines
from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.settings import load_settings, save_settings
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.checkpoint import AboutConfig, Figure
from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.config.yaml_io import load, to_dict
from dalle_mini_impl.util.errors import UserError

ROOT = Path(__file__).parents[2]
FIGURES = (Figure(what="hearts that look like hearts", value=0.75, command="dalle evaluate hearts"),)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_info_lines_describe_every_part(tiny_model):
    facts = checkpoint_info(tiny_model)
    lines = info_lines(facts)
    identities = {name: facts[name]["identity"] for name in ("text_tokenizer", *checkpoint.PARTS) if name in facts}
    words = identities["text_tokenizer"]
    assert lines[0] == f"checkpoint: {checkpoint.fingerprint(tiny_model)}"
    assert lines[2] == f"text tokenizer: 367 ids; {facts['text_tokenizer']['megabytes']} MB, identity {words}"
    assert lines[3].startswith("image tokenizer: 24×24 pixels <-> 3×3 ids of 61 (vq); ")
    assert lines[4].startswith("transformer: 3 layers of width 24 with 2 heads over 1 + 7 text + 15 image ids; ")
    others = f"trained with text tokenizer {words} and image tokenizer {identities['image_tokenizer']}"
    assert lines[4].endswith(f"{identities['transformer']}; {others}")
    assert lines[5].startswith("scorer: CLIP of width 22, 1 layers over 14×14 pixels and 1 over 11 text ids; ")
    numbers = sum(tensor.numel() for tensor in checkpoint.read_part(tiny_model, "scorer").tensors.values())
    assert f"; {numbers:,} weights, {facts['scorer']['megabytes']} MB, identity {identities['scorer']}; " in lines[5]
    assert lines[6].startswith("sampling: temperature 0.9, top_k 53, ")
    assert lines[7:] == ["languages: not said", "licence: not said", "trained on: not said", "measured: not said"]


def test_info_lines_describe_a_prior(tiny_model, tmp_path):
    folder = add_prior(shutil.copytree(tiny_model, tmp_path / "model"), "ar")
    (line,) = [line for line in info_lines(checkpoint_info(folder)) if line.startswith("prior: ")]
    assert line.startswith(
        "prior: ar prior of 1 layers of width 12 with 2 heads over 9 text ids and 5 components of 16 "
    )
    assert re.search(r"; trained with text tokenizer \w{16} and embeddings \w{16} and scorer \w{16}$", line)


def test_json_of_the_previous_version_is_read_with_a_warning(tiny_model):
    info = checkpoint_info(tiny_model)
    lines = info_lines(info)
    info["scorer"]["numbers"] = info["scorer"].pop("parameters")
    with pytest.warns(UserWarning, match="'numbers' in a checkpoint's JSON is now called 'parameters'"):
        assert info_lines(info) == lines


def test_info_lines_name_masks_and_a_missing_bos(tiny_model):
    facts = checkpoint_info(tiny_model)
    config = facts["transformer"]["config"]
    config["stream"]["bos_id"], config["transformer"]["attention_masks"] = -1, ["row", "column"]
    config["transformer"]["last_attention_mask"] = "conv"
    expected = "with 2 heads over 7 text + 15 image ids; attention row, column, at last conv; "
    assert expected in info_lines(facts)[4]


def test_megabytes_are_those_of_the_files():
    folder = find_checkpoint("emoji")
    facts, total = checkpoint_info(folder), 0.0
    files = {path.stem: path for path in folder.glob("*.safetensors")}
    for name, path in {"text_tokenizer": folder / "text_tokenizer.model", **files}.items():
        size = path.stat().st_size / 1e6
        assert abs(facts[name]["megabytes"] - size) <= 0.05
        total += size
    assert abs(float(info_lines(facts)[1].removeprefix("size: ").removesuffix(" MB")) - total) < 0.2


def test_about_section_is_shown_and_figures_of_another_checkpoint_are_marked(folder):
    about = AboutConfig(
        licence="MIT",
        languages=("en", "no"),
        data=("hearts", "stars"),
        quality=FIGURES,
        measured_on=checkpoint.fingerprint(folder),
    )
    save_settings(folder, SAMPLING, about)
    assert load_settings(folder).about == about
    figure = "  hearts that look like hearts: 0.75 (dalle evaluate hearts)"
    assert info_lines(checkpoint_info(folder))[7:] == [
        "languages: en, no",
        "licence: MIT",
        "trained on:",
        "  hearts",
        "  stars",
        "measured:",
        figure,
    ]
    # Without its scorer it is another checkpoint, to which the figures do not apply.
    (folder / "scorer.safetensors").unlink()
    assert info_lines(checkpoint_info(folder))[-2:] == [
        f"measured on another checkpoint ({about.measured_on}):",
        figure,
    ]
    save_settings(folder, SAMPLING, AboutConfig(quality=FIGURES))
    assert info_lines(checkpoint_info(folder))[-2] == "measured on another checkpoint (not said which):"


def test_json_of_dalle_info_holds_the_same_values_as_its_lines(folder):
    save_settings(folder, SAMPLING, AboutConfig(licence="MIT", quality=FIGURES))
    facts = json.loads(CliRunner().invoke(dalle, ["info", str(folder), "--json"], catch_exceptions=False).stdout)
    assert facts == {"model": str(folder), **checkpoint_info(folder)}
    assert facts["about"]["quality"][0]["value"] == 0.75
    printed = CliRunner().invoke(dalle, ["info", str(folder)], catch_exceptions=False).stdout
    assert printed.splitlines() == [f"model: {folder}", *info_lines(facts)]


# --- the shipped model


@pytest.fixture(scope="module")
def shipped():
    return find_checkpoint("emoji")


def test_shipped_card_agrees_with_the_about_section(shipped):
    about, card = load_settings(shipped).about, (shipped / "MODEL_CARD.md").read_text(encoding="utf-8")
    words = " ".join(card.split())
    assert f"languages: {', '.join(about.languages)}." in words
    assert f"under {about.licence}," in words
    for figure in about.quality:
        assert f"{figure.value:g}".lstrip("0") in words
        assert figure.command in words
    for source in about.data:
        name, licence = source.split(", ")[0], source.rsplit("(", 1)[1].rstrip(")")
        assert name.split()[0] in words
        assert licence in words


def test_shipped_figures_are_those_measured_on_the_shipped_checkpoint(shipped):
    if not (ROOT / "docs").is_dir():
        pytest.skip("the measurements are in the checkout")
    about = load_settings(shipped).about
    measured = json.loads((ROOT / "docs/evaluation.json").read_text())
    assert about.measured_on == checkpoint.fingerprint(shipped) == measured["checkpoint"]
    shares = {row["name"].strip(): row["shares"]["efficientnet"][1]["value"] for row in measured["rows"]}
    recalls = {
        row["language"]: row["recalls"] for row in json.loads((ROOT / "docs/scorer.json").read_text())["languages"]
    }
    expected = [
        shares["held-out pairs, best of 16"],
        shares["no style word, best of 16"],
        recalls["en"]["text_to_image_at_5"],
    ]
    assert [figure.value for figure in about.quality[:3]] == [round(value, 2) for value in expected]
    assert set(about.languages) == set(recalls)


def test_training_config_has_the_shipped_about_section(shipped):
    about, trained = load_settings(shipped).about, load(TransformerRun, "configs/emoji/transformer.yaml")
    assert (trained.about.licence, trained.about.data) == (about.licence, about.data)
    assert set(trained.language_weights) == set(about.languages)


def test_an_image_tokenizer_without_a_token_grid_is_refused():
    part = {"config": to_dict(ImageTokenizerConfig()) | {"factor": 0}, "identity": "a", "megabytes": 1.0}
    with pytest.raises(UserError, match="expected factor of 1 or more, got 0"):
        info_lines({"image_tokenizer": part})
