"""Checkpoints written before config keys were renamed load unchanged.

`old_checkpoint/` was written by version 0.1 with random weights; `old_checkpoint.json` holds what it computed. The text
tokenizer has no table of normalisation rules, which would be 250 kB.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config import renamed
from dalle_mini_impl.pipeline.dalle_mini import DalleMini

FOLDER = Path(__file__).parent / "old_checkpoint"


@pytest.fixture(scope="module")
def dalle():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DalleMini.from_pretrained(FOLDER, "cpu", "fp32")


@pytest.fixture(scope="module")
def expected():
    return json.loads(FOLDER.with_suffix(".json").read_text())


def test_the_parts_use_old_names():
    transformer = read_part(FOLDER, "transformer", weights=False).config["transformer"]
    assert set(renamed.KEYS["TransformerConfig"]) <= set(transformer)
    assert set(renamed.KEYS["BlockConfig"]) <= set(transformer["block"])
    image = read_part(FOLDER, "image_tokenizer", weights=False).config
    assert set(renamed.KEYS["ImageTokenizerConfig"]) <= set(image)
    assert image["network"] in renamed.VALUES["ImageTokenizerConfig"]["network"]


def test_pictures_and_likelihoods_are_those_of_the_version_that_wrote_it(dalle, expected):
    result = dalle.generate("a red heart", candidates=3, keep=3, seed=5, rank="likelihood")
    image_ids = torch.stack([candidate.image_ids for candidate in result])
    assert image_ids.tolist() == expected["image_ids"]
    assert [candidate.score for candidate in result] == pytest.approx(expected["scores"], rel=1e-5)
    likelihood = dalle.log_likelihood("a cat", image_ids).sum(1)
    assert likelihood.tolist() == pytest.approx(expected["log_likelihood"], rel=1e-5)


def test_tokenizers_and_scorer_give_the_recorded_numbers(dalle, expected):
    pixels = dalle.image_tokenizer.decode(torch.tensor(expected["image_ids"]))
    torch.testing.assert_close(pixels.mean((2, 3)), torch.tensor(expected["pixels"]), rtol=1e-4, atol=1e-5)
    assert dalle.image_tokenizer.encode(pixels)[0].tolist() == expected["encoded"]
    assert dalle.scorer.cosines(pixels, "a cat").tolist() == pytest.approx(expected["cosines"], abs=1e-5)
    assert dalle.text_tokenizer.encode("a red heart") == expected["text_ids"]
