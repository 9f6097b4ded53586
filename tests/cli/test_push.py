"""`dalle push`; uploading itself is tested in tests/checkpoint."""

import shutil

import pytest
from click.testing import CliRunner

from dalle_mini_impl.checkpoint import publish
from dalle_mini_impl.cli import dalle


@pytest.fixture
def pushed(monkeypatch):
    """Arguments of each upload; nothing is uploaded."""
    calls = []

    def push_checkpoint(*arguments):
        calls.append(arguments)
        return "https://hub/me/hearts"

    monkeypatch.setattr(publish, "push_checkpoint", push_checkpoint)
    return calls


def test_options_reach_the_upload_and_its_address_is_printed(tiny_model, pushed):
    arguments = ["push", str(tiny_model), "hf:me/hearts", "--private", "--message", "first"]
    result = CliRunner().invoke(dalle, arguments, catch_exceptions=False)
    assert pushed == [(tiny_model, "hf:me/hearts", True, "first")]
    assert result.stdout == "https://hub/me/hearts\n"
    assert result.stderr == f"checking {tiny_model}\n"


def test_a_checkpoint_that_cannot_be_loaded_is_not_uploaded(tiny_model, pushed, refused, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "transformer.safetensors").write_bytes(b"damaged")
    assert "transformer.safetensors is damaged" in refused("push", folder, "hf:me/hearts")
    assert not pushed
