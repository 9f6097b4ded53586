"""`dalle vary`, `dalle mix`, `dalle edit` and `dalle components`."""

import shutil
import sys

import pytest
from helpers.priors import take_embeddings
from helpers.training import draw_shape
from PIL import Image, ImageSequence

from dalle_mini_impl.painting.frames import LAST_FRAME_REPEATS
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.manipulations import component_views
from dalle_mini_impl.pipeline.picture_embed import to_text
from dalle_mini_impl.util.images import open_picture
from dalle_mini_impl.util.save_picture import read_metadata


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


def test_views_of_components_are_a_strip_that_is_drawn_again(run, model, pictures):
    chosen = ("--components", "0,2,19", "--seed", "3", "--prompt", "a star", "--zoom", "2", "--frames", "views.gif")
    assert run("components", "disc.png", "disc.png", "square.png", "-m", model, *chosen).split() == [
        "components.png",
        "views.gif",
    ]
    run("sample", "--from", "components.png", "-m", model, "-o", "again.png")
    assert same("components.png", "again.png")
    embeds = [one["image_embed"] for one in read_metadata("components.png")["pictures"]]
    expected = component_views(
        DalleMini.from_pretrained(model, "cpu"),
        open_picture("disc.png"),
        [open_picture(path) for path in ("disc.png", "square.png")],
        [0, 2, 19],
    )
    assert embeds == [to_text(view.image_embed) for view in expected]
    run("components", "disc.png", "disc.png", "square.png", "-m", model)  # 1, 2, 4, 8, 16 and all 19
    assert len(read_metadata("components.png")["pictures"]) == 6


def test_components_are_drawn_by_the_decoder_that_is_asked_for(refused, model, pictures):
    error = refused("components", "disc.png", "disc.png", "square.png", "-m", model, "--decoder", "diffusion")
    assert "expected a checkpoint with a diffusion decoder" in error


def test_a_mix_can_be_a_video(run, model, pictures):
    av = pytest.importorskip("av")
    run("mix", "disc.png", "square.png", "-m", model, "--steps", "4", "--frames", "mix.mp4")
    with av.open("mix.mp4") as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    assert len(frames) == 4 + LAST_FRAME_REPEATS - 1
    run("mix", "disc.png", "square.png", "-m", model, "--steps", "4", "--frames", "mix.gif")
    with Image.open("mix.gif") as animation:
        assert frames[0].size == tuple(side + side % 2 for side in animation.size)


def test_a_video_without_its_library_is_refused_before_anything_is_drawn(refused, model, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for command in (("mix", "disc.png", "square.png"), ("edit", "disc.png", "--to", "a star")):
        error = refused(*command, "-m", model, "--frames", "a.mp4")
        assert "av is not installed" in error
        assert "[video]" in error
        assert len(error.strip().splitlines()) == 1


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
        (("components", "disc.png", "nothing.png", "-m", model), "nothing.png"),
        (
            ("components", "disc.png", "square.png", "-m", model),
            "expected at least 2 pictures for principal components",
        ),
        (("components", "disc.png", *["disc.png"] * 2, "--components", "20", "-m", model), "components from 0 to 19"),
        (("components", "disc.png", "disc.png", "square.png", "-m", tiny_model), "expected a model with positions"),
    ):
        error = refused(*arguments)
        assert message in error
        assert len(error.strip().splitlines()) == 1
