"""`dalle complete`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.commands import one_line
from PIL import Image

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.complete import box_in_pixels, read_box
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

SIZE = (40, 24)


@pytest.fixture(scope="module")
def picture():
    """A smooth picture at the model's size."""
    values = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE, Image.Resampling.BICUBIC)


def rgb_values(image):
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, picture):
    """Run `dalle complete` on a file of the picture, three candidates."""
    monkeypatch.chdir(tmp_path)
    picture.save("in.png")

    def complete(*arguments):
        fixed = ["--device", "cpu", "--model", str(tiny_model), "--candidates", "3"]
        result = CliRunner().invoke(dalle, ["complete", *fixed, *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return complete


def test_the_command_gives_the_pictures_of_the_api(run, tiny_dalle, picture):
    done = run("in.png", "a cat", "--keep-rows", 2, "--keep", 2, "--seed", 7, "--save-dir", "out", "--columns", 3)
    expected = tiny_dalle.complete(picture, "a cat", rows=2, candidates=3, keep=2, seed=7)
    with Image.open("grid.png") as sheet:
        assert np.array_equal(rgb_values(sheet), rgb_values(expected.grid(columns=3)))
    assert read_metadata("grid.png")["canvas"] == expected.settings["canvas"]
    assert done.stdout.startswith("a cat: best score ")
    assert done.stdout.splitlines()[-2:] == ["grid.png", "out"]
    assert "redrawing 5 of 15 cells\n" in done.stderr


def test_the_first_preview_shows_what_is_kept(run, monkeypatch, picture):
    written = []
    monkeypatch.setattr("dalle_mini_impl.util.save_picture.save_picture", lambda image, *_: written.append(image))
    run("in.png", "--box", "16,8,40,24", "--keep", 1, "--preview", "so-far.png")
    first, *_, last, grid = written
    expected = picture.convert("RGB")
    expected.paste("white", (16, 8, 40, 24))
    assert np.array_equal(rgb_values(first.crop((4, 4, 44, 28))), rgb_values(expected))
    assert np.array_equal(rgb_values(last.crop((4, 4, 44, 28))), rgb_values(grid.crop((48, 4, 88, 28))))


def test_scorer_and_zoom_work_as_for_sample(run, tiny_dalle, other_scorer, picture):
    run("in.png", "--keep-rows", 2, "--keep", 2, "--scorer", other_scorer, "--zoom", 2)
    expected = tiny_dalle.complete(picture, rows=2, candidates=3, keep=3, rank="none")
    metadata = read_metadata("grid.png")
    assert (metadata["scorer"]["name"], metadata["sampling"]["rank"]) == (str(other_scorer), "both")
    assert metadata["zoom"] == 2
    candidates = {candidate.seed: candidate.image for candidate in expected}
    with Image.open("grid.png") as sheet:
        shown = [picture, *(candidates[drawn["seed"]] for drawn in metadata["pictures"])]
        for number, image in enumerate(shown):
            left, top = 4 + number % 2 * 84, 4 + number // 2 * 52
            cell = sheet.crop((left, top, left + 80, top + 48))
            assert np.array_equal(rgb_values(cell), rgb_values(image).repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("arguments", "redrawn"),
    [
        (["--box", "16,8,40,24"], [".....", "..###", "..###"]),
        (["--mask", "mask.png"], [".....", ".#...", "....."]),
        (["--panel"], [".....", "#####", "#####"]),
    ],
)
def test_each_kind_of_region_reaches_the_model(run, arguments, redrawn):
    mask = Image.new("L", SIZE)
    mask.paste(255, (8, 8, 16, 16))
    mask.save("mask.png")
    done = run("in.png", *arguments, "--no-paste", "--json", "-")
    report = json.loads(done.stdout)[0]["canvas"]
    assert (report["redrawn"], report["paste"]) == (redrawn, False)
    kept_later = "".join(redrawn).lstrip(".").count(".")
    assert (f"{kept_later} kept cells come after" in done.stderr) == (kept_later > 0)


def test_variations_record_their_strength(run):
    done = run("in.png", "--variations", "--strength", 0.2, "--json", "-")
    assert json.loads(done.stdout)[0]["canvas"]["strength"] == 0.2


def test_transparent_parts_become_white(run):
    Image.new("RGBA", (57, 91), (0, 0, 0, 0)).save("clear.png")
    run("clear.png", "a cat", "--keep-rows", 1)
    with Image.open("grid.png") as sheet:
        assert rgb_values(sheet)[4:12, 4:44].min() == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.png"], "expected one of --keep-rows, --box, --mask, --panel, --variations, got none; choose"),
        (["in.png", "--keep-rows", "1", "--variations"], "got --keep-rows and --variations"),
        (["in.png", "--keep-rows", "3"], "expected 1 to 2 of the model's 3 rows to keep, got 3 rows"),
        (["in.png", "--keep-rows", "0"], "rows to keep, got 0 rows"),
        (["in.png", "--box", "1,2,3"], "expected four whole numbers LEFT,TOP,RIGHT,BOTTOM, got --box 1,2,3;"),
        (["in.png", "--box", "1,2,3,x"], "--box 1,2,3,x"),
        (
            ["in.png", "--box", "1,2,3,99"],
            "inside the 40×24 pixels of the picture, with left < right and top < bottom, got 1,2,3,99",
        ),
        (["in.png", "--mask", "large.png"], "expected a mask of 40×24 pixels, the size of the picture, got 41×24"),
        (["in.png", "--mask", "black.png"], "expected something to redraw"),
        (["in.png", "--mask", "gone.png"], "gone.png is not a readable picture"),
        (["gone.png", "--panel"], "gone.png is not a readable picture"),
        (["in.png", "--variations", "--strength", "2"], "expected a strength above 0 and at most 1, got 2.0"),
        (["in.png", "--panel", "--candidates", "0"], "'--candidates' / '-n': 0 is not in the range x>=1"),
        (["in.png", "--panel", "--chunk", "0"], "'--chunk': 0 is not in the range x>=1"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tiny_model, tmp_path, monkeypatch, picture, arguments, message):
    monkeypatch.chdir(tmp_path)
    picture.save("in.png")
    Image.new("L", SIZE).save("black.png")
    Image.new("L", (41, 24), 255).save("large.png")
    error = refused("complete", *arguments, "--model", tiny_model, "--device", "cpu")
    assert message in one_line(error)


def test_sample_refuses_to_repeat_a_completed_picture(run, refused):
    run("in.png", "--keep-rows", 1)
    error = refused("sample", "--from", "grid.png")
    assert "got grid.png, which was made from another picture; run dalle complete on that one again" in error


def test_a_box_in_percent_is_that_part_of_a_picture_of_any_size():
    assert box_in_pixels(read_box("25%, 0%,75%,50%") or [], (1000, 300)) == (250, 0, 750, 150)
    assert box_in_pixels(read_box("0,33.5%,100%,100%") or [], (7, 9)) == (0, 3, 7, 9)
    assert box_in_pixels(read_box("1,2,3,4") or [], (7, 9)) == (1, 2, 3, 4)
    with pytest.raises(UserError, match=r"got --box 1%%,0,2,3; try --box 0,0,32,32, or percentages"):
        read_box("1%%,0,2,3")
