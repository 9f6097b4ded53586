"""Shared fixtures: a whole model, small enough to be built in a second, with random weights."""

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.models import (
    CAPTIONS,
    IMAGE_TOKENIZER,
    SAMPLING,
    SCORER,
    TEXT_VOCAB,
    TRANSFORMER,
    make_image_tokenizer,
    make_transformer,
    randomise,
)

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.checkpoint.settings import save_settings
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE, add_text_tokenizer
from dalle_mini_impl.cli import dalle, main
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer, train_text_tokenizer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import _can_read

pytest_plugins = ("helpers.training", "helpers.native")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Use one thread: the tensors here are too small to divide, and threads that wait for each other take long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder. Tests must not change it; they copy it first."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    source = tmp_path_factory.mktemp("text") / TEXT_TOKENIZER_FILE
    train_text_tokenizer(CAPTIONS, source, TEXT_VOCAB)
    text = add_text_tokenizer(folder, source)
    image = save_part(folder, "image_tokenizer", make_image_tokenizer(), to_dict(IMAGE_TOKENIZER), {})
    transformer, stream = make_transformer()
    config = {"stream": to_dict(stream.config), "transformer": to_dict(TRANSFORMER)}
    trained_with = {"text_tokenizer": text.identity, "image_tokenizer": image}
    save_part(folder, "transformer", transformer, config, trained_with)
    clip = randomise(build_clip(SCORER, TEXT_VOCAB, pad_id=text.pad_id, eos_id=text.eos_id), 7)
    save_part(folder, "scorer", clip, to_dict(SCORER), {"text_tokenizer": text.identity})
    save_settings(folder, SAMPLING)
    return folder


@pytest.fixture(scope="session")
def other_scorer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another scorer than the tiny checkpoint's. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "other"
    text = add_text_tokenizer(folder, tiny_model / TEXT_TOKENIZER_FILE)
    clip = randomise(build_clip(SCORER, TEXT_VOCAB, pad_id=text.pad_id, eos_id=text.eos_id), 8)
    save_part(folder, "scorer", clip, to_dict(SCORER), {"text_tokenizer": text.identity})
    return folder


@pytest.fixture(scope="session")
def tiny_dalle(tiny_model: Path) -> DalleMini:
    """The tiny checkpoint, loaded."""
    return DalleMini.from_pretrained(tiny_model, "cpu")


@pytest.fixture(scope="session")
def text_tokenizer(tiny_model: Path) -> TextTokenizer:
    """367 text ids, learned from captions in eight scripts."""
    return TextTokenizer(tiny_model / TEXT_TOKENIZER_FILE)


@pytest.fixture
def run():
    """Run `dalle` and return what it printed; with `code` other than 0 the message it failed with."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(dalle, [*map(str, arguments)])
        if code == 0:
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output
        assert isinstance(result.exception, (UserError, SystemExit)), result.exception
        return str(result.exception) if isinstance(result.exception, UserError) else result.output

    return run


@pytest.fixture
def without_svg(monkeypatch):
    """No library draws SVG files."""
    _can_read.cache_clear()
    for module in ("images", "svg"):
        monkeypatch.setattr(f"dalle_mini_impl.util.{module}.svg_installed", lambda: False)
    yield
    _can_read.cache_clear()


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run `dalle` as a shell does, with input that it must refuse, and return what it prints to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dalle", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        return capsys.readouterr().err

    return run
