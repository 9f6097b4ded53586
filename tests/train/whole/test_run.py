"""`dalle train all`: from a folder to a model, killed and continued, repeated, overwritten, refused."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from helpers.processes import Forked, kill_self
from helpers.sources import put_tar
from helpers.training import STAGES, Home, launch
from helpers.whole import FIXED, TINY, make_twelve, results, train_whole
from PIL import Image

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.shipped import copy_configs
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.whole import prepare
from dalle_mini_impl.train.whole import results as whole_results
from dalle_mini_impl.train.whole.folder import RunFolder, read_log
from dalle_mini_impl.util.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_twelve(tmp_path_factory.mktemp("twelve") / "pictures")


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A finished run, with its record. Tests that change it work in a copy."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, train_whole(pictures, out)


def test_every_part_is_trained_and_the_model_draws(finished):
    out, record = finished
    assert list(record.stages) == STAGES
    assert all(results(record).values())
    assert sorted(path.name for path in (out / "model").iterdir()) == [
        "config.yaml", "image_tokenizer.safetensors", "scorer.safetensors", "text_tokenizer.model",
        "transformer.safetensors",
    ]  # fmt: skip
    assert len(DalleMini.from_pretrained(out / "model").generate("a red disc", candidates=2, keep=1)) == 1
    assert not (out / "measuring").exists()
    assert [len(read_log(RunFolder(out).log(stage))) for stage in ("transformer", "scorer")] == [9, 9]


def test_the_five_plain_commands_with_the_same_configs_train_the_same_model(finished, tmp_path):
    out, record = finished
    for path in (out / "configs").iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace(f"{out}/", f"{tmp_path}/"))
    home = Home(tmp_path)
    for stage in STAGES:
        home.run(stage)
    from dalle_mini_impl.train.whole.run import result_of

    assert {stage: result_of(RunFolder(tmp_path), stage) for stage in STAGES if stage != "encode"} == {
        stage: result for stage, result in results(record).items() if stage != "encode"
    }


def die_at(stage, step, pictures, out):
    """Run the command, and end by SIGKILL in the middle of a step of a stage."""
    update = Ema.update

    def deadly(ema, model, current_step):
        record = json.loads((out / "run.json").read_text())
        if stage in record["stages"] and not record["stages"][stage]["result"] and current_step == step:
            kill_self()
        update(ema, model, current_step)

    Ema.update = deadly
    train_whole(pictures, out)


@pytest.mark.slow
def test_killed_three_times_the_result_is_that_of_an_undisturbed_run(finished, pictures, tmp_path):
    out = tmp_path / "out"
    for stage, step in (("image_tokenizer", 1), ("transformer", 5), ("scorer", 3)):
        process = Forked(tmp_path / "output", die_at, stage, step, pictures, out)
        assert process.wait() == -9, process.output.read_text()
    record = train_whole(pictures, out)
    _, expected = finished
    assert {stage: value for stage, value in results(record).items() if stage != "encode"} == {
        stage: value for stage, value in results(expected).items() if stage != "encode"
    }
    # Unlike other figures this one does not depend on how many captions there is time to draw.
    assert record.figures["caption_nats"] == expected.figures["caption_nats"]
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_a_kill_after_the_last_stage_repeats_only_the_report(finished, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    values = json.loads((out / "run.json").read_text())
    values["figures"] = {}
    (out / "run.json").write_text(json.dumps(values))
    (out / "report.html").unlink()
    for path in (out / "configs").iterdir():
        path.write_text(path.read_text())  # the same content at another time
    monkeypatch.setattr("dalle_mini_impl.train.whole.run.run_alone", None)  # no stage is run
    shutil.rmtree(out / "store")
    record = train_whole(pictures, out)
    assert record.figures
    assert (out / "report.html").is_file()


# --- repeated


def test_a_transformer_with_image_embeddings_is_trained_after_the_scorer(pictures, tmp_path):
    settings = (*FIXED, "encode.image_embed=true", "transformer.image_embed.positions=2")
    record = train_whole(pictures, tmp_path / "out", *settings)
    assert list(record.stages) == ["text_tokenizer", "image_tokenizer", "scorer", "encode", "transformer"]
    transformer = read_part(tmp_path / "out/model", "transformer")
    assert transformer.trained_with["scorer"] == record.stages["scorer"].result
    assert transformer.config["stream"]["embed_positions"] == 2
    assert record.figures


def test_a_prior_is_trained_where_the_preset_has_one(pictures, tmp_path):
    preset = tmp_path / "mine"
    copy_configs("small", preset)
    (preset / "prior.yaml").write_text("model: {n_layer: 1, text_length: 9}\nsampling: {sampler: ddim, steps: 2}\n")
    embedded = ("encode.image_embed=true", "transformer.image_embed.positions=2")
    record = train_whole(pictures, tmp_path / "out", *FIXED, *embedded, preset=str(preset))
    assert list(record.stages) == ["text_tokenizer", "image_tokenizer", "scorer", "encode", "transformer", "prior"]
    prior = read_part(tmp_path / "out/model", "prior")
    assert prior.trained_with["scorer"] == record.stages["scorer"].result
    assert prior.config["prior"]["text_length"] == read_part(tmp_path / "out/model", "scorer").config["text_length"]
    assert (tmp_path / "out/store").is_dir()
    page = (tmp_path / "out/report.html").read_text()
    assert "dalle train prior --config" in page
    assert "mean cosine of drawn image embeddings" in page
    drawn = DalleMini.from_pretrained(tmp_path / "out/model").generate("a red disc", candidates=2, keep=1)
    assert drawn.settings["sampling"]["prior"] == "diffusion"


def test_a_finished_run_stays_as_it_is(finished, pictures, capsys):
    out, record = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert train_whole(pictures, out) == record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out} is finished, and nothing was changed; --overwrite trains anew"
    assert re.fullmatch(rf"dalle sample 'a \w+ \w+' --model {out}/model", lines[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 60.0}, "--minutes 60 instead of 0.02"),
        ({"preset": "small"}, "--preset small instead of none"),
        ({"settings": (*FIXED, "run.seed=1")}, "settings .* run.seed=1 instead of "),
        ({"source": "elsewhere"}, "SOURCE elsewhere instead of "),
    ],
)
def test_another_request_for_the_same_folder_is_refused(finished, pictures, changes, message):
    with pytest.raises(UserError, match=f"{message}.*repeat that one to go on, or add --overwrite to train anew"):
        train_whole(changes.pop("source", pictures), finished[0], **changes)


def test_changed_pictures_are_noticed(pictures, tmp_path):
    source, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(pictures, source)
    process = Forked(tmp_path / "output", die_at, "image_tokenizer", 1, source, out)
    assert process.wait() == -9, process.output.read_text()
    shutil.copy(source / "red-disc.png", source / "another.png")
    with pytest.raises(UserError, match=r"got 1 added \(another.png\); put it back to go on, or add --overwrite"):
        train_whole(source, out)
    (source / "another.png").unlink()
    (out / "configs" / "image_tokenizer.yaml").open("a").write("# edited\n")
    with pytest.raises(UserError, match=r"expected .*image_tokenizer.yaml as it was when its stage began"):
        train_whole(source, out)


def test_overwriting_sets_the_earlier_run_aside(finished, pictures, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    model = (out / "model" / "transformer.safetensors").read_bytes()
    record = train_whole(pictures, out, *FIXED, "run.seed=1", overwrite=True)
    assert record.figures
    assert (out / "earlier" / "model" / "transformer.safetensors").read_bytes() == model
    assert (out / "model" / "transformer.safetensors").read_bytes() != model
    assert not (out / "earlier" / "earlier").exists()


def test_an_earlier_run_is_kept_where_the_new_one_cannot_begin(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    with pytest.raises(UserError, match="does not exist"):
        train_whole(tmp_path / "nothing", out, overwrite=True)
    with pytest.raises(UserError, match="expected a setting of a stage"):
        train_whole(tmp_path / "nothing", out, "run.stepz=3", overwrite=True)
    assert (out / "model" / "transformer.safetensors").is_file()
    assert not (out / "earlier").exists()


def test_a_folder_of_something_else_is_left_alone(pictures, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"got a folder with thesis\.txt; name another folder"):
            train_whole(pictures, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_within_the_pictures_is_refused(pictures):
    for out in (pictures, pictures / "runs" / "mine"):
        with pytest.raises(UserError, match=r"expected --out outside of .*pictures, whose pictures are read"):
            train_whole(pictures, out)
    assert not (pictures / "runs").exists()


def test_a_replaced_part_is_noticed(finished, pictures, tiny_model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    values = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**values, "figures": {}}))
    shutil.copy(tiny_model / "transformer.safetensors", out / "model")
    shutil.rmtree(out / "store")
    with pytest.raises(UserError, match=r"expected the transformer .* that this run made"):
        train_whole(pictures, out)


def test_two_runs_in_one_folder_are_refused(finished, pictures, tmp_path):
    out = tmp_path / "out"

    def wait_in_it():
        whole_results.measure_results = lambda *_: time.sleep(600)
        import dalle_mini_impl.train.whole.run as run

        run.measure_results = whole_results.measure_results
        train_whole(pictures, out)

    process = Forked(tmp_path / "output", wait_in_it)
    try:
        process.wait_until(lambda: (out / "run.json").exists())
        with pytest.raises(UserError, match="got another run that is writing it"):
            train_whole(pictures, out)
    finally:
        process.kill()


# --- the report


class Page(html.parser.HTMLParser):
    """Checks that elements are closed, and collects texts, pictures and links."""

    EMPTY = ("meta", "img", "path")

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.words, self.elements = [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.add(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_complete_and_needs_nothing_else(finished):
    out, record = finished
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words)
    for title in (
        "Drawn for captions of the set", "Drawn for captions of pictures it has never seen",
        "Drawn for new combinations of words", "Measured", "What to try next", "Commands",
        "The pictures as the model sees them", "Held-out pictures and their reconstructions", "Learning curves", "Time",
        "Settings",
    ):  # fmt: skip
        assert title in words
    assert "script" not in page.elements
    assert "link" not in page.elements
    assert "http" not in text
    assert "svg" in page.elements
    assert f"dalle sample '{record.figures['caption']}' --model {out}/model" in words
    assert "11 pictures are few" in words
    assert page.pictures
    for picture in page.pictures:
        assert picture["alt"]
        kind, data = picture["src"].split(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    assert "R-precision" in words or "judge" in words


@pytest.mark.slow
def test_captions_cannot_change_the_page(tmp_path):
    source = make_twelve(tmp_path / "pictures")
    for path in source.glob("*.txt"):
        path.write_text(f"<script>alert('{path.stem}')</script> & \"quotes\"\n")
    train_whole(source, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.elements
    assert any("<script>alert(" in word for word in page.words)


# --- sources


@pytest.mark.slow
def test_a_table_with_languages_and_a_tar_are_trained_on(pictures, tmp_path, capsys):
    rows = [
        {"path": str(path), "captions": [{"text": path.stem, "language": "en"}, {"text": "Bild", "language": "de"}]}
        for path in sorted(pictures.glob("*.png"))
    ]
    rows.append({"path": "missing.png", "caption": "nothing"})
    table = tmp_path / "set.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = train_whole(table, tmp_path / "of table")
    output = capsys.readouterr().out
    assert "24 captions (en 12, de 12)" in output
    assert "missing.png" in (tmp_path / "of table" / "report.html").read_text()
    assert record.figures["caption"] in {path.stem for path in pictures.glob("*.png")}

    members = [(path.name, path.read_bytes()) for path in sorted(pictures.iterdir())]
    tar = put_tar(tmp_path / "set.tar", members)
    assert train_whole(tar, tmp_path / "of tar").figures


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "holds neither pictures nor .tar files"),
        (lambda folder: Image.new("RGB", (9, 9)).save(folder / "a.png"), "expected at least 2 pictures with captions"),
        (lambda folder: (folder / "a.png").write_bytes(b"no picture"), "expected at least 2 pictures with captions"),
    ],
)
def test_pictures_that_cannot_be_used_are_one_line(tmp_path, write, message):
    source = tmp_path / "pictures"
    source.mkdir()
    write(source)
    with pytest.raises(UserError, match=message) as caught:
        train_whole(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- the command line


def test_the_command_trains_and_prints_what_to_type(run, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    output = run("train", "all", pictures, "--out", tmp_path / "out", "--minutes", "0.01", *TINY)
    lines = re.split("[\r\n]+", output)
    assert lines[0] == f"{pictures}: 12 pictures"
    assert [line for line in lines if line.strip()][-1].startswith("dalle sample 'a ")
    assert any("preset small" in line for line in lines)
    assert any(re.match(r"4 transformer +[\d,]+ +\d+", line) for line in lines)


def test_bad_input_is_one_line(refused, pictures, tmp_path):
    for arguments in (
        ("--minutes", "0"),
        ("--minutes", "nan"),
        ("--preset", "huge"),
        ("run.steps",),
        ("transformer.run.stepz=3",),
        ("data.source=elsewhere",),
        ("run.minutes=3",),
        ("run.precision=fp32",),
        ("transformer.model.n_layer=0",),
    ):
        error = refused("train", "all", pictures, "--out", tmp_path / "out", *arguments)
        assert error.startswith("error: "), arguments
        assert error.count("\n") == 1, arguments
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_how_to_go_on(pictures, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dalle_mini_impl.train.whole.run.run_alone", interrupt)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        train_whole(pictures, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_train_together(pictures, tmp_path):
    arguments = ["train", "all", str(pictures), "--out", str(tmp_path / "out"), "--minutes", "0.02", *FIXED]
    code, output = launch("cpu-2", 2, "-m", "dalle_mini_impl", *arguments)
    assert code == 0, output
    assert RunFolder(tmp_path / "out").load().figures
    os.environ.pop("RANK", None)


@pytest.mark.slow
def test_sharded_processes_are_told_what_to_launch_instead(pictures, tmp_path):
    arguments = ["train", "all", str(pictures), "--out", str(tmp_path / "out"), *FIXED]
    code, output = launch("gpus-8-fsdp", 2, "-m", "dalle_mini_impl", *arguments)
    assert code != 0
    assert "launch train all with configs/accelerate/gpus-8.yaml" in output


# --- from another model

STARTED = tuple(setting for setting in FIXED if "model." not in setting)


@pytest.mark.parametrize("reuse", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_checkpoint_is_started_from(finished, pictures, tmp_path, monkeypatch, reuse):
    out, origin = tmp_path / "out", finished[0] / "model"
    monkeypatch.setattr(prepare, "image_tokenizer_fit", lambda *_: SimpleNamespace(reuse=reuse))
    record = train_whole(pictures, out, *STARTED, start_from=str(origin))
    made = results(record)
    assert made["text_tokenizer"] == finished[1].stages["text_tokenizer"].result
    assert (made["image_tokenizer"] == finished[1].stages["image_tokenizer"].result) is reuse
    assert (out / "configs" / "image_tokenizer.yaml").exists() is not reuse
    parts = {name: read_part(out / "model", name, weights=False) for name in ("transformer", "scorer")}
    assert {name: part.trained_with["start_from"] for name, part in parts.items()} == {
        name: finished[1].stages[name].result for name in parts
    }
    if reuse:
        before = (out / "report.html").read_bytes()
        assert train_whole(pictures, out, *STARTED, start_from=str(origin)) == record
        assert (out / "report.html").read_bytes() == before


@pytest.mark.slow
def test_the_image_tokenizer_of_a_checkpoint_is_measured(finished, pictures, tmp_path, capsys):
    record = train_whole(pictures, tmp_path / "out", *STARTED, start_from=str(finished[0] / "model"))
    assert type(record.data["reuse"]) is bool
    assert f"image tokenizer of {finished[0] / 'model'} on 11 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("start_from", "settings", "message"),
    [
        ("nowhere", STARTED, "nowhere"),
        ("", (*STARTED, "transformer.model.n_layer=2"), "expected settings that the checkpoint of --from leaves open"),
    ],
)
def test_starts_that_cannot_be(finished, pictures, tmp_path, start_from, settings, message):
    with pytest.raises(UserError, match=message):
        train_whole(pictures, tmp_path / "out", *settings, start_from=start_from or str(finished[0] / "model"))
    assert not (tmp_path / "out").exists()
