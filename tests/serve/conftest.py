"""A small model of which a service may dispose."""

from pathlib import Path

import pytest

from dalle_mini_impl.pipeline.dalle_mini import DalleMini


@pytest.fixture(scope="session")
def own_dalle(tiny_model: Path) -> DalleMini:
    """The tiny checkpoint, loaded once more: services write their name into what it records."""
    return DalleMini.from_pretrained(tiny_model, "cpu")


@pytest.fixture
def client(own_dalle, tmp_path):
    """A service with the usual limits."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from helpers.serving import serving

    with serving(own_dalle, tmp_path / "files") as client:
        yield client
