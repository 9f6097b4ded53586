"""Fixtures of the tests of checkpoints."""

import importlib
import shutil

import pytest
from helpers.standin_hub import TOKEN, Hub


@pytest.fixture
def standin(monkeypatch, tmp_path):
    """A local hub that the library uses instead of the real one, without a login and with an empty cache."""
    library = importlib.import_module("huggingface_hub")
    constants, server = importlib.import_module("huggingface_hub.constants"), Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has only the LFS protocol for large files
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    library.close_session()
    yield server
    library.close_session()
    server.close()


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")
