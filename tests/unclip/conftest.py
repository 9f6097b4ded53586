"""A tiny checkpoint with a prior."""

import shutil

import pytest
from helpers.priors import add_prior

from dalle_mini_impl.scorer.scorer import Scorer


@pytest.fixture(scope="session")
def scorer(tiny_model):
    return Scorer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def with_prior(tiny_model, tmp_path_factory):
    """A function that makes a checkpoint with a prior of a kind, and returns its folder."""

    def make(kind, **sampling):
        return add_prior(shutil.copytree(tiny_model, tmp_path_factory.mktemp(kind) / "model"), kind, **sampling)

    return make
