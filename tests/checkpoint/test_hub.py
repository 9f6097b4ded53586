"""Repositories and caches of a hub that somebody made to do harm."""

import os

import pytest
from helpers.disks import small_disk
from helpers.standin_hub import put_into_repository

from dalle_mini_impl.checkpoint import hub
from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import CHECKPOINT_FILES
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError

library = pytest.importorskip("huggingface_hub")
ODD_NAMES = (
    "../../../config.yaml",
    "/config.yaml",
    "sub/../../config.yaml",
    "..",
    "config.yaml\n",
    "\x1b[2Jconfig.yaml",
    "CONFIG.YAML",
    "config.yaml/config.yaml",
    "x" * 300,
    "C:\\config.yaml",
    "config.yaml\0",
    "\ud800.yaml",
)


def files_below(folder):
    return {path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_no_file_of_an_odd_name_is_downloaded(standin, folder, tmp_path):
    repository = put_into_repository(standin, folder)
    repository.files.update(dict.fromkeys(ODD_NAMES, b"harm"))
    before = files_below(tmp_path)
    downloaded = find_checkpoint("hf:me/hearts")
    assert {path.name for path in downloaded.iterdir()} == {path.name for path in folder.iterdir()}
    new = files_below(tmp_path) - before
    assert all(path.is_relative_to(tmp_path / "cache") for path in new)
    assert not [path for path in new if path.is_file() and path.read_bytes() == b"harm"]


@pytest.mark.parametrize("name", ["config.yaml", "transformer.safetensors", "MODEL_CARD.md"])
@pytest.mark.parametrize("target", ["{outside}", "../../../../outside", "/dev/zero", "/nowhere"])
def test_a_link_that_leads_out_of_the_cache_is_refused(standin, folder, tmp_path, monkeypatch, name, target):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (folder / "MODEL_CARD.md").write_text("# hearts")
    put_into_repository(standin, folder)
    downloaded = find_checkpoint("hf:me/hearts")
    (downloaded / name).unlink()
    (downloaded / name).symlink_to(target.format(outside=outside))
    monkeypatch.setattr(library, "snapshot_download", lambda *_, **__: str(downloaded))
    with pytest.raises(UserError, match=f"{name} is a link that leads out of the cache") as caught:
        find_checkpoint("hf:me/hearts")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hf:../..", "hf:a/..", "hf:./b", "hf:a/b@../../x", "hf:a/b@\x1b[2J", "hf:-/--", "hf:a/b\n"]
)
def test_odd_names_of_repositories_end_with_one_line(standin, tmp_path, name):
    with pytest.raises(UserError) as caught:
        find_checkpoint(name)
    assert str(caught.value).isprintable(), str(caught.value)
    assert not files_below(tmp_path)


def test_what_a_server_answers_is_printed_safely(standin, folder, login, monkeypatch):
    standin.refusal = "no\x1b]0;title\x07 " + "x" * 10_000
    with pytest.raises(UserError) as caught:
        hub.upload("hf:me/hearts", {"config.yaml": b""}, (), False, "message")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_full_disk_ends_a_download_with_one_line(standin, folder, tmp_path, monkeypatch):
    put_into_repository(standin, folder).files["transformer.safetensors"] = bytes(2**20)
    with small_disk(tmp_path / "disk", 600) as disk:
        monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(disk))
        with pytest.raises(UserError, match="space") as caught:
            find_checkpoint("hf:me/hearts")
        assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(standin, folder, tmp_path, monkeypatch):
    put_into_repository(standin, folder)
    (tmp_path / "cache").write_text("a file in the place of the cache")
    with pytest.raises(UserError, match="cache") as caught:
        find_checkpoint("hf:me/hearts")
    assert "\n" not in str(caught.value)


def test_a_repository_of_files_that_are_no_parts_is_refused(standin, folder):
    repository = put_into_repository(standin, folder)
    for name in CHECKPOINT_FILES:
        repository.files[name] = os.urandom(100)
    with pytest.raises(UserError) as caught:
        DalleMini.from_pretrained("hf:me/hearts")
    assert "\n" not in str(caught.value)
