"""Options that all commands share: what they read and write."""

import json
import os

import click
import pytest
from click.testing import CliRunner
from helpers.commands import one_line

from dalle_mini_impl.cli import dalle, options
from dalle_mini_impl.util.errors import UserError

VALUES = {"名": ["a heart", 0.5]}


@click.command()
@options.json_option()
def report(json_file):
    """Print a line of text, then the values."""
    options.echo_text("a line of text", json_file)
    options.write_json_file(json_file, VALUES)


@pytest.fixture
def run_dalle(tmp_path, monkeypatch, tiny_dalle):
    """Run `dalle` in a folder with one picture, `grid.png`; it must succeed."""
    monkeypatch.chdir(tmp_path)
    tiny_dalle.generate("a cat", candidates=1).grid().save("grid.png")

    def run(*arguments):
        result = CliRunner().invoke(dalle, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.mark.parametrize("arguments", [["--json", "-"], ["--json"]])
def test_json_to_standard_output_leaves_no_text_there(arguments):
    result = CliRunner().invoke(report, arguments)
    assert json.loads(result.stdout) == VALUES
    assert "名" in result.stdout
    assert result.stderr == "a line of text\n"


def test_json_to_a_file_is_written_beside_the_text(tmp_path):
    path = tmp_path / "deep" / "out.json"
    result = CliRunner().invoke(report, ["--json", str(path)])
    assert result.stdout == f"a line of text\n{path}\n"
    assert json.loads(path.read_text(encoding="utf-8")) == VALUES
    assert CliRunner().invoke(report, []).stdout == "a line of text\n"


@pytest.mark.parametrize("target", ["-", "out.json"])
def test_json_escapes_only_what_cannot_be_encoded(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VALUES, "path", "a\udcff.png")
    result = CliRunner().invoke(report, ["--json", target], catch_exceptions=False)
    text = result.stdout if target == "-" else (tmp_path / target).read_text()
    assert json.loads(text) == VALUES


def test_json_writes_files_that_end_in_json_only(refused, tiny_model, tmp_path):
    for name in ("old.json", "photo.png"):
        (tmp_path / name).write_text("old")
    for name in ("photo.png", "a red heart"):
        error = one_line(refused("info", tiny_model, "--json", tmp_path / name))
        assert f"expected a file that ends in .json, got --json {tmp_path / name}; give --json - for" in error
    assert (tmp_path / "photo.png").read_text() == "old"
    assert not (tmp_path / "a red heart").exists()
    assert CliRunner().invoke(report, ["--json", str(tmp_path / "old.json")]).exit_code == 0
    assert json.loads((tmp_path / "old.json").read_text()) == VALUES


def test_json_files_that_cannot_be_written_are_refused(tiny_model, refused):
    error = refused("info", tiny_model, "--json", "/proc/nothing/out.json")
    assert "cannot write /proc/nothing/out.json" in one_line(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "MODEL"],
        ["write", "a red", "--model", "MODEL", "--candidates", "5"],
        ["sample", "a cat", "--model", "MODEL", "--candidates", "1", "--save-dir", "out"],
        ["complete", "grid.png", "--model", "MODEL", "--candidates", "1", "--panel"],
        ["paint", "a cat", "--model", "MODEL", "--steps", "1", "--cuts", "1"],
        ["caption", "grid.png", "--model", "MODEL", "--labels", "a cat"],
        ["classify", "grid.png", "--scorer", "MODEL", "--labels", "a cat,a dog"],
        ["plan", "configs/emoji/transformer.yaml"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_json_on_standard_output_is_all_there_is(run_dalle, tiny_model, arguments):
    result = run_dalle(*(str(tiny_model) if word == "MODEL" else word for word in arguments), "--json", "-")
    assert json.loads(result.stdout)


def test_texts_from_files_cannot_steer_the_terminal(capsys):
    text = "a\x1b[2Jb\x9b\x7f\u202e\udcff"
    options.echo_text(f"one\ttwo\n{text}", None)
    assert capsys.readouterr().out == "one\ttwo\na\\u001b[2Jb\\u009b\\u007f\\u202e\\udcff\n"
    options.write_json_file("-", {"key": text})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"key": text}
    assert printed.isascii()
    assert printed.replace("\n", "").isprintable()


def test_texts_files_of_every_encoding_are_split_at_line_ends_only(tmp_path):
    path = tmp_path / "texts.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("ein Herz\u2028rot\rzwei\x85drei\r\n\x0bvier\x1cfünf\n".encode(encoding))
        assert options.read_texts_file(path) == ["ein Herz\u2028rot", "zwei\x85drei", "vier\x1cfünf"]


def test_texts_files_that_never_end_or_hold_nul_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "wide.txt").write_bytes("ein Herz".encode("utf-16-le"))
    for name, message in (("pipe.txt", "a pipe"), ("zero.txt", "a device"), ("wide.txt", "NUL character")):
        with pytest.raises(UserError, match=message):
            options.read_texts_file(tmp_path / name)


def test_texts_files_have_one_text_per_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffein rotes Herz\r\n\n   \n  心形, lila  \n".encode())
    assert options.read_texts_file(path) == ["ein rotes Herz", "心形, lila"]
    path.write_bytes("grün".encode("latin-1"))
    for unreadable in (path, tmp_path, tmp_path / "absent.txt"):
        with pytest.raises(UserError, match=r"expected a UTF-8 file with one text per line, got .*; give --texts-file"):
            options.read_texts_file(unreadable)


def test_labels_are_split_at_commas_and_taken_once(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a fox\na cat, asleep\n", encoding="utf-8")
    assert options.read_labels(["a cat, a dog,", "a fox"], path) == ["a cat", "a dog", "a fox", "a cat, asleep"]
    with pytest.raises(UserError, match="expected at least one text, got none"):
        options.read_labels([" ,"], None)
