"""`dalle sample`."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.commands import one_line
from helpers.infotext import parse_infotext, text_of
from helpers.models import SAMPLING
from helpers.training import launch, launch_two
from PIL import Image

from dalle_mini_impl.checkpoint.find import SHIPPED_MODELS
from dalle_mini_impl.checkpoint.parts import fingerprint
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.save_picture import read_metadata, save_picture


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sample(tiny_model):
    """Run `dalle sample` on the tiny model, three candidates unless told otherwise."""

    def run(*arguments, model=tiny_model):
        fixed = ["--device", "cpu", *(["--model", str(model)] if model else [])]
        if not {"--candidates", "--from", "--seeds"} & set(arguments):
            fixed += ["--candidates", "3"]
        result = CliRunner().invoke(dalle, ["sample", *fixed, *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- sampling


def test_the_grid_is_written_to_the_current_folder_by_default(sample, tmp_path):
    result = sample("a red heart", "--keep", 2)
    assert result.stdout.splitlines()[-1] == "grid.png"
    assert result.stdout.startswith("a red heart: best score ")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert pixels("grid.png").shape == (4 + 28, 4 + 2 * 44, 3)


def test_the_command_gives_the_pictures_of_the_api(sample, tiny_dalle):
    sample("a red heart", "--candidates", 5, "--keep", 3, "--seed", 7, "--out", "deep/heart.png", "--top-k", 11)
    expected = tiny_dalle.generate("a red heart", candidates=5, keep=3, seed=7, top_k=11)
    assert np.array_equal(pixels("deep/heart.png"), np.asarray(expected.grid()))
    metadata = read_metadata("deep/heart.png")
    assert metadata["pictures"] == expected.metadata()["pictures"]
    assert metadata["checkpoint"] == tiny_dalle.source["checkpoint"]
    assert metadata["sampling"] == expected.settings["sampling"]


def test_printed_seeds_draw_the_same_candidates_again(sample):
    printed = sample("a cat", "--candidates", 7, "--keep", 3, "--seed", 5, "--out", "first.png").stdout
    first = read_metadata("first.png")
    seeds = [picture["seed"] for picture in first["pictures"]]
    assert f"drawn again by --seeds {seeds[0]}" in printed
    sample("a cat", "--seeds", ",".join(map(str, reversed(seeds))), "--out", "second.png")
    assert read_metadata("second.png")["pictures"] == first["pictures"]
    assert np.array_equal(pixels("first.png"), pixels("second.png"))
    sample("a cat", "--seeds", seeds[2], "--out", "third.png")
    assert [picture["seed"] for picture in read_metadata("third.png")["pictures"]] == seeds[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--candidates", "4", "--keep", "9"), "expected --keep of at most the 4 candidates, got --keep 9"),
        (("--keep", "33"), "expected --keep of at most the 32 candidates, got --keep 33"),
        (("--seeds", "1,2", "--keep", "3"), "expected --keep of at most the 2 candidates"),
        (("--seeds", "1", "--seed", "1"), "expected --seeds alone, .* got --seed as well"),
        (("--seeds", "1", "-n", "1"), "expected --seeds alone, .* got --candidates as well"),
        (("--format", "jpg"), "expected --save-dir FOLDER with --format jpg, got none"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(options, message, tiny_model):
    result = CliRunner().invoke(dalle, ["sample", "a cat", "--model", str(tiny_model), *options])
    assert re.search(message, str(result.exception))


def test_the_output_line_says_that_a_file_was_replaced(sample):
    assert sample("a cat").stdout.splitlines()[-1] == "grid.png"
    assert sample("a cat").stdout.splitlines()[-1] == "grid.png (replaced)"


def test_every_sampling_setting_reaches_the_model(sample):
    settings = {"temperature": 0.5, "top_k": 13, "top_p": 0.75, "guidance": 1.5, "rank": "none"}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    sample("a cat", *flags, "--negative", "a dog", "--keep", 2)
    metadata = read_metadata("grid.png")
    assert metadata["sampling"] == to_dict(SamplingConfig(**settings, prior="none"))
    assert metadata["pictures"] == [
        {"prompt": "a cat", "negative": "a dog", "seed": candidate_seed(0, number), "score": None} for number in (0, 1)
    ]


def test_pictures_are_repeated_in_their_recorded_precision(sample):
    sample("a cat", "--candidates", 2, "--keep", 2, "--precision", "fp32", "--out", "first.png")
    assert read_metadata("first.png")["precision"] == "fp32"
    sample("--from", "first.png", "--out", "second.png")
    assert read_metadata("second.png")["precision"] == "fp32"
    assert np.array_equal(pixels("first.png"), pixels("second.png"))


def test_each_of_several_prompts_fills_a_row(sample):
    result = sample("a red heart", "心形", "--keep", 2, "--columns", 0)
    names = [line.split(":")[0] for line in result.stdout.splitlines()[:-1]]
    assert names == ["a red heart", "心形"]
    prompts = [picture["prompt"] for picture in read_metadata("grid.png")["pictures"]]
    assert prompts == ["a red heart", "a red heart", "心形", "心形"]
    assert pixels("grid.png").shape[1] == 4 + 2 * 44


def enlarged(path, factor):
    return pixels(path).repeat(factor, 0).repeat(factor, 1)


def test_zoom_makes_each_pixel_a_square(sample):
    sample("a cat", "--out", "plain.png", "--save-dir", "plain")
    sample("a cat", "--zoom", 3, "--out", "large.png", "--save-dir", "large")
    assert pixels("large.png").shape[:2] == (4 + 2 * (3 * 24 + 4), 4 + 2 * (3 * 40 + 4))
    names = sorted(os.listdir("plain"))
    assert names == sorted(os.listdir("large"))
    for name in names:
        assert np.array_equal(pixels(f"large/{name}"), enlarged(f"plain/{name}", 3))
    assert np.array_equal(pixels("large.png")[4:76, 4:124], pixels(f"large/{names[0]}"))
    plain, large = read_metadata("plain.png"), read_metadata("large.png")
    assert "zoom" not in plain
    assert large == {**plain, "zoom": 3}


def test_zoomed_pictures_can_be_repeated_at_any_zoom(sample):
    sample("a cat", "--keep", 2, "--scores", "--out", "plain.png")
    sample("a cat", "--keep", 2, "--scores", "--zoom", 2, "--out", "large.png", "--save-dir", "out")
    sample("--from", "large.png", "--out", "again.png")
    assert np.array_equal(pixels("again.png"), pixels("large.png"))
    sample("--from", "large.png", "--zoom", 1, "--out", "small.png")
    assert np.array_equal(pixels("small.png"), pixels("plain.png"))
    (name, _) = sorted(os.listdir("out"))
    sample("--from", f"out/{name}", "--out", "one.png")
    assert np.array_equal(pixels("one.png"), pixels(f"out/{name}"))


def test_a_zoom_out_of_range_is_refused(refused, tiny_model):
    for zoom in ("0", "17", "1.5"):
        assert "--zoom" in one_line(refused("sample", "a cat", "--zoom", zoom, "--model", tiny_model))


@pytest.fixture
def written(monkeypatch):
    """What is written, in order: name and picture."""
    calls = []

    def save_and_record(image, path, *metadata):
        calls.append((Path(path).name, np.asarray(image.convert("RGB"))))
        return save_picture(image, path, *metadata)

    monkeypatch.setattr("dalle_mini_impl.util.save_picture.save_picture", save_and_record)
    return calls


def test_previews_begin_at_once_and_end_with_the_kept_pictures(sample, written):
    sample("a cat", "--keep", 2, "--seed", 4, "--out", "plain.png")
    sample("a cat", "--keep", 2, "--seed", 4, "--preview", "so-far.png", "--out", "grid.png")
    names = [name for name, _ in written]
    assert names == ["plain.png", *["so-far.png"] * (len(names) - 2), "grid.png"]
    first, *_, last = (picture for name, picture in written if name == "so-far.png")
    assert (first == 255).all()
    assert first.shape == last.shape
    assert np.array_equal(last, pixels("grid.png"))
    assert read_metadata("grid.png") == read_metadata("plain.png")
    assert np.array_equal(pixels("grid.png"), pixels("plain.png"))


def test_previews_of_several_prompts_follow_each_other(sample, written):
    sample("a cat", "a red heart", "--keep", 1, "--zoom", 2, "--preview", "so-far.png")
    blank = [bool((picture == 255).all()) for name, picture in written if name == "so-far.png"]
    assert blank[0]
    assert blank.count(True) == 2
    assert not blank[-1]


def test_previews_must_be_of_a_format_that_is_written(refused, tiny_model):
    error = one_line(refused("sample", "a cat", "--preview", "so-far.gif", "--model", tiny_model))
    assert ".png" in error


def test_columns_and_scores_change_the_grid(sample):
    sample("a cat", "--out", "plain.png")
    sample("a cat", "--columns", 3, "--out", "wide.png")
    sample("a cat", "--columns", 3, "--scores", "--out", "scores.png")
    assert pixels("plain.png").shape[:2] == (4 + 2 * 28, 4 + 2 * 44)
    assert pixels("wide.png").shape[:2] == (4 + 28, 4 + 3 * 44)
    assert pixels("scores.png").shape[0] > 4 + 28


def test_prompts_are_read_from_a_file_too(sample, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffein rotes Herz\r\n\n   \n  心形  \n".encode())
    sample("a cat", "--texts-file", "prompts.txt", "--keep", 1)
    prompts = [picture["prompt"] for picture in read_metadata("grid.png")["pictures"]]
    assert prompts == ["a cat", "ein rotes Herz", "心形"]


def test_two_processes_give_the_pictures_of_one(sample, tiny_model, tmp_path):
    prompts = ["a red heart", "a cat", "zwei Katzen"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    arguments = ["--texts-file", "prompts.txt", "--keep", "2", "--save-dir"]
    sample(*arguments, "one")
    files = ["--out", "two.png", "--json", "two.json"]
    settings = ["--model", str(tiny_model), "--device", "cpu", "--candidates", "3"]
    output = launch_two("-m", "dalle_mini_impl", "sample", *files, *settings, *arguments, "two")
    lines = output.splitlines()
    assert [lines.count(name) for name in ("two.json", "two.png", "two")] == [1, 1, 1]  # from one of the processes
    results = json.loads(Path("two.json").read_text(encoding="utf-8"))
    assert [result["pictures"][0]["prompt"] for result in results] == prompts
    assert np.array_equal(pixels("two.png"), pixels("grid.png"))
    names = sorted(path.name for path in Path("one").iterdir())
    assert len(names) == 6
    assert names == sorted(path.name for path in Path("two").iterdir())
    assert all(np.array_equal(pixels(f"one/{name}"), pixels(f"two/{name}")) for name in names)


def test_bad_input_to_two_processes_ends_with_one_line():
    code, output = launch(
        "cpu-2", 2, "-m", "dalle_mini_impl", "sample", "a cat", "--model", "nothing", "--device", "cpu"
    )
    assert code != 0
    assert "error: no model 'nothing'; " in output
    assert "Traceback" not in output


def test_separate_pictures_are_saved(sample, tiny_dalle):
    result = sample("a cat", "a red heart", "--keep", 2, "--save-dir", "out")
    assert result.stdout.splitlines()[-2:] == ["grid.png", "out"]
    paths = sorted(os.listdir("out"))
    assert len(paths) == 4
    expected = tiny_dalle.generate("a cat", candidates=3, keep=2)
    cats = [path for path in paths if path.startswith("a-cat")]
    for path, candidate in zip(cats, expected, strict=True):
        assert np.array_equal(pixels(f"out/{path}"), np.asarray(candidate.image))
        assert read_metadata(f"out/{path}")["pictures"][0]["seed"] == candidate.seed


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats_record_what_makes_the_pictures_again(sample, ending):
    sample("a cat", "心形", "--keep", 2, "--scores", "--save-dir", "out")
    sample("a cat", "心形", "--keep", 2, "--scores", "--out", f"a.{ending}", "--save-dir", "out", "--format", ending)
    assert read_metadata(f"a.{ending}") == read_metadata("grid.png")
    sample("--from", f"a.{ending}", "--out", "again.png")
    assert np.array_equal(pixels("again.png"), pixels("grid.png"))
    assert (ending == "webp") == np.array_equal(pixels("a.webp" if ending == "webp" else "a.jpg"), pixels("grid.png"))
    (name, *_) = sorted(path.stem for path in Path("out").glob(f"*.{ending}"))
    sample("--from", f"out/{name}.{ending}", "--out", f"again.{ending}")
    assert np.array_equal(pixels(f"again.{ending}"), pixels(f"out/{name}.{ending}"))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_other_programs_read_prompt_seed_and_settings(sample, tiny_dalle, ending):
    settings = ["--negative", "a dog, red", "--guidance", 1.5, "--temperature", 0.25]
    sample("a cat", *settings, "--out", f"a.{ending}", "--zoom", 2)
    with Image.open(f"a.{ending}") as image:
        values = parse_infotext(text_of(image))
    assert values == {
        "Prompt": "a cat",
        "Negative prompt": "a dog, red",
        "Steps": "15",
        "Sampler": "autoregressive",
        "CFG scale": "1.5",
        "Seed": str(read_metadata(f"a.{ending}")["pictures"][0]["seed"]),
        "Size": "40x24",
        "Model hash": tiny_dalle.source["checkpoint"],
        "Model": tiny_dalle.source["model"],
        "Temperature": "0.25",
        "Top k": str(SAMPLING.top_k),
        "Top p": f"{SAMPLING.top_p:g}",
        "Precision": tiny_dalle.source["precision"],
    }


@pytest.mark.parametrize("output", [["--out", "a.jpg"], ["--save-dir", "out", "--format", "jpg"]])
@pytest.mark.parametrize("command", [["sample", "a cat"], ["sample", "a cat", "--no-grid"], ["complete", "in.png"]])
def test_transparent_pictures_in_jpeg_are_refused_before_they_are_drawn(refused, tiny_model, command, output):
    Image.new("RGB", (8, 8)).save("in.png")
    if command[0] == "complete":
        command = [*command, "--variations"]
    if "--no-grid" in command:
        output = ["--save-dir", "out", "--format", "jpg"]
    error = one_line(refused(*command, *output, "--transparent", "--model", tiny_model))
    assert error.startswith("error: expected .png or .webp for pictures with transparency, got JPEG, which has none; ")
    assert not [path for path in Path().rglob("*") if path.suffix in (".jpg", ".json")]


def test_only_json_goes_to_standard_output(sample):
    result = sample("a cat", "心形", "--keep", 2, "--json", "-", "--save-dir", "out")
    report = json.loads(result.stdout)
    assert [len(entry["pictures"]) for entry in report] == [2, 2]
    assert report[1]["pictures"][0]["prompt"] == "心形"
    assert report[0]["pictures"][0]["score"] >= report[0]["pictures"][1]["score"]
    assert result.stderr.splitlines()[-2:] == ["grid.png", "out"]


def test_chunks_do_not_change_pictures(sample):
    sample("a cat", "--candidates", 5, "--out", "a.png")
    sample("a cat", "--candidates", 5, "--chunk", 2, "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_long_prompt_is_cut_with_a_one_line_warning(sample):
    result = sample("a red heart and a green tree and a yellow star", "--rank", "none")
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "cut off" in lines[0]
    assert ".py" not in result.stderr


def test_unranked_pictures_have_no_score(sample):
    assert "a cat: not ranked, drawn again by --seeds" in sample("a cat", "--rank", "none").stdout


def test_a_model_without_scorer_ranks_by_likelihood(sample, refused, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "scorer.safetensors").unlink()
    assert "a cat: best score" in sample("a cat", model=folder).stdout
    assert "bare, which has none; train one" in one_line(
        refused("sample", "a cat", "--rank", "clip", "--model", folder)
    )


def test_another_scorer_ranks_and_is_recorded(sample, tiny_dalle, other_scorer):
    sample("a cat", "--candidates", 7, "--keep", 7, "--rank", "clip", "--out", "own.png")
    sample("a cat", "--candidates", 7, "--keep", 7, "--scorer", other_scorer, "--out", "other.png")
    own, other = read_metadata("own.png"), read_metadata("other.png")
    assert "scorer" not in own
    scorer = Scorer.from_pretrained(other_scorer)
    assert other["scorer"] == {"name": str(other_scorer), "identity": scorer_identity(scorer)}
    assert other["sampling"]["rank"] == "both"  # although the model recommends likelihood
    seeds = [[picture["seed"] for picture in metadata["pictures"]] for metadata in (own, other)]
    assert seeds[0] != seeds[1]
    assert sorted(seeds[0]) == sorted(seeds[1])
    assert tiny_dalle.scorer_source is None


@pytest.mark.parametrize("rank", ["likelihood", "none"])
def test_a_scorer_that_would_not_be_used_is_refused(refused, tiny_model, other_scorer, rank):
    arguments = ("sample", "a cat", "--scorer", other_scorer, "--rank", rank, "--model", tiny_model)
    assert f"expected --rank both or clip with --scorer, got --rank {rank}" in one_line(refused(*arguments))


def test_clip_weight_is_recorded_and_refused_where_nothing_is_added_up(sample, refused, tiny_model):
    sample("a cat", "--rank", "both", "--clip-weight", 2.5)
    assert read_metadata("grid.png")["sampling"]["clip_weight"] == 2.5
    for rank in ("clip", "likelihood", "none"):
        error = one_line(refused("sample", "a cat", "--clip-weight", 2, "--rank", rank, "--model", tiny_model))
        assert f"expected --rank both with --clip-weight, got --rank {rank}" in error
    error = one_line(refused("sample", "a cat", "--clip-weight", -1, "--model", tiny_model))
    assert "expected a clip_weight of 0 or more, got -1.0" in error


def test_a_missing_scorer_is_refused_in_one_line(refused, tiny_model):
    error = one_line(refused("sample", "a cat", "--scorer", "nothing", "--model", tiny_model))
    assert "no model 'nothing'" in error


def test_equal_commands_write_equal_files(sample):
    sample("a cat", "--out", "a.png")
    sample("a cat", "--out", "b.png")
    with open("a.png", "rb") as a, open("b.png", "rb") as b:
        assert a.read() == b.read()


SHIPPED_MODEL = SHIPPED_MODELS / "emoji" / "transformer.safetensors"


@pytest.mark.skipif(not SHIPPED_MODEL.is_file(), reason="this checkout has no shipped model")
def test_the_shipped_model_samples_and_ranks(sample, tiny_dalle):
    result = sample("a red heart", "ein rotes Herz", "--keep", 2, "--json", "-", model=None)
    report = json.loads(result.stdout)
    assert [entry["model"] for entry in report] == ["emoji", "emoji"]
    assert report[0]["checkpoint"] != tiny_dalle.source["checkpoint"]
    scores = [picture["score"] for picture in report[0]["pictures"]]
    assert scores == sorted(scores, reverse=True)
    first = pixels("grid.png")
    sample("--from", "grid.png", "--out", "repeated.png", model=None)
    assert np.array_equal(pixels("repeated.png"), first)


# --- repeating a picture


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
def test_a_grid_can_be_repeated(sample, arguments):
    sample(*arguments, "--out", "first.png")
    sample("--from", "first.png", "--out", "second.png")
    assert np.array_equal(pixels("second.png"), pixels("first.png"))
    first, second = read_metadata("first.png"), read_metadata("second.png")
    for metadata in (first, second):
        for picture in metadata["pictures"]:
            picture["score"] = picture["score"] and round(picture["score"], 5)
    assert second == first


@pytest.fixture
def ranked_by_another(sample, other_scorer):
    """A grid that another scorer than the model's own ranked."""
    sample("a cat", "--candidates", 7, "--keep", 5, "--scorer", other_scorer, "--scores", "--out", "first.png")
    return "first.png"


def test_a_picture_is_repeated_with_the_scorer_that_ranked_it(sample, ranked_by_another, other_scorer):
    sample("--from", ranked_by_another, "--scorer", other_scorer, "--out", "second.png")
    assert np.array_equal(pixels("second.png"), pixels("first.png"))
    assert read_metadata("second.png")["scorer"] == read_metadata("first.png")["scorer"]


def test_a_scorer_that_a_picture_names_is_not_read_but_said_to_be_missing(
    refused, sample, ranked_by_another, tiny_model, other_scorer
):
    error = one_line(refused("sample", "--from", ranked_by_another, "--model", tiny_model))
    assert f"expected --scorer, because first.png was ranked by {other_scorer}, which does not ship" in error
    assert f"add --scorer {other_scorer}, or draw the pictures without their scores: --rank none" in error
    sample("--from", ranked_by_another, "--rank", "none", "--out", "second.png")
    first, second = read_metadata("first.png"), read_metadata("second.png")
    assert [p["seed"] for p in second["pictures"]] == [p["seed"] for p in first["pictures"]]
    assert "scorer" not in second


def test_a_scorer_without_a_name_has_to_be_given_one(refused, ranked_by_another, tiny_model):
    record = read_metadata(ranked_by_another)
    save_picture(Image.new("RGB", (4, 4)), "nameless.png", {**record, "scorer": {**record["scorer"], "name": ""}})
    error = one_line(refused("sample", "--from", "nameless.png", "--model", tiny_model))
    assert "was ranked by a scorer without a name" in error
    assert "add --scorer NAME, or" in error


def test_another_scorer_than_the_recorded_one_is_refused(refused, sample, ranked_by_another, tiny_model):
    arguments = ("sample", "--from", ranked_by_another, "--model", tiny_model, "--scorer", tiny_model)
    error = one_line(refused(*arguments))
    expected, got = (
        read_metadata("first.png")["scorer"]["identity"],
        scorer_identity(Scorer.from_pretrained(tiny_model)),
    )
    assert f"expected scorer {expected}, which ranked first.png, got {got} of {tiny_model}" in error
    sample("a cat", "--out", "own.png")
    error = one_line(refused("sample", "--from", "own.png", "--model", tiny_model, "--scorer", tiny_model))
    assert "expected --from without --scorer, because no scorer but the model's own ranked own.png" in error


def test_a_separate_picture_can_be_repeated(sample):
    sample("a cat", "--save-dir", "out", "--seed", 5, "--temperature", 0.7)
    for name in os.listdir("out"):
        sample("--from", f"out/{name}", "--out", "repeated.png")
        assert np.array_equal(pixels("repeated.png"), pixels(f"out/{name}"))
        repeated, original = read_metadata("repeated.png"), read_metadata(f"out/{name}")
        assert repeated["pictures"][0]["seed"] == original["pictures"][0]["seed"]


def test_a_folder_that_a_picture_names_as_its_model_is_not_read(sample, refused, tiny_model):
    sample("a cat", "--out", "first.png")
    error = one_line(refused("sample", "--from", "first.png", "--out", "second.png"))
    assert f"expected --model, because first.png was generated by {tiny_model}, which does not ship" in error
    sample("--from", "first.png", "--out", "second.png")
    assert np.array_equal(pixels("second.png"), pixels("first.png"))


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"chunk": 10**9}},
        {"sampling": {"progress": "x"}},
        {"sampling": {"temperature": "hot"}},
        {"sampling": {"top_k": 1.5}},
        {"sampling": []},
        {"layout": {"columns": -1, "scores": False}},
        {"layout": {"columns": 10**9, "scores": False}},
        {"layout": {"columns": 1, "scores": False, "gap": 10**9}},
        {"layout": None},
        {"precision": "fp8"},
        {"precision": 3},
        {"model": {"a": 1}},
        {"checkpoint": None},
        {"device": "cuda"},
        {"pictures": [{"prompt": "a", "negative": "", "seed": -1, "score": 0.0}]},
        {"pictures": [{"prompt": "a", "negative": "", "seed": 2**63, "score": 0.0}]},
        {"pictures": [{"prompt": "a", "negative": "", "seed": True, "score": 0.0}]},
        {"pictures": [{"prompt": ["a"], "negative": "", "seed": 1, "score": 0.0}]},
        {"pictures": [{"prompt": "a", "negative": None, "seed": 1, "score": 0.0}]},
        {"pictures": [{"prompt": "a", "negative": "", "seed": 1, "score": 0.0, "keep": 1}]},
        {"pictures": {"prompt": "a"}},
        {"pictures": "abc"},
        {"pictures": [None]},
        {"zoom": 0},
        {"zoom": 10**6},
        {"zoom": True},
        {"zoom": 2.5},
        {"zoom": None},
        {"scorer": None},
        {"scorer": "emoji"},
        {"scorer": {"name": "emoji"}},
        {"scorer": {"name": "emoji", "identity": 3}},
        {"scorer": {"name": "emoji", "identity": "0", "device": "cpu"}},
    ],
    ids=repr,
)
def test_records_with_other_values_than_ours_are_refused(refused, tiny_model, change):
    record = {
        "model": "emoji",
        "checkpoint": "0" * 16,
        "precision": "fp32",
        "sampling": to_dict(SamplingConfig()),
        "pictures": [{"prompt": "a cat", "negative": "", "seed": 1, "score": None}],
        "layout": {"columns": 0, "scores": False},
    }
    save_picture(Image.new("RGB", (5, 3)), "other.png", record | change)
    error = one_line(refused("sample", "--from", "other.png", "--model", tiny_model))
    assert "expected a picture that records how it was sampled, got other.png; " in error


def test_a_repeated_picture_can_be_repeated(sample):
    sample("a cat", "--save-dir", "out")
    (name, *_) = os.listdir("out")
    sample("--from", f"out/{name}", "--out", "second.png")
    sample("--from", "second.png", "--out", "third.png")
    assert np.array_equal(pixels("third.png"), pixels(f"out/{name}"))


def test_another_checkpoint_is_refused_and_both_are_named(sample, refused, tiny_model, tmp_path):
    sample("a cat")
    expected = read_metadata("grid.png")["checkpoint"]
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    (folder / "scorer.safetensors").unlink()
    error = one_line(refused("sample", "--from", "grid.png", "--model", folder))
    other = fingerprint(folder)
    assert f"expected checkpoint {expected}, which generated grid.png, got {other} of model {folder}; " in error
    assert "--model" in error


@pytest.mark.parametrize("metadata", [{}, [], {"pictures": []}, {"pictures": [{}], "sampling": {}}, {"seed": 3}])
def test_metadata_of_other_programs_is_refused(refused, tiny_model, metadata):
    save_picture(Image.new("RGB", (5, 3)), "other.png", metadata)
    error = one_line(refused("sample", "--from", "other.png", "--model", tiny_model))
    assert "expected a picture that records how it was sampled, got other.png; " in error


def test_files_without_metadata_are_refused(refused, tmp_path):
    save_picture(Image.new("RGB", (5, 3)), "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "carries no settings" in one_line(refused("sample", "--from", "plain.png"))
    assert "not a readable picture" in one_line(refused("sample", "--from", "text.png"))
    assert "not a readable picture" in one_line(refused("sample", "--from", "missing.png"))


def test_unknown_precisions_are_refused(refused, tiny_model):
    error = one_line(refused("sample", "a cat", "--precision", "fp8", "--model", tiny_model))
    assert "'fp8' is not one of 'auto', 'fp32', 'bf16', 'int8'; see dalle sample --help" in error


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected at least one prompt, got none; try: dalle sample"),
        (["   "], "expected at least one prompt, got none"),
        (["a cat", "--from", "x.png"], "expected prompts or --from, got both"),
        (
            ["a cat", "--model", "nothing"],
            "no model 'nothing'; expected a checkpoint folder, hf:USER/REPO or a",
        ),
        (["a cat", "--model", "."], "has no transformer.safetensors"),
        (["a cat", "--texts-file", "nothing.txt"], "expected a UTF-8 file with one text per line, got nothing.txt"),
        (["a cat", "--candidates", "0"], "'--candidates' / '-n': 0 is not in the range x>=1"),
        (["a cat", "--keep", "0"], "'--keep' / '-k': 0 is not in"),
        (["a cat", "--keep", "-3"], "'--keep' / '-k': -3 is not in"),
        (["a cat", "--seed", "-1"], "'--seed' / '-s': -1 is not in the range x>=0"),
        (["a cat", "--temperature", "-0.5"], "expected a temperature of 0 or more, got -0.5"),
        (["a cat", "--temperature", "nan"], "got nan"),
        (["a cat", "--top-k", "62"], "expected top_k from 0 to 61, got 62"),
        (["a cat", "--top-p", "0"], "expected top_p above 0 and at most 1, got 0.0"),
        (["a cat", "--guidance", "-1"], "expected a guidance of 0 or more, got -1.0"),
        (["a cat", "--guidance", "inf"], "got inf"),
        (["a cat", "--chunk", "0"], "'--chunk': 0 is not in the range x>=1"),
        (["a cat", "--columns", "-1"], "'--columns': -1 is not in the range x>=0"),
        (["a cat", "--rank", "beauty"], "'beauty' is not one of 'auto', 'likelihood', 'clip', 'both', 'none'"),
        (["a cat", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["a cat", "--candidates", "1", "--out", "/proc/nothing/grid.png"], "cannot write /proc/nothing/grid.png"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tiny_model, arguments, message):
    model = [] if "--model" in arguments else ["--model", tiny_model]
    assert message in one_line(refused("sample", *arguments, *model))


def test_unreadable_and_empty_prompt_files_are_refused(refused, tmp_path):
    (tmp_path / "latin.txt").write_bytes("ein grünes Herz".encode("latin-1"))
    error = one_line(refused("sample", "--texts-file", "latin.txt"))
    assert "expected a UTF-8 file with one text per line, got latin.txt" in error
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "expected at least one prompt, got none" in one_line(refused("sample", "--texts-file", "empty.txt"))


def test_a_damaged_model_is_refused(refused, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("transformer.safetensors", "config.yaml", "text_tokenizer.model"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"damaged")
        assert name in one_line(refused("sample", "a cat", "--model", folder))
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("arguments", [["--candidates", "many"], ["--unknown"], ["--top-k", "2.5"]])
def test_usage_errors_end_with_one_line_too(refused, arguments):
    error = one_line(refused("sample", "a cat", *arguments))
    assert error.endswith("; see dalle sample --help\n")
    assert arguments[0] in error


def test_prompts_may_hold_bytes_that_are_not_utf_8(sample):
    assert sample("a \udcff cat").exit_code == 0
