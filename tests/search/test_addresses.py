"""An index of pictures at an address."""

import io

import pytest
from helpers.pictures import random_picture

from dalle_mini_impl.data import remote
from dalle_mini_impl.search.index import ImageIndex, hits_sheet
from dalle_mini_impl.util.errors import UserError

fsspec = pytest.importorskip("fsspec")
SOURCE = "memory://photos"


@pytest.fixture
def memory(pictures, monkeypatch):
    """Fsspec's file system in memory, with the pictures of `pictures`."""
    monkeypatch.setattr(remote, "sleep", lambda _: None)
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in pictures.rglob("*.*"):
        files.pipe(f"/photos/{path.relative_to(pictures)}", path.read_bytes())
    files.pipe("/photos/.hidden/a.png", b"no picture")
    files.pipe("/photos/notes.txt", b"no picture")
    yield files
    files.store.clear()


def update(folder, scorer, source=SOURCE):
    index = ImageIndex.create(folder, scorer, replace=False)
    return index, index.update(source)


def test_the_vectors_are_those_of_the_files(memory, pictures, scorer, tmp_path):
    index, changes = update(tmp_path / "index", scorer)
    assert (changes.embedded, changes.unreadable) == (5, 0)
    local, _ = update(tmp_path / "local", scorer, pictures)
    there = {str(path): index.vectors[row].tolist() for path, row in index.pictures()}
    assert there == {
        f"{SOURCE}/{path.relative_to(pictures)}": local.vectors[row].tolist() for path, row in local.pictures()
    }


def test_only_what_has_changed_is_read_again(memory, scorer, tmp_path, monkeypatch):
    update(tmp_path / "index", scorer)
    memory.rm("/photos/sub/green.png")
    content = io.BytesIO()
    random_picture(9).save(content, "PNG")
    memory.pipe("/photos/red.png", content.getvalue())
    memory.pipe("/photos/new.png", b"no picture")
    read = []
    blocks = remote.RemotePath.blocks
    monkeypatch.setattr(remote.RemotePath, "blocks", lambda path: read.append(path.name) or blocks(path))
    _, changes = update(tmp_path / "index", scorer)
    assert sorted(read) == ["new.png", "red.png"]
    assert (changes.embedded, changes.unchanged, changes.removed, changes.unreadable) == (1, 3, 1, 1)


def test_hits_are_addresses_and_are_drawn(memory, scorer, tmp_path):
    update(tmp_path / "index", scorer)
    index = ImageIndex.open(tmp_path / "index", scorer)
    hits = index.search(random_picture(0), keep=2)
    assert str(hits[0].path) == f"{SOURCE}/red.png"
    assert hits_sheet(hits[:1]).getcolors(2**20) != hits_sheet(hits[1:]).getcolors(2**20)


def test_an_address_that_cannot_be_listed_removes_nothing(memory, scorer, tmp_path, monkeypatch):
    index, _ = update(tmp_path / "index", scorer)

    def broken(*_, **__):
        raise PermissionError("Forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "find", broken)
        with pytest.raises(UserError, match=r"memory://photos cannot be listed \(Forbidden\); check the address"):
            index.update(SOURCE)
    assert update(tmp_path / "index", scorer)[1].unchanged == 5


def test_another_folder_is_refused(memory, scorer, tmp_path):
    index, _ = update(tmp_path / "index", scorer)
    memory.pipe("/others/a.png", b"no picture")
    with pytest.raises(
        UserError, match=r"expected memory://photos, the folder of the index in .*, got memory://others"
    ):
        index.update("memory://others")
    with pytest.raises(UserError, match="expected a folder of pictures, or tars, got memory://nowhere; check the path"):
        index.update("memory://nowhere")


def test_the_command_needs_a_place_for_the_index(memory, run, refused, tmp_path, tiny_model):
    assert refused("index", SOURCE).startswith(f"error: expected --out with the address {SOURCE}, got none; name")
    assert "5 new" in run("index", SOURCE, "--out", tmp_path / "index", "--scorer", tiny_model)
    assert "memory://photos/" in run("search", tmp_path / "index", "a cat", "--scorer", tiny_model)
