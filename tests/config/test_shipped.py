from pathlib import Path

import pytest
import yaml
from helpers.training import ROOT

from dalle_mini_impl.config.shipped import find_configs, purpose, shipped_configs
from dalle_mini_impl.config.training import ScorerRun
from dalle_mini_impl.config.yaml_io import load


def test_every_shipped_file_is_listed_with_its_purpose(run):
    lines = run("config", "list").splitlines()
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[: lines.index("")]}
    assert set(listed) == {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert listed["300m"] == purpose(ROOT / "configs/300m.yaml")
    assert all(listed.values())


def test_a_folders_stages_are_listed_in_the_order_in_which_they_run(run):
    names = [line.split()[0] for line in run("config", "list").splitlines() if line.startswith("small/")]
    stages = ("text_tokenizer", "image_tokenizer", "encode", "transformer", "scorer")
    assert names == [f"small/{stage}" for stage in stages]


@pytest.mark.parametrize("name", ["emoji/scorer", "emoji/scorer.yaml", "configs/emoji/scorer.yaml"])
def test_show_prints_the_file(run, name):
    assert run("config", "show", name) == (ROOT / "configs/emoji/scorer.yaml").read_text()


def test_show_all_prints_the_defaults_too(run, tmp_path):
    printed = run("config", "show", "small/scorer", "--all")
    assert yaml.safe_load(printed)["optimizer"]["clip"] == 1.0
    (tmp_path / "all.yaml").write_text(printed)
    assert load(ScorerRun, tmp_path / "all.yaml") == load(ScorerRun, "configs/small/scorer.yaml")
    assert yaml.safe_load(run("config", "show", "dalle1/small", "--all"))["model"]["mask_origin"] == "input"


def test_copies_can_be_edited(run, tmp_path):
    out = tmp_path / "new" / "mine"
    assert run("config", "copy", "small", out).split() == [str(path) for path in sorted(out.iterdir())]
    assert {path.name for path in out.iterdir()} == {path.name for path in (ROOT / "configs/small").iterdir()}
    assert (out / "scorer.yaml").read_bytes() == (ROOT / "configs/small/scorer.yaml").read_bytes()
    assert run("config", "copy", "300m", out) == f"{out / '300m.yaml'}\n"


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "scorer.yaml").write_text("mine")
    message = run("config", "copy", "small", tmp_path, code=2)
    assert message.startswith(f"{tmp_path / 'scorer.yaml'} exists already; expected a folder without it")
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.yaml"]
    assert (tmp_path / "scorer.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "emojy/scorer"], "no shipped config is called 'emojy/scorer'; did you mean 'emoji/scorer'?"),
        (["copy", "zzz", "out"], "no shipped config is called 'zzz'; dalle config list prints the names"),
        (["show", "vqgan/"], None),
        (["show", "small"], "'small' is a folder; expected one file, so name one of: small/"),
        (["show", "accelerate/gpu", "--all"], "accelerate/gpu is no training stage's config"),
        (["show", "compare/vqgan", "--all"], "compare/vqgan is no training stage's config"),
    ],
)
def test_names(run, arguments, message):
    if message is None:
        assert run("config", *arguments).startswith("# Stage 2 as a VQGAN")  # a folder of one file
    else:
        assert message in run("config", *arguments, code=2)


def test_configs_of_a_folder_of_the_users_own_are_not_taken_for_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text("# mine\n")
    assert "mine" not in shipped_configs()
    assert set(find_configs("configs/emoji/encode.yaml")) == {"emoji/encode"}
