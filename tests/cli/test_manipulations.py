"""`dalle vary`, `dalle mix` and `dalle edit`."""

import shutil

import pytest
from helpers.priors import take_embeddings
from helpers.training import draw_shape
from PIL import Image, ImageSequence


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """The tiny checkpoint with a transformer that takes embeddings."""
    return take_embeddings(shutil.copytree(tiny_model, tmp_path_factory.mktemp("told") / "model"))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Two pictures in the current folder."""
    monkeypatch.chdir(tmp_path)
    draw_shape("disc", (200, 30, 40)).save("disc.png")
    draw_shape("square", (20, 30, 240)).save("square.png")


def same(first, second):
    with open(first, "rb") as one, open(second, "rb") as other:
        return one.read() == other.read()


def test_variations_are_drawn_again_from_their_file(run, model, pictures):
    run("vary", "disc.png", "-m", model, "-n", "4", "-k", "2", "-o", "varied.png")
    run("sample", "--from", "varied.png", "-m", model, "-o", "again.png")
    assert same("varied.png", "again.png")


def test_a_mix_is_a_strip_and_an_animation_and_is_drawn_again(run, model, pictures):
    printed = run("mix", "disc.png", "a red heart", "-m", model, "--steps", "4", "-o", "mix.png", "--frames", "mix.gif")
    assert printed.split() == ["mix.png", "mix.gif"]
    with Image.open("mix.gif") as frames:
        assert sum(1 for _ in ImageSequence.Iterator(frames)) == 4
    run("sample", "--from", "mix.png", "-m", model, "-o", "again.png")
    assert same("mix.png", "again.png")
    with Image.open("mix.png") as strip:
        assert strip.width > 4 * 40


def test_an_edit_is_a_strip_that_makes_itself_again(run, model, pictures):
    run("edit", "disc.png", "--from", "a cat", "--to", "a star", "--steps", "3", "-m", model)
    run("edit", "edit.png", "-m", model, "-o", "again.png", "--frames", "again.gif")
    assert same("edit.png", "again.png")


def test_bad_input_is_refused_in_one_line(refused, run, model, tiny_model, pictures):
    run("edit", "disc.png", "--to", "a star", "--steps", "2", "-m", model)
    for arguments, message in (
        (("edit", "disc.png", "-m", model), "expected --to, or a picture made by dalle edit, got disc.png"),
        (("edit", "nothing.png", "-m", model), "nothing.png"),
        (("edit", "edit.png", "-m", tiny_model), "expected checkpoint"),
        (("edit", "disc.png", "--to", "a star", "-m", tiny_model), "expected a model with positions"),
        (("edit", "disc.png", "--to", "a star", "--theta", "2", "-m", model), "--theta"),
        (("mix", "disc.png", "square.png", "--steps", "1", "-m", model), "--steps"),
        (("mix", "disc.png", "square.png", "--frames", "a.avi", "-m", model), "a.avi"),
        (("edit", "edit.png", "--theta", "0.2", "-m", model), "expected --to TEXT with --theta, got none"),
        (("edit", "edit.png", "--from", "a cat", "-m", model), "expected --to TEXT with --from, got none"),
        (("mix", "disc.png", "sqare.png", "-m", model), "sqare.png"),
        (("vary", "nothing.png", "-m", model), "nothing.png"),
    ):
        error = refused(*arguments)
        assert message in error
        assert len(error.strip().splitlines()) == 1
