"""What the documents show is run: commands, Python and YAML; links lead somewhere; tables name settings that exist."""

import functools
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import pytest
from accelerate.state import AcceleratorState, GradientState
from click.testing import CliRunner
from helpers.training import ROOT, draw_shape, make_pictures
from PIL import Image

import dalle_mini_impl
from dalle_mini_impl.cli import dalle as command_line
from dalle_mini_impl.config.checkpoint import CheckpointConfig
from dalle_mini_impl.config.training import ImageTokenizerRun, TransformerRun
from dalle_mini_impl.config.yaml_io import from_dict, read_yaml

DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "notebooks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "dalle_mini_impl/pretrained/emoji/MODEL_CARD.md",
    ]
)
STAGES = ("text-tokenizer", "image-tokenizer", "encode", "transformer", "scorer")

SMALL = [
    (r"--(candidates|sweep-pairs|pairs|prompts|pictures|steps|shown) \S+", r"--\1 2"),
    (r"--keep \d+", "--keep 1"),
    (r"--size \d+", "--size 64"),
    (r"--minutes \d+", "--minutes 0.01"),
]
"""Makes a command small; counts in documents are for a user's patience, not for a test's."""

TINY_STAGES = {
    "all": "image_tokenizer.model.image_size=16 image_tokenizer.model.channels=[16] transformer.model.n_layer=1 "
    "model.n_head=2 model.n_embd=16 scorer.model.image_size=16 scorer.model.patch_size=8 run.steps=2 run.batch_size=4 "
    "encode.variants=2",
    "text-tokenizer": "vocab_size=300",
    "image-tokenizer": "model.image_size=16 model.channels=[16] model.decoder_blocks=1 run.steps=2 run.batch_size=4",
    "encode": "variants=2",
    "transformer": "model.n_layer=1 model.n_head=2 model.n_embd=16 run.steps=2 run.batch_size=4",
    "scorer": "model.n_embd=16 model.n_head=2 model.image_size=16 model.patch_size=8 run.steps=2 run.batch_size=4",
}
"""Settings that train a stage in a second."""

NOT_RUN = {
    r"\bhf:|\bhf-hub:": "needs a hub",
    r"open_clip": "downloads weights",
    r"^data emoji|data/emoji": "needs npm or another package's art; tests/data/emoji",
    r"^import|^export|runs/(vqgan|mindalle|rudalle|dalle1|other|mine$)": "needs another project's files; tests/interop",
    r"^bench|^compare": "takes minutes; tests/bench",
    r"^evaluate (generation|unclip|rerank|scorer|captions|paint|image-tokenizer|precision)": "tests/evaluate",
    r"^serve": "runs until it is told to end; tests/serve",
    r"^(vary|mix|edit|components)\b": "needs a model with image embeddings; tests/cli/test_manipulations.py",
    r"--like": "needs a model with image embeddings; tests/pipeline/test_picture_embed.py",
    r"--decoder diffusion": "needs a model with a diffusion decoder; tests/pipeline/test_diffused.py",
    r"^app": "serves until it is ended; tests/app",
    r"--faiss": "needs the extra faiss; tests/search",
    r"…": "a part is left out",
}
"""Patterns of commands that are parsed, options and all, but not run; and the reason, or what runs them instead."""


class Block(NamedTuple):
    """A fenced block of a document."""

    place: str
    language: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    lines = path.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            if start is None:
                start = number
            else:
                text = "\n".join(lines[start + 1 : number]) + "\n"
                place = f"{path.relative_to(ROOT).as_posix()}:{start + 1}"
                yield Block(place, lines[start].strip().removeprefix("```"), text)
                start = None


def shell_commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block, variables filled in; none where the block is no shell text."""
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if match := re.fullmatch(r'([A-Z]+)="(.*)"', line.strip()):
            variables[match[1]] = match[2]
            continue
        if re.match(r"(dalle|accelerate|python|pip|hf|make|pytest|cp|mkdir) ", line):
            yield shlex.split(line, comments=True)


def dalle_arguments(words: list[str]) -> list[str] | None:
    """What follows `dalle`, however the command is started; None for other programs."""
    if words[0] == "dalle":
        return words[1:]
    if words[0] in ("accelerate", "python") and "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        if module == "dalle_mini_impl":
            return rest
        if module.startswith("dalle_mini_impl.train."):
            return ["train", module.rpartition(".")[2].replace("_", "-"), *rest]
    return None


@functools.cache
def all_commands() -> list[tuple[str, list[str]]]:
    """Every `dalle` command of all blocks, as (place, arguments)."""
    found = []
    for path in DOCUMENTS:
        for block in blocks(path):
            if block.language in ("", "bash", "sh"):
                for words in shell_commands(block):
                    if (arguments := dalle_arguments(words)) is not None:
                        found.append((block.place, arguments))
    return found


def inline_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands within sentences and tables that are whole: without … and placeholders."""
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for match in re.finditer(r"`(dalle [a-z][^`]*)`", text):
            line = " ".join(match[1].replace("\\|", "|").split())
            if "…" not in line and not re.search(r"\b[A-Z][A-Z]+\b", line.replace("USER/REPO", "")):
                yield path.relative_to(ROOT).as_posix(), shlex.split(line)[1:]


def parse(arguments: list[str]) -> click.testing.Result:
    """Parse a command line with every option and choice, without doing what it says."""
    with mock.patch.object(click.Command, "invoke", return_value=None):
        return CliRunner().invoke(command_line, arguments)


def test_every_command_of_the_documents_parses():
    assert len(all_commands()) > 60
    for place, arguments in all_commands():
        result = parse([word.replace("…", "x.yaml") for word in arguments])
        assert result.exit_code == 0, f"{place}: dalle {shlex.join(arguments)}\n{result.output}"


def test_commands_within_sentences_name_real_commands_and_options():
    for place, arguments in inline_commands():
        result = parse(arguments)
        output = result.output + str(result.exception or "")
        unknown = "No such" in output or "is not one of" in output
        assert not unknown, f"{place}: dalle {shlex.join(arguments)}\n{output}"


def test_other_commands_of_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    tomllib = pytest.importorskip("tomllib", reason="is in Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in DOCUMENTS:
        for block in blocks(path):
            for words in shell_commands(block) if block.language in ("", "bash", "sh") else ():
                if words[0] == "make":
                    assert all(f"\n{target}:" in makefile for target in words[1:]), block.place
                if words[0] == "pip":
                    named = re.findall(r"\[([a-z,-]+)\]", " ".join(words))
                    assert all(extra in extras for names in named for extra in names.split(",")), block.place
                if words[0] == "pytest":
                    assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), block.place


# --- running


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with what the documents' examples name: pictures with captions, photos, lists of texts."""
    folder = tmp_path_factory.mktemp("documents")
    make_pictures(folder / "my_pictures")
    (folder / "photos").mkdir()
    (folder / "my_classes").mkdir()
    for number, shape in enumerate(("disc", "ring", "square")):
        picture = Image.new("RGB", (96, 80), "white")
        picture.paste(draw_shape(shape, (230, 40, 40)), (20, 20))
        picture.save(folder / "photos" / f"{number}.png")
        (folder / "my_classes" / shape).mkdir()
        picture.save(folder / "my_classes" / shape / "one.png")
        for name in ("photo.png", "drawing.jpg", "holiday.jpg", "sketch.png"):
            picture.save(folder / name)
    mask = Image.new("RGB", (96, 80), "black")
    mask.paste("white", (40, 40, 96, 80))
    mask.save(folder / "mask.png")
    (folder / "pictures").mkdir()
    for name in ("captions.txt", "classes.txt", "prompts.txt"):
        (folder / name).write_text("a red heart\na cat\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "a red heart"}\n{"prompt": "a cat", "seed": 3}\n')
    return folder


def run(arguments: list[str], folder: Path) -> None:
    """Run a command in a folder, small, on the CPU and in a process that has trained nothing yet."""
    line = shlex.join(arguments)
    for pattern, replacement in SMALL:
        line = re.sub(pattern, replacement, line)
    words = shlex.split(line)
    words = [str(path) for word in words for path in (sorted(folder.glob(word)) if "*" in word else [word])]
    if words[0] == "paint" and "--steps" not in words:
        words += ["--steps", "2"]
    if words[0] == "train":
        words += TINY_STAGES[words[1]].split()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}),
        warnings.catch_warnings(),
    ):
        patch.chdir(folder)
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(command_line, words, catch_exceptions=True)
    assert result.exit_code == 0, f"dalle {shlex.join(words)}\n{result.output}\n{result.exception!r}"


def reason_not_to_run(arguments: list[str]) -> str | None:
    line = shlex.join(arguments)
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def test_the_commands_of_the_readme_train_a_model_and_draw_with_it(workspace):
    own = [arguments for place, arguments in all_commands() if place.startswith("README.md")]
    assert [words[1] for words in own if words[0] == "train" and words[1] != "all"] == list(STAGES)
    for arguments in own:
        if not reason_not_to_run(arguments):
            run(arguments, workspace)
    assert (workspace / "runs/mine/model/scorer.safetensors").is_file()


@pytest.mark.parametrize("document", [p.name for p in DOCUMENTS if p.parent.name == "docs"])
def test_commands_of_a_guide_run(workspace, document):
    """After the README's commands, which train `runs/mine/model` (pytest runs tests in the order of the file)."""
    if not (workspace / "runs/mine/model").is_dir():
        test_the_commands_of_the_readme_train_a_model_and_draw_with_it(workspace)
    if document == "search.md":
        run(["index", "photos"], workspace)  # the guide's own index has a scorer from a hub
    for place, arguments in all_commands():
        if place.startswith(f"docs/{document}:") and not reason_not_to_run(arguments):
            if arguments[0] == "train":
                continue  # the README's test runs every stage
            drawn = sorted((workspace / "pictures").glob("*.png"))
            run([word.replace("pictures/NAME.png", str(drawn[0])) if drawn else word for word in arguments], workspace)


PYTHON_SMALL = [(r"candidates=\d+", "candidates=2"), (r"keep=\d+", "keep=1"), (r"steps=\d+", "steps=2")]


@pytest.mark.parametrize(
    "block",
    [block for path in DOCUMENTS for block in blocks(path) if block.language == "python"],
    ids=lambda b: b.place,
)
def test_python_of_the_documents_runs(workspace, block, monkeypatch):
    if "hf:" in block.text or "runs/vqgan" in block.text:
        compile(block.text, block.place, "exec")
        names = re.findall(r"from dalle_mini_impl import (.*)", block.text)
        assert all(hasattr(dalle_mini_impl, name.strip()) for line in names for name in line.split(","))
        return
    monkeypatch.chdir(workspace)
    shutil.rmtree(workspace / "photos.index", ignore_errors=True)
    text = block.text
    for pattern, replacement in PYTHON_SMALL:
        text = re.sub(pattern, replacement, text)
    exec(compile(text, block.place, "exec"), documented_names())


@functools.cache
def _emoji() -> Any:
    return dalle_mini_impl.DalleMini.from_pretrained("emoji", "cpu")


def documented_names() -> dict[str, Any]:
    """Names that snippets use without making them: those of the public API and some inputs."""
    picture = Image.new("RGB", (64, 64), "red")
    public = {name: getattr(dalle_mini_impl, name) for name in dalle_mini_impl.__all__}
    return {**public, "dalle": _emoji(), "picture": picture, "images": [picture], "texts": ["a cat"]}


def test_yaml_of_the_documents_holds_real_settings():
    for path in DOCUMENTS:
        for block in blocks(path):
            if block.language == "yaml":
                values = read_yaml(block.text)
                if "about" in values:
                    from_dict(CheckpointConfig, {"sampling": {}, **values})
                else:
                    from_dict(ImageTokenizerRun if "data" in values else TransformerRun, values)


# --- links


def test_the_website_lists_each_document_once():
    names = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 20
    assert sorted(set(names)) == sorted(names)


def test_links_between_documents_lead_to_files():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_files_named_in_documents_exist():
    """Paths in backticks such as `configs/emoji` or `model/masks.py`: of the checkout or of the package."""
    for path in DOCUMENTS:
        if path.parent.name == "decisions" or path.name == "log.md":
            continue  # they speak of their time
        for name in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9.]+\.(?:py|c|yaml|json|md))`", path.read_text("utf-8")):
            homes = (ROOT, ROOT / "dalle_mini_impl", ROOT / "docs")
            known = any((home / name).exists() for home in homes) or name.startswith(("runs/", "data/", "tokenizer/"))
            assert known, f"{path.relative_to(ROOT)} names {name}"
