"""The `config.yaml` of a checkpoint."""

import shutil

import pytest
import yaml
from helpers.models import SAMPLING

from dalle_mini_impl.checkpoint.settings import load_settings, save_settings
from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_saved_settings_are_loaded(tmp_path):
    settings = SamplingConfig(temperature=0.7, top_k=97, top_p=0.9, guidance=4.5)
    save_settings(tmp_path / "heart", settings)
    assert load_settings(tmp_path / "heart").sampling == settings
    assert yaml.safe_load((tmp_path / "heart" / "config.yaml").read_text())["name"] == "heart"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "name: x",
        "sampling: [",
        "[]",
        "sampling: 3",
        "sampling: {topk: 3}",
        "sampling: {top_k: many}",
        "{sampling: {}, samplings: {}}",
        "{sampling: {}, about: {license: MIT}}",
        "{sampling: {}, about: {data: emoji}}",
        "{sampling: {}, about: {quality: [{what: share, value: high, command: x}]}}",
    ],
)
def test_damaged_settings_are_refused(folder, content):
    (folder / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_settings(folder)


def test_missing_or_binary_settings_are_refused(folder):
    assert load_settings(folder).sampling == SAMPLING
    (folder / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_settings(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"cannot read settings .*config\.yaml: No such file"):
        load_settings(folder)


def test_checkpoint_without_an_about_section_is_loaded(folder):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["about"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert load_settings(folder).about == AboutConfig()
    assert load_settings(folder).sampling == SAMPLING
