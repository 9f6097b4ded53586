"""The set of drawings that pictures are compared with."""

import pytest
from helpers.drawings import write_drawings

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.picture_store import build_store


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Seven concepts by three vendors; openmoji's drawings of three are held out; a flag by one vendor."""
    return write_drawings(tmp_path_factory.mktemp("emoji"))


@pytest.fixture(scope="session")
def store(source, tmp_path_factory):
    """The picture store of these."""
    folder = tmp_path_factory.mktemp("store") / "store"
    build_store(DataConfig(source=source, store=str(folder), store_size=24))
    return str(folder)
