"""Damage in the files of an index is found and named; lost vectors are restored by the next update."""

import os
import sqlite3
from contextlib import closing

import pytest
import torch
from helpers.pictures import random_picture

from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search import integrity, store
from dalle_mini_impl.search.index import ImageIndex
from dalle_mini_impl.util.errors import UserError


@pytest.fixture
def folder(pictures, scorer, tmp_path):
    ImageIndex.create(tmp_path / "index", scorer).update(pictures)
    return tmp_path / "index"


def vectors_file(folder):
    (path,) = folder.glob("vectors-*.f16")
    return path


def by_path(index):
    return {path: index.vectors[row].tolist() for path, row in index.pictures()}


def flip(path, position, bit=3):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bit", "zeros"])
def test_lost_vectors_are_refused_and_restored(folder, pictures, scorer, damage):
    whole = by_path(ImageIndex.open(folder, scorer))
    path = vectors_file(folder)
    size = path.stat().st_size
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "cut"):
        os.truncate(path, 0 if damage == "empty" else size // 2 - 1)
    elif damage == "bit":
        flip(path, size // 2)
    else:
        path.write_bytes(bytes(size))
    lost = {"missing": 5, "empty": 5, "cut": 3, "bit": 1, "zeros": 5}[damage]
    index = ImageIndex.open(folder, scorer)
    with pytest.raises(UserError, match=f"got {lost} of them lost or damaged; restore them with: dalle index DIR"):
        index.search("a cat")
    changes = index.update(pictures)
    assert (changes.restored, changes.unchanged, changes.lost) == (lost, 5 - lost, 0)
    assert by_path(index) == whole
    assert by_path(ImageIndex.open(folder, scorer)) == whole


def test_lost_vector_of_a_picture_that_is_away_is_not_found_until_it_is_back(folder, pictures, scorer, tmp_path):
    whole = by_path(ImageIndex.open(folder, scorer))
    (pictures / "sub").rename(tmp_path / "drive")
    (pictures / "sub").symlink_to(tmp_path / "nowhere")
    vectors_file(folder).unlink()
    index = ImageIndex.open(folder, scorer)
    changes = index.update(pictures)
    assert (changes.restored, changes.kept, changes.lost) == (2, 3, 3)
    assert len(index) == len(index.search("a cat", 99)) == len(index.pictures()) == 2
    (pictures / "sub").unlink()
    (tmp_path / "drive").rename(pictures / "sub")
    assert index.update(pictures).restored == 3
    assert by_path(index) == whole


def test_every_flipped_bit_and_every_cut_of_the_database_is_found(folder, scorer):
    path = folder / integrity.DATABASE
    data = path.read_bytes()
    for position in range(0, len(data), 997):
        flip(path, position)
        with pytest.raises(UserError, match=r"is damaged .*; make it again with: dalle index DIR --rebuild"):
            ImageIndex.open(folder, scorer)
        path.write_bytes(data[:position])
        with pytest.raises(UserError, match=r"is damaged|cannot be read"):
            ImageIndex.open(folder, scorer)
        path.write_bytes(data)
    ImageIndex.open(folder, scorer)


def test_damaged_database_is_rebuilt(folder, pictures, scorer):
    whole = by_path(ImageIndex.open(folder, scorer))
    flip(folder / integrity.DATABASE, 5000)
    index, changes = ImageIndex.rebuild(folder, scorer, pictures)
    assert changes.embedded == 5
    assert by_path(index) == whole
    assert vectors_file(folder) == index._files.vectors_path  # the former file is gone


def test_rebuild_that_fails_leaves_the_index(folder, pictures, scorer, monkeypatch):
    whole = by_path(ImageIndex.open(folder, scorer))
    names = sorted(os.listdir(folder))

    def fail(self, pixels):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "embed_prepared", fail)
        with pytest.raises(UserError, match="No space left on device"):
            ImageIndex.rebuild(folder, scorer, pictures)
    assert by_path(ImageIndex.open(folder, scorer)) == whole
    assert sorted(os.listdir(folder)) == names


def test_index_without_checksums_is_searched_and_gets_them(folder, pictures, scorer):
    whole = by_path(ImageIndex.open(folder, scorer))
    vectors_file(folder).rename(folder / store.OLD_VECTORS)
    with closing(sqlite3.connect(folder / integrity.DATABASE)) as database:
        database.execute("DELETE FROM facts WHERE name IN ('vectors', 'mounts', 'absolute_root')")
        database.execute("ALTER TABLE contents DROP COLUMN checksum")
        database.commit()
    (folder / integrity.DIGEST).unlink()
    index = ImageIndex.open(folder, scorer)
    assert len(index.search("a cat", 99)) == 5
    assert index.update(pictures).unchanged == 5
    assert by_path(index) == whole
    flip(folder / store.OLD_VECTORS, 3)
    with pytest.raises(UserError, match="got 1 of them lost or damaged"):
        ImageIndex.open(folder, scorer).search("a cat")


def test_values_of_a_stranger_are_refused(folder, scorer, pictures):
    for statement in (
        "UPDATE facts SET value = 'x' WHERE name = 'dim'",
        "UPDATE facts SET value = -3 WHERE name = 'dim'",
        "UPDATE facts SET value = 5 WHERE name = 'dim'",
        "UPDATE facts SET value = '../../secret.f16' WHERE name = 'vectors'",
        "UPDATE pictures SET path = CAST('/etc/passwd' AS BLOB) WHERE row = 0",
        "UPDATE pictures SET path = CAST('../../x.png' AS BLOB) WHERE row = 0",
        "CREATE TRIGGER t AFTER INSERT ON pictures BEGIN DELETE FROM contents; END",
        "CREATE VIEW v AS SELECT 1",
    ):
        data = (folder / integrity.DATABASE).read_bytes()
        with closing(sqlite3.connect(folder / integrity.DATABASE)) as database:
            database.execute(statement)
            database.commit()
        integrity.write_digest(folder)
        with pytest.raises(UserError, match="is damaged"):
            ImageIndex.open(folder, scorer).search("a cat")
        (folder / integrity.DATABASE).write_bytes(data)
        integrity.write_digest(folder)
    assert len(ImageIndex.open(folder, scorer).search("a cat")) == 5


def test_pictures_whose_embedding_is_not_finite_are_listed_and_not_indexed(pictures, scorer, tmp_path, monkeypatch):
    encode_image = scorer.model.encode_image

    def spoil(pixels):
        embed = encode_image(pixels).clone()
        embed[1] = torch.nan
        embed[3] = 0
        return embed

    monkeypatch.setattr(scorer.model, "encode_image", spoil)
    index = ImageIndex.create(tmp_path / "index", scorer)
    changes = index.update(pictures)
    assert (changes.embedded, changes.unreadable, len(index)) == (3, 2, 3)
    assert index.vectors.isfinite().all()


def test_queries_that_are_not_finite_are_refused(folder, scorer, monkeypatch):
    index = ImageIndex.open(folder, scorer)
    with pytest.raises(UserError, match="expected a number as threshold, got nan"):
        index.search("a cat", threshold=float("nan"))
    monkeypatch.setattr(scorer.model, "encode_text", lambda text_ids: torch.full((len(text_ids), 19), torch.nan))
    with pytest.raises(UserError, match="expected finite embeddings, got 19 of 19 that are not"):
        index.search("a cat")


# --- scorers that an index names


@pytest.mark.parametrize(
    "name", ["hf:a/b", "open_clip:ViT-B-32:/tmp/weights.pt", "/tmp/checkpoint", "../x", "\x1b[2Jhf:"]
)
def test_scorer_that_a_strangers_index_names_is_not_loaded(folder, name, monkeypatch):
    with closing(sqlite3.connect(folder / integrity.DATABASE)) as database:
        database.execute("UPDATE facts SET value = ? WHERE name = 'scorer'", (name.encode(),))
        database.commit()
    integrity.write_digest(folder)
    loaded = []
    monkeypatch.setattr(Scorer, "from_pretrained", lambda *arguments: loaded.append(arguments))
    with pytest.raises(UserError, match="if you trust the scorer that made it, add --scorer") as caught:
        ImageIndex.open(folder)
    assert not loaded
    assert "\x1b" not in str(caught.value)


# --- several processes, moved folders


def test_index_that_another_run_replaced_is_opened_again(folder, pictures, scorer):
    index = ImageIndex.open(folder, scorer)
    other = ImageIndex.create(folder, scorer)
    assert index.update(pictures).embedded == 5  # into the file that is there, not into the one that was deleted
    assert other.update(pictures).unchanged == 5


def test_index_moved_alone_names_pictures_that_exist(pictures, scorer, tmp_path):
    index = ImageIndex.create(pictures / ".dalle-index", scorer)
    index.update(pictures)
    (pictures / ".dalle-index").rename(tmp_path / "moved")
    hit = ImageIndex.open(tmp_path / "moved", scorer).search(random_picture(0), 1)[0]
    assert hit.path == pictures / "red.png"
    (tmp_path / "moved").rename(pictures / ".dalle-index")
    pictures.rename(tmp_path / "all moved")
    hit = ImageIndex.open(tmp_path / "all moved", scorer).search(random_picture(0), 1)[0]
    assert hit.path == tmp_path / "all moved" / "red.png"
