"""Shared fixtures: a whole model, small enough to be built in a second, with random weights."""

import dataclasses
import sys
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from dalle_mini_impl.checkpoint import save_part
from dalle_mini_impl.cli import dalle, main
from dalle_mini_impl.config import ImageTokenizerConfig, SamplingConfig, ScorerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config_io import to_dict
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.image_tokenizer import ImageTokenizer
from dalle_mini_impl.pipeline import DalleMini
from dalle_mini_impl.scorer import build_clip
from dalle_mini_impl.settings import save_settings
from dalle_mini_impl.stream import Stream
from dalle_mini_impl.text_part import TEXT_TOKENIZER, add_text_tokenizer
from dalle_mini_impl.text_tokenizer import TextTokenizer, train_text_tokenizer
from dalle_mini_impl.transformer import Transformer, build_transformer

CAPTIONS = (
    "a red heart", "a green apple", "a yellow star", "two cats", "a cat with a red hat", "ein rotes Herz",
    "ein gelber Stern", "eine grüne Katze", "et rødt hjerte", "rdeče srce", "punane süda", "een rood hart",
    "красное сердце", "зелёное яблоко", "قلب أحمر", "تفاحة خضراء", "心形", "红苹果", "赤いハート", "黄色い星",
    "빨간 하트", "สีแดง", "लाल दिल", "κόκκινη καρδιά", "a house", "a tree", "a green tree", "a red house",
    "a yellow house", "trees and houses", "hearts and stars", "the heart of a star",
)  # fmt: skip

IMAGE_TOKENIZER = ImageTokenizerConfig(
    image_size=24, factor=8, channels=(13, 17), decoder_blocks=1, codebook_size=61, embed_dim=5
)
TRANSFORMER = TransformerConfig(n_layer=3, n_head=2, n_embd=24)
SCORER = ScorerConfig(
    image_size=14, patch_size=7, n_embd=22, n_head=2, image_layers=1, text_layers=1, text_length=11, embed_dim=19
)
SAMPLING = SamplingConfig(temperature=0.9, top_k=53, top_p=0.98, guidance=2.5)
TEXT_VOCAB, TEXT_LENGTH, GRID = 367, 7, (3, 5)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tensors here are too small to share out, and threads that wait for each other would cost minutes."""
    torch.set_num_threads(1)


M = TypeVar("M", bound=nn.Module)


def randomise(module: M, seed: int, scale: float = 1.0) -> M:
    """Random weights everywhere, so that no part of a fresh model is silent because it starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            spread = scale * value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
            centre = 1.0 if value.ndim == 1 else 0.0
            value.copy_(centre + spread * torch.randn(value.shape, generator=generator))
    return module.eval()


def make_transformer(
    position: str = "rope", seed: int = 3, bos_id: int = 2, **changes: object
) -> tuple[Transformer, Stream]:
    """A random transformer over a stream of 1 + 7 text and 3 × 5 image positions; `changes` are to its config."""
    stream = StreamConfig(text_length=TEXT_LENGTH, text_vocab=TEXT_VOCAB, grid=GRID, image_vocab=61, bos_id=bos_id)
    config = dataclasses.replace(TRANSFORMER, position=position, **changes)
    transformer = randomise(build_transformer(config, stream), seed, scale=2.0)
    with torch.no_grad():  # logits of spread 1: no id is out of the question, none is sure
        transformer.head.weight *= 0.5
    return transformer, Stream(stream)


def make_image_tokenizer(config: ImageTokenizerConfig = IMAGE_TOKENIZER, seed: int = 5) -> ImageTokenizer:
    """A random image tokenizer whose codebook has seen one batch of noise."""
    tokenizer = randomise(ImageTokenizer(config), seed)
    torch.manual_seed(seed)
    side = config.factor * 3
    tokenizer.train()(torch.rand(11, 3, side, side) * 2 - 1)
    return tokenizer.eval()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder. Tests must not change it: copy it first."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    source = tmp_path_factory.mktemp("text") / TEXT_TOKENIZER
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
def tiny_dalle(tiny_model: Path) -> DalleMini:
    """The checkpoint, loaded."""
    return DalleMini.from_pretrained(tiny_model, "cpu")


@pytest.fixture(scope="session")
def text_tokenizer(tiny_model: Path) -> TextTokenizer:
    """367 text ids, learned from captions in eight scripts."""
    return TextTokenizer(tiny_model / TEXT_TOKENIZER)


@pytest.fixture
def run():
    """Run `dalle`, and give what it printed, or with another code its one line."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(dalle, [*map(str, arguments)])
        if code == 0:
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output
        assert isinstance(result.exception, (UserError, SystemExit)), result.exception
        return str(result.exception) if isinstance(result.exception, UserError) else result.output

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run `dalle` as the shell does on something wrong; gives what it prints to stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dalle", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        return capsys.readouterr().err

    return run


def check_rows_and_threads(native, ids, threads):
    """Hidden states of a row do not depend on how many threads there are, or on the other rows."""
    results = []
    with torch.inference_mode():
        for count in (2, 1, 3):
            threads(count)
            results.append(native(ids))
        alone = native(ids[17:18])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(alone[0], results[0][17])
