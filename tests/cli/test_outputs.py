"""What commands write is checked before they compute anything."""

import os

import click
import pytest
from click.testing import CliRunner
from helpers.commands import all_commands, one_line
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.outputs import OutputFile
from dalle_mini_impl.util.errors import UserError

WORDS = ("file", "out", "sheet", "plot", "document", "frames", "confusion", "json")
NOT_WRITTEN = {"--out", "--texts-file"}
"""`--out FOLDER` of commands that replace whole folders, which they check themselves; and a file that is read."""


def run(*arguments):
    result = CliRunner().invoke(dalle, [*map(str, arguments)], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        return f"error: {result.exception}\n"
    return f"error: {result.stderr.splitlines()[-1]}\n" if result.exit_code else ""


@pytest.mark.parametrize(
    "words", [words for words, command in all_commands().items() if not isinstance(command, click.Group)]
)
def test_every_option_that_names_a_file_to_write_is_checked_when_it_is_read(words):
    for option in all_commands()[words].params:
        name = option.opts[0]
        if isinstance(option, click.Option) and name not in NOT_WRITTEN and name.lstrip("-") in WORDS:
            assert isinstance(option.type, OutputFile), name


@pytest.fixture
def absent_model(tmp_path, monkeypatch):
    """A model that does not exist: outputs are refused before it is looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    return tmp_path / "absent"


SAMPLE = ("sample", "a cat", "--model")
COMPLETE = ("complete", "photo.png", "--keep-rows", "1", "--model")
PAINT = ("paint", "a cat", "--model")


@pytest.mark.parametrize("command", [SAMPLE, COMPLETE, PAINT])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "folder.png"), "folder.png to be a file, got a folder"),
        (("--out", "a.gif"), r"expected a.gif to end in .png or .jpg or .jpeg or .webp, got .gif; rename it"),
        (("--out", "a.txt"), "expected a.txt to end in .png"),
        (("--out", "picture"), "got no ending"),
        (("--out", "photo.png/a.png"), "cannot write photo.png/a.png"),
        (("--json", "folder.png"), "expected a file that ends in .json"),
        (("--json", "photo.png/a.json"), "cannot write photo.png/a.json"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_first(absent_model, command, options, message):
    assert message in one_line(run(*command, absent_model, *options))


@pytest.mark.parametrize("command", [SAMPLE, COMPLETE])
def test_folders_and_numbers_of_columns_are_refused_first(absent_model, command):
    assert "photo.png: Not a directory" in one_line(run(*command, absent_model, "--save-dir", "photo.png"))
    assert "--columns" in run(*command, absent_model, "--columns", -1)


def test_animations_of_other_formats_are_refused_first(absent_model):
    assert "to end in .gif or .mp4" in one_line(run(*PAINT, absent_model, "--frames", "a.webm"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_write_permission_are_refused_first(absent_model, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write locked/a.png" in one_line(run(*SAMPLE, absent_model, "--out", "locked/a.png"))


def test_devices_may_have_any_name(absent_model):
    assert "no model" in one_line(run(*SAMPLE, absent_model, "--out", os.devnull))
