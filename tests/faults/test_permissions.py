"""Commands of a user who may not read or write everything: one line, nothing lost."""

import ctypes
import os
import shutil
import sys
import tempfile

import pytest
from helpers.pictures import random_picture
from helpers.processes import Forked
from helpers.training import make_pictures

from dalle_mini_impl import cli

ROW = "a user without permission, or without a home"
CAPABILITY_VERSION = 0x20080522


WRITING = {
    "sample": ["sample", "a cat", "--model", "{model}", "--candidates", "1", "--device", "cpu"],
    "complete": [
        "complete",
        "{picture}",
        "--model",
        "{model}",
        "--candidates",
        "1",
        "--keep-rows",
        "1",
        "--device",
        "cpu",
    ],
    "paint": ["paint", "a cat", "--model", "{model}", "--steps", "1", "--device", "cpu"],
    "index": ["index", "{pictures}", "--scorer", "{model}", "--out", "index", "--device", "cpu"],
    "store": ["data", "store", "{pictures}", "--out", "store"],
    "inspect": ["data", "inspect", "{pictures}", "--json", "report.json"],
    "emoji": ["data", "emoji", "--out", "emoji"],
    "config": ["config", "copy", "small", "configs"],
    "info": ["info", "{model}", "--json", "report.json"],
}
"""Command -> its arguments, which write to the current folder."""
READING = {
    "sample": ["sample", "a cat", "--model", "{model}", "--device", "cpu"],
    "classify": ["classify", "{picture}", "--labels", "a,b", "--scorer", "{model}", "--device", "cpu"],
    "index": ["index", "{pictures}", "--scorer", "{model}", "--device", "cpu"],
    "caption": ["caption", "{picture}", "--labels", "a,b", "--model", "{model}", "--device", "cpu"],
    "write": ["write", "a", "--model", "{model}", "--device", "cpu"],
    "inspect": ["data", "inspect", "{pictures}"],
    "info": ["info", "{model}"],
}
"""Command -> its arguments, of which it cannot read some."""


def obey_permissions():
    """Have the permissions of files apply to root too, as they do to everybody else."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def place(tiny_model, tmp_path):
    """A model, pictures, and outputs that may not be replaced in `here`."""
    folder = tmp_path / "place"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    make_pictures(folder / "pictures")
    random_picture(0, 16, 16).save(folder / "picture.png")
    (folder / "here").mkdir()
    for name in ("grid.png", "painting.png", "report.json"):
        (folder / "here" / name).write_text("precious")
        (folder / "here" / name).chmod(0o444)
    (folder / "here").chmod(0o555)
    yield folder
    for path in (folder / "here", folder / "model", folder / "pictures"):
        path.chmod(0o755)


@pytest.fixture
def as_user(place, tmp_path):
    """Run `dalle` in `here`; gives its exit code and what it printed."""

    def run(arguments, **environment):
        names = {"model": place / "model", "pictures": place / "pictures", "picture": place / "picture.png"}

        def child():
            os.chdir(place / "here")
            os.environ.update({"HOME": "/nonexistent", **environment})
            os.environ.pop("XDG_CACHE_HOME", None)
            tempfile.tempdir = None
            obey_permissions()
            sys.argv = ["dalle", *(argument.format(**names) for argument in arguments)]
            try:
                cli.main()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code)

        process = Forked(tmp_path / "output", child)
        code = process.wait()
        return code, process.output.read_text()

    return run


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_one_line(code, output, reason="denied"):
    """Whether a command ended with an error of one line, after messages about what it does."""
    last = output.splitlines()[-1]
    return code == 2 and "Traceback" not in output and last.startswith("error: ") and reason in last


@pytest.mark.parametrize("command", WRITING)
def test_what_may_not_be_written_is_named_and_stays(place, as_user, report, command):
    before = content(place)
    code, output = as_user(WRITING[command])
    assert is_one_line(code, output, "cannot write"), output
    assert content(place) == before
    report(ROW, f"writing: {command}")


@pytest.mark.parametrize("command", READING)
def test_what_may_not_be_read_is_named(place, as_user, report, command):
    (place / ("model" if "{model}" in READING[command] else "pictures")).chmod(0)
    code, output = as_user(READING[command])
    assert is_one_line(code, output, ""), output
    report(ROW, f"reading: {command}")


@pytest.mark.parametrize("file", ["config.yaml", "transformer.safetensors", "text_tokenizer.model"])
def test_a_part_that_may_not_be_read_is_named(place, as_user, file):
    (place / "model" / file).chmod(0)
    code, output = as_user(READING["write"])
    assert is_one_line(code, output, f"{file}: permission denied"), output


@pytest.mark.parametrize("missing", ["HOME", "TMPDIR"])
def test_without_a_home_or_a_temporary_folder_pictures_are_drawn(place, as_user, missing, report):
    (place / "here").chmod(0o755)
    (place / "here/grid.png").unlink()
    code, output = as_user(WRITING["sample"], **{missing: "/nonexistent"})
    assert code == 0, output
    assert (place / "here/grid.png").is_file()
    report(ROW, f"drawing without {missing}")


def test_unreadable_pictures_are_counted_and_the_others_indexed(place, as_user):
    (place / "pictures/red-disc.png").chmod(0)
    code, output = as_user(READING["index"])
    assert code == 0, output
    assert "41 new" in output
    assert "1 unreadable" in output
