"""`dalle paint`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.infotext import parse_infotext, text_of
from PIL import Image, ImageSequence

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.paint import read_size
from dalle_mini_impl.painting.painter import Painter
from dalle_mini_impl.painting.targets import Target
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.save_picture import read_metadata

QUICK = ("--steps", 4, "--cuts", 3, "--device", "cpu")


def run(*arguments):
    result = CliRunner().invoke(dalle, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_every_option_reaches_the_painter(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save("start.png")
    loss = ["--scorer", tiny_model, "--chunk", 2, "--learning-rate", 3, "--noise-prompt", "7:0.2"]
    start = ["--size", "16x24", "--init-image", "start.png", "--init-weight", 0.5, "--seed", 3]
    files = ["--out", "out/fox.png", "--preview-every", 2, "--frames", "out/way.gif", "--frame-count", 3]
    prompts = ["a red heart:1.5 | start.png:0.5", "snow:-0.3"]
    result = run("paint", *prompts, "--model", tiny_model, *QUICK, *loss, *start, *files)
    assert result.stdout.splitlines()[-2:] == ["out/way.gif", "out/fox.png"]
    assert result.stdout.startswith(f"{tiny_model}: loss ")
    metadata = read_metadata("out/fox.png")
    assert metadata["prompts"] == [
        {"text": "a red heart", "weight": 1.5},
        {"picture": "start.png", "weight": 0.5},
        {"text": "snow", "weight": -0.3},
        {"noise": 7, "weight": 0.2},
    ]
    assert metadata["model"] == str(tiny_model)
    assert metadata["scorers"] == [str(tiny_model)]
    assert (metadata["init_image"], metadata["steps"]) == ("start.png", 4)
    expected = {"size": [16, 24], "learning_rate": 3, "seed": 3, "init_weight": 0.5, "steps": 4}
    assert expected.items() <= metadata["paint"].items()
    assert {"count": 3, "chunk": 2}.items() <= metadata["paint"]["cuts"].items()
    with Image.open("out/fox.png") as image, Image.open("out/fox-preview.png") as preview:
        assert image.size == (24, 16)
        assert image.tobytes() == preview.tobytes()  # the last preview comes after the last step
    with Image.open("out/way.gif") as gif:
        assert sum(1 for _ in ImageSequence.Iterator(gif)) == 3


def test_the_first_preview_comes_before_the_first_step(tiny_model, tmp_path):
    arguments = ["paint", "a red heart", "--model", tiny_model, "--scorer", tiny_model, "--cuts", 1, "--device", "cpu"]
    run(*arguments, "--steps", 0, "--preview-every", 9, "--out", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, Image.open(tmp_path / "a-preview.png") as preview:
        assert image.tobytes() == preview.tobytes()


def test_equal_commands_write_equal_files(tiny_model, tmp_path):
    for name in ("a", "b"):
        run("paint", "a red heart", "--model", tiny_model, *QUICK, "--out", tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert not (tmp_path / "a-preview.png").exists()
    result = run("paint", "a red heart", "--model", tiny_model, *QUICK, "--out", tmp_path / "c.png", "--json", "-")
    settings = json.loads(result.stdout)
    assert settings["out"] == str(tmp_path / "c.png")
    assert list(settings["losses"]) == [str(tiny_model)]
    assert {key: settings[key] for key in read_metadata(tmp_path / "c.png")} == read_metadata(tmp_path / "a.png")


def test_other_formats_record_prompts_and_settings_too(tiny_model, tmp_path):
    for ending in ("png", "jpg", "webp"):
        run("paint", "a cat | snow:-0.5", "--model", tiny_model, *QUICK, "--out", tmp_path / f"a.{ending}", "-s", 7)
        assert read_metadata(tmp_path / f"a.{ending}") == read_metadata(tmp_path / "a.png")
        with Image.open(tmp_path / f"a.{ending}") as image:
            values = parse_infotext(text_of(image))
        assert values["Prompt"] == "a cat | snow:-0.5"
        assert (values["Steps"], values["Sampler"], values["Seed"]) == ("4", "VQGAN+CLIP", "7")
        assert values["Size"] == f"{image.width}x{image.height}"
        assert values["Model"] == str(tiny_model)


def test_ctrl_c_keeps_the_picture(tiny_model, tmp_path, monkeypatch):
    step = Painter._step

    def interrupted(self):
        if self.done == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Painter, "_step", interrupted)
    result = run("paint", "a red heart", "--model", tiny_model, *QUICK, "--out", tmp_path / "a.png")
    assert "stopped after 2 of 4 steps" in result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png")["steps"] == 2


def test_no_steps_give_the_picture_it_starts_from(tiny_model, tmp_path):
    files = ["--out", tmp_path / "a.png", "--frames", tmp_path / "a.gif"]
    result = run("paint", "a cat", "--model", tiny_model, "--steps", 0, *files)
    assert result.stdout.splitlines() == [str(tmp_path / "a.gif"), str(tmp_path / "a.png")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a |"], "got an empty prompt"),
        (["a", "--model", "none"], "no model 'none'"),
        (["a", "--scorer", "none"], "no model 'none'"),
        (["a", "--size", "20"], "expected a size in multiples of 8 pixels, got size 20×20"),
        (["a", "--size", "big"], "expected a side in pixels, or height x width, got --size big; try"),
        (["a", "--init-image", "none.png"], "none.png is not a readable picture"),
        (["a", "--init-weight", "1"], "expected a picture to start from with an init weight, got init weight 1.0"),
        (["a", "--noise-prompt", "x"], "expected a noise prompt SEED or SEED:WEIGHT, got 'x'"),
        (["a", "--cuts", "0"], "'--cuts': 0 is not in the range x>=1"),
        (["a", "--preview-every", "-1"], "'--preview-every': -1 is not in the range x>=0"),
        (["a", "--frames", "a.avi"], "expected a.avi to end in .gif or .mp4, got .avi; rename it"),
        (
            ["a", "--frames", "a.gif", "--frame-count", "1"],
            "expected 2 to 10000 frames, the first and the last included, got 1",
        ),
        (["a", "--device", "none"], "device 'none' cannot be used"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tiny_model, arguments, message):
    error = refused("paint", "--model", tiny_model, "--device", "cpu", "--steps", "1", *arguments)
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")


def test_help_shows_examples_as_they_are_typed():
    output = run("paint", "--help").stdout
    assert '\n    dalle paint "a fox | photo.jpg:0.5" ' in output
    assert '\n    dalle paint "clock at 12\\:30" ' in output


def test_sizes_are_read_as_height_and_width():
    assert [read_size(text) for text in ("", "96", "64x128", "64X128", "64×128")] == [0, 96, *[(64, 128)] * 3]
    for text in ("x", "64x", "1x2x3", "-64", "6.4"):
        with pytest.raises(UserError, match=r"got --size "):
            read_size(text)


def test_targets_are_in_the_public_api():
    import dalle_mini_impl

    assert dalle_mini_impl.Target is Target
    assert dalle_mini_impl.Painter is Painter
