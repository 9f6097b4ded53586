import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.training import launch_two
from PIL import Image

import dalle_mini_impl
from dalle_mini_impl.checkpoint.find import SHIPPED_MODELS
from dalle_mini_impl.cli import COMMANDS, dalle, main
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.util.images import read_metadata, save_png


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sample(tiny_model):
    """Run `dalle sample` on the tiny model, three candidates unless told otherwise."""

    def run(*arguments, model=tiny_model):
        fixed = ["--device", "cpu", *(["--model", str(model)] if model else [])]
        if "--candidates" not in arguments and "--from" not in arguments:
            fixed += ["--candidates", "3"]
        result = CliRunner().invoke(dalle, ["sample", *fixed, *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return run


def one_line(error):
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- drawing


def test_the_default_is_a_grid_beside_the_user(sample, tmp_path):
    result = sample("a red heart", "--keep", 2)
    assert result.stdout.splitlines()[-1] == "grid.png"
    assert result.stdout.startswith("a red heart: best score ")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert pixels("grid.png").shape == (4 + 28, 4 + 2 * 44, 3)


def test_it_is_what_the_api_gives(sample, tiny_dalle):
    sample("a red heart", "--candidates", 5, "--keep", 3, "--seed", 7, "--out", "deep/heart.png", "--top-k", 11)
    expected = tiny_dalle.generate("a red heart", candidates=5, keep=3, seed=7, top_k=11)
    assert np.array_equal(pixels("deep/heart.png"), np.asarray(expected.grid()))
    metadata = read_metadata("deep/heart.png")
    assert metadata["pictures"] == expected.metadata()["pictures"]
    assert metadata["checkpoint"] == tiny_dalle.source["checkpoint"]
    assert metadata["sampling"] == expected.settings["sampling"]


def test_every_setting_reaches_the_model(sample):
    settings = {"temperature": 0.5, "top_k": 13, "top_p": 0.75, "guidance": 1.5, "rank": "none"}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    sample("a cat", *flags, "--negative", "a dog", "--keep", 2)
    metadata = read_metadata("grid.png")
    assert metadata["sampling"] == to_dict(SamplingConfig(**settings))
    assert metadata["pictures"] == [
        {"prompt": "a cat", "negative": "a dog", "seed": candidate_seed(0, number), "score": None} for number in (0, 1)
    ]


def test_a_picture_is_made_again_in_the_precision_it_had(sample):
    sample("a cat", "--candidates", 2, "--keep", 2, "--precision", "fp32", "--out", "first.png")
    assert read_metadata("first.png")["precision"] == "fp32"
    sample("--from", "first.png", "--out", "second.png")
    assert read_metadata("second.png")["precision"] == "fp32"
    assert np.array_equal(pixels("first.png"), pixels("second.png"))


def test_several_prompts_make_rows(sample):
    result = sample("a red heart", "心形", "--keep", 2, "--columns", 0)
    names = [line.split(":")[0] for line in result.stdout.splitlines()[:-1]]
    assert names == ["a red heart", "心形"]
    prompts = [picture["prompt"] for picture in read_metadata("grid.png")["pictures"]]
    assert prompts == ["a red heart", "a red heart", "心形", "心形"]
    assert pixels("grid.png").shape[1] == 4 + 2 * 44


def test_columns_and_scores_shape_the_grid(sample):
    sample("a cat", "--out", "plain.png")
    sample("a cat", "--columns", 3, "--out", "wide.png")
    sample("a cat", "--columns", 3, "--scores", "--out", "scores.png")
    assert pixels("plain.png").shape[:2] == (4 + 2 * 28, 4 + 2 * 44)
    assert pixels("wide.png").shape[:2] == (4 + 28, 4 + 3 * 44)
    assert pixels("scores.png").shape[0] > 4 + 28


def test_prompts_come_from_a_file_too(sample, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffein rotes Herz\r\n\n   \n  心形  \n".encode())
    sample("a cat", "--prompts-file", "prompts.txt", "--keep", 1)
    prompts = [picture["prompt"] for picture in read_metadata("grid.png")["pictures"]]
    assert prompts == ["a cat", "ein rotes Herz", "心形"]


def test_two_processes_draw_what_one_draws(sample, tiny_model, tmp_path):
    prompts = ["a red heart", "a cat", "zwei Katzen"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    arguments = ["--prompts-file", "prompts.txt", "--keep", "2", "--save-dir"]
    sample(*arguments, "one")
    shared = ["--model", str(tiny_model), "--device", "cpu", "--candidates", "3", "--out", "two.png", "--json"]
    output = launch_two("-m", "dalle_mini_impl", "sample", *shared, *arguments, "two")
    lines = [line for line in output.splitlines() if line.startswith("[{")]  # of the first process alone
    assert [result["pictures"][0]["prompt"] for line in lines for result in json.loads(line)] == prompts
    assert np.array_equal(pixels("two.png"), pixels("grid.png"))
    names = sorted(path.name for path in Path("one").iterdir())
    assert len(names) == 6
    assert names == sorted(path.name for path in Path("two").iterdir())
    assert all(np.array_equal(pixels(f"one/{name}"), pixels(f"two/{name}")) for name in names)


def test_separate_pictures(sample, tiny_dalle):
    result = sample("a cat", "a red heart", "--keep", 2, "--save-dir", "out")
    assert result.stdout.splitlines()[-2:] == ["grid.png", "out"]
    paths = sorted(os.listdir("out"))
    assert len(paths) == 4
    drawn = tiny_dalle.generate("a cat", candidates=3, keep=2)
    cats = [path for path in paths if path.startswith("a-cat")]
    for path, candidate in zip(cats, drawn, strict=True):
        assert np.array_equal(pixels(f"out/{path}"), np.asarray(candidate.image))
        assert read_metadata(f"out/{path}")["pictures"][0]["seed"] == candidate.seed


def test_json_is_all_that_stdout_has(sample):
    result = sample("a cat", "心形", "--keep", 2, "--json", "--save-dir", "out")
    report = json.loads(result.stdout)
    assert [len(entry["pictures"]) for entry in report] == [2, 2]
    assert report[1]["pictures"][0]["prompt"] == "心形"
    assert report[0]["pictures"][0]["score"] >= report[0]["pictures"][1]["score"]
    assert result.stderr.splitlines()[-2:] == ["grid.png", "out"]


def test_chunks_change_nothing(sample):
    sample("a cat", "--candidates", 5, "--out", "a.png")
    sample("a cat", "--candidates", 5, "--chunk", 2, "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_long_prompt_is_cut_with_one_plain_line(sample):
    result = sample("a red heart and a green tree and a yellow star", "--rank", "none")
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "cut off" in lines[0]
    assert ".py" not in result.stderr


def test_unranked_pictures_have_no_score(sample):
    assert "a cat: not ranked, seed" in sample("a cat", "--rank", "none").stdout


def test_a_model_without_scorer_ranks_all_the_same(sample, refused, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "scorer.safetensors").unlink()
    assert "a cat: best score" in sample("a cat", model=folder).stdout
    assert "bare has no scorer" in one_line(refused("sample", "a cat", "--rank", "clip", "--model", folder))


def test_two_runs_are_the_same_file(sample):
    sample("a cat", "--out", "a.png")
    sample("a cat", "--out", "b.png")
    with open("a.png", "rb") as a, open("b.png", "rb") as b:
        assert a.read() == b.read()


SHIPPED_MODEL = SHIPPED_MODELS / "emoji" / "transformer.safetensors"


@pytest.mark.skipif(not SHIPPED_MODEL.is_file(), reason="this checkout has no shipped model")
def test_the_shipped_model_draws_and_ranks(sample, tiny_dalle):
    result = sample("a red heart", "ein rotes Herz", "--keep", 2, "--json", model=None)
    report = json.loads(result.stdout)
    assert [entry["model"] for entry in report] == ["emoji", "emoji"]
    assert report[0]["checkpoint"] != tiny_dalle.source["checkpoint"]
    scores = [picture["score"] for picture in report[0]["pictures"]]
    assert scores == sorted(scores, reverse=True)
    first = pixels("grid.png")
    sample("--from", "grid.png", "--out", "again.png", model=None)
    assert np.array_equal(pixels("again.png"), first)


# --- drawing again


@pytest.mark.parametrize(
    "arguments",
    [
        ["a red heart"],
        ["a red heart", "--keep", 1],
        ["a red heart", "--columns", 1, "--scores"],
        ["a red heart", "心形", "--keep", 2, "--scores"],
        ["a red heart", "a red heart", "--keep", 2],
        ["a red heart", "--rank", "none", "--keep", 2],
        ["a cat", "--negative", "a red heart", "--temperature", 0.7, "--top-k", 7, "--top-p", 0.9, "--guidance", 4],
        ["a cat", "--candidates", 13, "--keep", 5, "--seed", 11],
    ],
    ids=["plain", "one", "scores", "prompts", "twice", "unranked", "settings", "many"],
)
def test_a_grid_can_be_made_again(sample, arguments):
    sample(*arguments, "--out", "first.png")
    sample("--from", "first.png", "--out", "second.png")
    assert np.array_equal(pixels("second.png"), pixels("first.png"))
    first, second = read_metadata("first.png"), read_metadata("second.png")
    for metadata in (first, second):
        for picture in metadata["pictures"]:
            picture["score"] = picture["score"] and round(picture["score"], 5)
    assert second == first


def test_a_separate_picture_can_be_made_again(sample):
    sample("a cat", "--save-dir", "out", "--seed", 5, "--temperature", 0.7)
    for name in os.listdir("out"):
        sample("--from", f"out/{name}", "--out", "again.png")
        assert np.array_equal(pixels("again.png"), pixels(f"out/{name}"))
        assert read_metadata("again.png")["pictures"][0]["seed"] == read_metadata(f"out/{name}")["pictures"][0]["seed"]


def test_the_picture_knows_its_model(sample):
    sample("a cat", "--out", "first.png")
    sample("--from", "first.png", "--out", "second.png", model=None)
    assert np.array_equal(pixels("second.png"), pixels("first.png"))


def test_a_picture_of_a_picture_can_be_made_again(sample):
    sample("a cat", "--save-dir", "out")
    (name, *_) = os.listdir("out")
    sample("--from", f"out/{name}", "--out", "second.png")
    sample("--from", "second.png", "--out", "third.png")
    assert np.array_equal(pixels("third.png"), pixels(f"out/{name}"))


def test_another_checkpoint_is_refused_naming_both(sample, refused, tiny_model, tmp_path):
    sample("a cat")
    made = read_metadata("grid.png")["checkpoint"]
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    (folder / "scorer.safetensors").unlink()
    error = one_line(refused("sample", "--from", "grid.png", "--model", folder))
    assert made in error
    assert "--model" in error
    assert "grid.png was made by checkpoint" in error


@pytest.mark.parametrize("metadata", [{}, [], {"pictures": []}, {"pictures": [{}], "sampling": {}}, {"seed": 3}])
def test_settings_of_something_else_are_refused(refused, tiny_model, metadata):
    save_png(Image.new("RGB", (5, 3)), "other.png", metadata)
    one_line(refused("sample", "--from", "other.png", "--model", tiny_model))


def test_what_carries_no_settings_is_refused(refused, tmp_path):
    save_png(Image.new("RGB", (5, 3)), "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "carries no settings" in one_line(refused("sample", "--from", "plain.png"))
    assert "not a readable picture" in one_line(refused("sample", "--from", "text.png"))
    assert "not a readable picture" in one_line(refused("sample", "--from", "missing.png"))


def test_unknown_precisions_are_refused(refused, tiny_model):
    assert "unknown precision 'fp8'" in one_line(
        refused("sample", "a cat", "--precision", "fp8", "--model", tiny_model)
    )


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt was given; try: dalle sample"),
        (["   "], "no prompt was given"),
        (["a cat", "--from", "x.png"], "both prompts and --from were given"),
        (
            ["a cat", "--model", "nothing"],
            "no model 'nothing'; expected a checkpoint folder, hf:USER/REPO or a",
        ),
        (["a cat", "--model", "."], "has no transformer.safetensors"),
        (["a cat", "--prompts-file", "nothing.txt"], "cannot read prompts file nothing.txt"),
        (["a cat", "--candidates", "0"], "candidates 0"),
        (["a cat", "--keep", "0"], "keep 0"),
        (["a cat", "--keep", "-3"], "keep -3"),
        (["a cat", "--seed", "-1"], "seed -1"),
        (["a cat", "--temperature", "-0.5"], "temperature -0.5"),
        (["a cat", "--temperature", "nan"], "temperature nan"),
        (["a cat", "--top-k", "62"], "top_k 62 was given, expected 0 (all) to 61"),
        (["a cat", "--top-p", "0"], "top_p 0.0"),
        (["a cat", "--guidance", "-1"], "guidance -1.0"),
        (["a cat", "--guidance", "inf"], "guidance inf"),
        (["a cat", "--chunk", "0"], "--chunk 0"),
        (["a cat", "--columns", "-1"], "-1"),
        (["a cat", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["a cat", "--candidates", "1", "--out", "/proc/nothing/grid.png"], "cannot write /proc/nothing/grid.png"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tiny_model, arguments, message):
    model = [] if "--model" in arguments else ["--model", tiny_model]
    assert message in one_line(refused("sample", *arguments, *model))


def test_an_unreadable_prompts_file_is_refused(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes("ein grünes Herz".encode("latin-1"))
    assert "give a UTF-8 text file" in one_line(refused("sample", "--prompts-file", "latin.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "no prompt was given" in one_line(refused("sample", "--prompts-file", "empty.txt"))


def test_a_damaged_model_is_refused(refused, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("transformer.safetensors", "config.yaml", "text_tokenizer.model"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"damaged")
        assert name in one_line(refused("sample", "a cat", "--model", folder))
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize("arguments", [["--candidates", "many"], ["--unknown"], ["--top-k", "2.5"]])
def test_usage_errors_of_click_are_one_line_too(refused, arguments):
    error = one_line(refused("sample", "a cat", *arguments))
    assert error.endswith("; see dalle sample --help\n")
    assert arguments[0] in error


def test_prompts_that_are_no_text_are_drawn_all_the_same(sample):
    assert sample("a \udcff cat").exit_code == 0


# --- the command itself


def test_help_names_every_command_at_once():
    result = CliRunner().invoke(dalle, ["--help"])
    assert result.exit_code == 0
    for name, text in COMMANDS.items():
        assert name in result.output
        assert text.split(",")[0] in result.output
    assert dalle_mini_impl.__version__ in CliRunner().invoke(dalle, ["--version"]).output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = CliRunner().invoke(dalle, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"dalle {name}" in result.output.replace("Usage: root", "Usage: dalle")


def test_an_unknown_command_is_refused(refused):
    assert refused("paint-it-black") == "error: no such command 'paint-it-black'; see dalle --help\n"


def test_a_stopped_run_says_so(monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(dalle, "main", stop)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_closed_pipe_is_no_traceback(monkeypatch):
    def close(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr(dalle, "main", close)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1


def test_the_real_command(tmp_path):
    command = [sys.executable, "-m", "dalle_mini_impl", "sample"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert one_line(done.stderr) == 'error: no prompt was given; try: dalle sample "a red heart"\n'


def test_info_tells_the_parts(tiny_model, refused, tmp_path):
    result = CliRunner().invoke(dalle, ["info", str(tiny_model), "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["text_tokenizer"]["vocab_size"] == 367
    assert facts["transformer"]["trained_with"]["image_tokenizer"] == facts["image_tokenizer"]["identity"]
    assert set(facts) > {"model", "checkpoint", "sampling", "scorer"}
    plain = CliRunner().invoke(dalle, ["info", str(tiny_model)], catch_exceptions=False).stdout
    assert facts["transformer"]["identity"] in plain
    one_line(refused("info", "nothing"))
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "scorer.safetensors").write_bytes(b"damaged")
    assert "scorer.safetensors is damaged" in one_line(refused("info", folder))


def test_info_tells_what_there_is_so_far(tiny_model, refused, tmp_path):
    assert "has no part of a model" in one_line(refused("info", tmp_path))
    shutil.copy(tiny_model / "image_tokenizer.safetensors", tmp_path)
    result = CliRunner().invoke(dalle, ["info", str(tmp_path), "--json"], catch_exceptions=False)
    assert set(json.loads(result.stdout)) == {"model", "image_tokenizer"}
