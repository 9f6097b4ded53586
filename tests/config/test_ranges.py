"""Numbers that make no sense are refused, each with its name, before a stage begins."""

import dataclasses
import math

import pytest

from dalle_mini_impl.config.diffusion import DiffusionDecoderRun
from dalle_mini_impl.config.ranges import Interval, check_ranges
from dalle_mini_impl.config.training import (
    EncodeRun,
    ImageTokenizerRun,
    PriorRun,
    ScorerRun,
    TextTokenizerRun,
    TransformerRun,
)
from dalle_mini_impl.config.yaml_io import from_dict, load
from dalle_mini_impl.util.errors import UserError


@pytest.mark.parametrize(
    "kind",
    [TextTokenizerRun, ImageTokenizerRun, EncodeRun, TransformerRun, ScorerRun, PriorRun, DiffusionDecoderRun],
)
def test_defaults_are_in_their_ranges(kind):
    check_ranges(kind())


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        (TransformerRun, "model.n_layer=0", "expected model.n_layer of at least 1 and at most 10000, got 0; change it"),
        (TransformerRun, "model.n_head=0", "expected model.n_head of at least 1 and at most 1048576, got 0"),
        (TransformerRun, "model.n_embd=-8", "expected model.n_embd of at least 1 and at most 1048576, got -8"),
        (TransformerRun, "model.attention_masks=[]", "expected at least one value in model.attention_masks, got none"),
        (TransformerRun, "text_length=0", "expected text_length of at least 1 and at most 65536, got 0"),
        (TransformerRun, "image_weight=-1", "expected image_weight of at least 0, got -1.0"),
        (TransformerRun, "caption_dropout=1.5", "expected caption_dropout of at least 0 and at most 1, got 1.5"),
        (TransformerRun, "language_weights={en: -1}", "expected language_weights.en of at least 0, got -1.0"),
        (TransformerRun, "optimizer.betas=[0.9, 1]", "expected optimizer.betas of at least 0 and less than 1, got 1.0"),
        (TransformerRun, "optimizer.learning_rate=-1e-3", "expected optimizer.learning_rate of at least 0"),
        (TransformerRun, "optimizer.weight_decay=-1", "expected optimizer.weight_decay of at least 0"),
        (TransformerRun, "optimizer.clip=0", "expected optimizer.clip of more than 0, got 0.0"),
        (TransformerRun, "run.ema=1", "expected run.ema of at least 0 and less than 1, got 1.0"),
        (TransformerRun, "run.save_every=-1", "expected run.save_every of at least 0, got -1"),
        (TransformerRun, "plateau.halvings=-1", "expected plateau.halvings of at least 0, got -1"),
        (ImageTokenizerRun, "model.channels=[0]", "expected model.channels of at least 1 and at most 1048576, got 0"),
        (ImageTokenizerRun, "model.channels=[]", "expected at least one value in model.channels, got none"),
        (ImageTokenizerRun, "model.factor=0", "expected model.factor of at least 1 and at most 16384, got 0"),
        (
            ImageTokenizerRun,
            "model.codebook_size=0",
            "expected model.codebook_size of at least 1 and at most 1048576, got 0",
        ),
        (ImageTokenizerRun, "augment.scale=[-1, 1]", "expected augment.scale of more than 0, got -1.0"),
        (ImageTokenizerRun, "dvae.temperature=[1, 0]", "expected dvae.temperature of more than 0, got 0.0"),
        (ScorerRun, "model.patch_size=0", "expected model.patch_size of at least 1 and at most 16384, got 0"),
        (ScorerRun, "model.embed_dim=-1", "expected model.embed_dim of at least 1 and at most 1048576, got -1"),
        (
            TransformerRun,
            "text_length=100000000",
            "expected text_length of at least 1 and at most 65536",
        ),
        (TransformerRun, "model.block.hidden=1000000000", "expected model.block.hidden of at least 0"),
        (
            TransformerRun,
            "run.batch_size=1000000000",
            "expected run.batch_size of at least 1 and at most 16777216, got",
        ),
        (ImageTokenizerRun, "data.store_size=1000000", "expected data.store_size of at least 0 and at most 16384"),
        (EncodeRun, "batch_size=0", "expected batch_size of at least 1 and at most 16777216, got 0"),
        (EncodeRun, "seed=-1", "expected seed of at least 0, got -1"),
        (EncodeRun, "variants=-1", "expected variants of at least 0 and at most 10000, got -1"),
    ],
)
def test_numbers_out_of_their_range_are_refused(tmp_path, kind, override, message):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError) as caught:
        load(kind, tmp_path / "config.yaml", [override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    config = TransformerRun()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=value))
    with pytest.raises(UserError, match=rf"expected a finite optimizer\.learning_rate, got {value}; change it"):
        check_ranges(config)
    with pytest.raises(UserError, match=r"expected a finite language_weights\.en"):
        check_ranges(TransformerRun(language_weights={"en": value}))


def test_headers_of_checkpoints_are_not_restricted():
    assert from_dict(TransformerRun, {"caption_dropout": 2}).caption_dropout == 2


def test_a_range_in_words():
    assert str(Interval(0, above=True)) == "more than 0"
    assert str(Interval(0, 1, below=True)) == "at least 0 and less than 1"
    assert 0 not in Interval(0, above=True)
    assert 1 not in Interval(0, 1, below=True)
    assert 1 in Interval(0, 1)
