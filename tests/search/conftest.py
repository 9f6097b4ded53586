"""Fixtures of the tests of image search."""

import pytest
from helpers.pictures import make_old, random_picture

from dalle_mini_impl.scorer.scorer import Scorer


@pytest.fixture(scope="session")
def scorer(tiny_model):
    return Scorer.from_pretrained(str(tiny_model))


@pytest.fixture
def pictures(tmp_path):
    """A folder of five pictures in three folders, written long ago."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("red.png", "sub/green.png", "sub/blue.jpg", "sub/deep/noise.png", "grey.webp")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_picture(number).save(folder / name)
    make_old(folder)
    return folder
