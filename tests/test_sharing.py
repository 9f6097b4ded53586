import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner
from conftest import SAMPLING, make_image_tokenizer
from standin_hub import TOKEN, Hub, Repository

from dalle_mini_impl import ImageTokenizer, checkpoint, hub, sharing
from dalle_mini_impl.cli import dalle
from dalle_mini_impl.config import AboutConfig, Figure
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.pipeline import DalleMini
from dalle_mini_impl.settings import save_settings

library = pytest.importorskip("huggingface_hub")
PARTS = {"config.yaml", "text_tokenizer.model", "image_tokenizer.safetensors", "transformer.safetensors",
         "scorer.safetensors"}  # fmt: skip


@pytest.fixture
def standin(monkeypatch, tmp_path):
    """A hub on loopback that the library takes for the real one, with nobody logged in and an empty cache."""
    constants, server = importlib.import_module("huggingface_hub.constants"), Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the other way of storing large files
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


def put(standin, folder, name="me/hearts", **options):
    """Put a folder's files into a repository without the library."""
    repository = standin.repositories[name] = Repository(**options)
    repository.commit("first", {path.name: path.read_bytes() for path in folder.iterdir()})
    return repository


def one_line(text):
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    return text


# --- downloading


def test_what_was_pushed_is_what_is_loaded(standin, login, folder):
    printed = CliRunner().invoke(dalle, ["push", str(folder), "hf:me/hearts"], catch_exceptions=False).stdout
    assert printed == f"{standin.url}/me/hearts\n"
    loaded, here = DalleMini.from_pretrained("hf:me/hearts", "cpu", "fp32"), DalleMini.from_pretrained(folder, "cpu", "fp32")
    assert loaded.source == {**here.source, "model": "hf:me/hearts"}
    assert loaded.sampling == SAMPLING
    drawn, same = (one.generate("a cat", candidates=2, keep=1)[0] for one in (loaded, here))
    assert (drawn.seed, drawn.score) == (same.seed, same.score)
    assert (drawn.image_ids == same.image_ids).all()
