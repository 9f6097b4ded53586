"""Models to paint with: a small random image tokenizer and scorers, and the shipped ones."""

import dataclasses

import pytest
from helpers.models import SCORER, make_image_tokenizer, randomise

from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.scorer.preprocess import Preprocess
from dalle_mini_impl.scorer.scorer import Scorer


@pytest.fixture(scope="module")
def tokenizer():
    return make_image_tokenizer()


@pytest.fixture(scope="module")
def scorer(tiny_model):
    return Scorer.from_pretrained(str(tiny_model))


@pytest.fixture(scope="module")
def second_scorer(text_tokenizer):
    """A scorer with other weights and another image size."""
    config = dataclasses.replace(SCORER, image_size=21)
    clip = build_clip(config, text_tokenizer.vocab_size, pad_id=text_tokenizer.pad_id, eos_id=text_tokenizer.eos_id)
    return Scorer(randomise(clip, 11), text_tokenizer, Preprocess(21), SCORER.text_length)


@pytest.fixture(scope="module")
def shipped():
    """The shipped image tokenizer and scorer."""
    return ImageTokenizer.from_pretrained("emoji"), Scorer.from_pretrained("emoji")
