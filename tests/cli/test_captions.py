"""`dalle write` and `dalle caption`."""

import json

import pytest
import torch
from click.testing import CliRunner
from helpers.models import GRID
from PIL import Image

from dalle_mini_impl.cli import dalle


@pytest.fixture
def run(tiny_model):
    """Run a command of `dalle` on the tiny model."""

    def invoke(*words):
        command = ["--model", str(tiny_model), "--device", "cpu"]
        result = CliRunner().invoke(dalle, [words[0], *command, *map(str, words[1:])], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return invoke


@pytest.fixture
def pictures(tmp_path, tiny_dalle):
    """Two pictures that the image tokenizer decoded."""
    ids = torch.randint(61, (2, *GRID), generator=torch.Generator().manual_seed(0))
    for name, image in zip("ab", tiny_dalle.decode(ids), strict=True):
        image.save(tmp_path / f"{name}.png")
    return [tmp_path / "a.png", tmp_path / "b.png"]


def test_write_prints_captions_likeliest_first(run, tiny_dalle):
    arguments = ("write", "a red", "--candidates", 17, "--keep", 3, "--seed", 5, "--temperature", 0.8, "--top-k", 50)
    expected = tiny_dalle.complete_text("a red", candidates=17, keep=3, seed=5, temperature=0.8, top_k=50)
    assert len(expected) == 3
    lines = [line.split(maxsplit=1) for line in run(*arguments).stdout.splitlines()]
    assert [text for _, text in lines] == [text for text, _ in expected]
    assert [float(nats) for nats, _ in lines] == pytest.approx([nats for _, nats in expected], abs=0.006)
    entries = json.loads(run(*arguments, "--json", "-").stdout)
    assert [(entry["text"], entry["nats"]) for entry in entries] == expected
    assert run(*arguments, "--top-p", 0.2).stdout != run(*arguments).stdout


def test_write_needs_no_beginning(run):
    assert run("write", "--candidates", 64).stdout


def test_write_refuses_bad_input(refused, tiny_model):
    fixed = ("--model", tiny_model, "--device", "cpu")
    for arguments, message in (
        (("a red heart with a hat",), "expected a beginning of at most 6 text ids, got"),
        (("--candidates", 0), "'--candidates' / '-n': 0 is not in the range x>=1"),
        (("--top-k", 999), "got 999; 0 keeps all ids"),
        (("--seed", -1), "'--seed' / '-s': -1 is not in the range x>=0"),
    ):
        error = refused("write", *fixed, *arguments)
        assert message in error
        assert error.count("\n") == 1


def test_caption_ranks_given_captions(run, pictures, tmp_path, tiny_dalle):
    (tmp_path / "captions.txt").write_text("a cat\n\na tree\n", encoding="utf-8")
    arguments = (
        "caption",
        *pictures,
        "--labels",
        "a house,star",
        "--texts-file",
        tmp_path / "captions.txt",
        "--keep",
        3,
    )
    with Image.open(pictures[0]) as image:
        expected = tiny_dalle.caption(image, ["a house", "star", "a cat", "a tree"], keep=3)
    result = run(*arguments)
    lines = result.stdout.splitlines()
    assert [lines[0], lines[4]] == [str(path) for path in pictures]
    assert [line.split(maxsplit=1) for line in lines[1:4]] == [[f"{one.gain:+.2f}", one.text] for one in expected]
    assert result.stderr.splitlines() == ["ranking 4 captions for 2 pictures"]
    entries = json.loads(run(*arguments, "--json", "-").stdout)
    assert [entry["image"] for entry in entries] == [str(path) for path in pictures]
    assert entries[0]["captions"] == [vars(one) for one in expected]
    blind = json.loads(run(*arguments, "--json", "-", "--blind").stdout)
    prior = json.loads(run(*arguments, "--json", "-", "--prior").stdout)
    assert blind[0]["captions"][0]["gain"] != entries[0]["captions"][0]["gain"]
    sums = [one["gain"] + one["nats"] for one in prior[0]["captions"]]
    assert sums == sorted(sums, reverse=True)


def test_caption_samples_captions_where_none_are_given(run, pictures, tiny_dalle):
    result = run("caption", pictures[0], "--beginning", "a red", "--candidates", 17, "--seed", 5, "--json", "-")
    with Image.open(pictures[0]) as image:
        expected = tiny_dalle.caption(image, beginning="a red", candidates=17, seed=5)
    (entry,) = json.loads(result.stdout)
    assert [one["text"] for one in entry["captions"]] == [one.text for one in expected]


def test_caption_refuses_bad_input(refused, pictures, tmp_path, tiny_model):
    (tmp_path / "empty.txt").write_text("\n")
    fixed = ("--model", tiny_model, "--device", "cpu")
    for arguments, message in (
        ((pictures[0], "--texts-file", tmp_path / "empty.txt"), "expected at least one text, got none"),
        ((pictures[0], "--texts-file", tmp_path / "absent.txt"), "expected a UTF-8 file with one text per line, got"),
        ((tmp_path / "absent.png", "--labels", "a,b"), "absent.png is not a readable picture"),
        ((pictures[0], "--labels", "a,b", "--keep", 0), "'--keep' / '-k': 0 is not in the range x>=1"),
    ):
        error = refused("caption", *fixed, *arguments)
        assert message in error
        assert error.splitlines()[-1].startswith("error: ")
