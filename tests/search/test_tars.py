"""An index of pictures in tars, here and at an address."""

import errno
import os
import sys
import tarfile
from functools import partial

import pytest
from helpers.pictures import OLD_NS, make_old, random_picture
from helpers.processes import Forked, kill_self
from helpers.sources import put_tar

from dalle_mini_impl.data import remote
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.search import embedding
from dalle_mini_impl.search.embedding import make_worker
from dalle_mini_impl.search.export import export_clip_retrieval
from dalle_mini_impl.search.index import ImageIndex, hits_sheet
from dalle_mini_impl.search.store import IndexFiles
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.ray_workers import LOCAL, ray_workers


def members(pictures):
    """The files of a folder as members of a tar, each with a caption."""
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    named = [(path.relative_to(pictures).as_posix(), path.read_bytes()) for path in files]
    return [*named, *((f"{name.rpartition('.')[0]}.txt", "a caption") for name, _ in named)]


@pytest.fixture
def tars(pictures, tmp_path):
    """Two tars with the pictures of `pictures`, one of them twice, and what is no picture; written long ago."""
    folder = tmp_path / "tars"
    folder.mkdir()
    content = members(pictures)
    put_tar(folder / "0.tar", [*content[:2], *content[5:]])
    put_tar(folder / "1.tar", [*content[2:5], ("copy.png", content[1][1]), ("bad.png", b"no picture")])
    make_old(folder)
    return folder


def update(folder, scorer, source, **options):
    log = SkipLog()
    index = ImageIndex.create(folder, scorer, replace=False)
    return index, index.update(source, log, **options), log


def vectors(index):
    """The vector of each picture to the bit, by the end of its path."""
    return {
        str(path).replace(str(index.root), "").lstrip("/"): index.vectors[row].tolist()
        for path, row in index.pictures()
    }


def numbers(changes):
    return {name: value for name, value in vars(changes).items() if value}


@pytest.fixture
def index(tars, scorer, tmp_path):
    return update(tmp_path / "index", scorer, tars)[0]


def test_the_vectors_are_those_of_the_files(tars, pictures, scorer, tmp_path):
    index, changes, log = update(tmp_path / "index", scorer, tars)
    assert numbers(changes) == {"embedded": 5, "reused": 1, "unreadable": 1}
    assert any(name == "1.tar:bad.png" and reason.startswith("not a picture") for name, reason in log.entries)
    local, *_ = update(tmp_path / "local", scorer, pictures)
    expected = vectors(local)
    found = vectors(index)
    assert found.pop("1.tar:copy.png") == expected["red.png"]
    assert {name.partition(":")[2]: vector for name, vector in found.items()} == expected
    assert {name.partition(":")[0] for name in found} == {"0.tar", "1.tar"}


def test_a_search_names_the_tar_and_the_member(tars, index, pictures):
    hits = index.search(pictures / "red.png", keep=2)
    names = {f"{tars}/0.tar:red.png", f"{tars}/1.tar:copy.png"}
    assert {str(path) for path in (hits[0].path, *hits[0].copies)} == names
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert hits[0].path.name in ("red.png", "copy.png")
    assert hits_sheet(hits[:1]).getcolors(2**20) != hits_sheet(hits[1:]).getcolors(2**20)
    (tars / "0.tar").unlink()
    (tars / "1.tar").unlink()
    assert len(hits_sheet(hits[:1]).getcolors(2**20)) < 300  # white, with its label


def test_only_tars_that_have_changed_are_read_again(tars, index, scorer, tmp_path, monkeypatch):
    opened = record_tars(monkeypatch)
    assert numbers(update(tmp_path / "index", scorer, tars)[1]) == {"unchanged": 6, "unreadable": 1}
    assert opened == []
    content = [("blue.jpg", random_picture(77)), ("new.png", random_picture(78))]
    put_tar(tars / "1.tar", [(name, encoded(image)) for name, image in content])
    os.utime(tars / "1.tar", ns=(OLD_NS, OLD_NS + 5))
    put_tar(tars / "2.tar", [("sub/more.png", encoded(random_picture(79)))])
    make_older(tars / "2.tar")
    _, changes, _ = update(tmp_path / "index", scorer, tars)
    assert opened == ["1.tar", "2.tar"]
    assert numbers(changes) == {"unchanged": 2, "embedded": 3, "removed": 5}
    fresh, *_ = update(tmp_path / "fresh", scorer, tars)
    assert vectors(ImageIndex.open(tmp_path / "index", scorer)) == vectors(fresh)


def record_tars(monkeypatch):
    """A list to which the name of each tar that an update reads is appended."""
    opened = []
    read = embedding.tar_pictures
    monkeypatch.setattr(embedding, "tar_pictures", lambda tar, log: opened.append(tar.name) or read(tar, log))
    return opened


def encoded(image):
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_older(path):
    os.utime(path, ns=(OLD_NS, OLD_NS))


def test_pictures_of_tars_that_are_gone_are_removed(tars, index, scorer, tmp_path):
    (tars / "1.tar").unlink()
    index, changes, _ = update(tmp_path / "index", scorer, tars)
    assert numbers(changes) == {"unchanged": 2, "removed": 5}
    assert {path.tar.name for path, _ in index.pictures()} == {"0.tar"}
    assert set(IndexFiles(tmp_path / "index").tar_states()) == {b"0.tar"}


def test_a_tar_that_cannot_be_read_keeps_its_pictures(tars, index, scorer, tmp_path):
    whole = vectors(index)
    content = (tars / "1.tar").read_bytes()
    (tars / "1.tar").write_bytes(b"no tar")
    make_older(tars / "1.tar")
    for _ in range(2):  # it is tried again each time
        index, changes, log = update(tmp_path / "index", scorer, tars)
        assert numbers(changes) == {"unchanged": 2, "kept": 5, "unreadable": 1}
        assert any(reason.startswith("unreadable tar") for _, reason in log.entries)
        assert vectors(index) == whole
    (tars / "1.tar").write_bytes(content)
    make_older(tars / "1.tar")
    assert numbers(update(tmp_path / "index", scorer, tars)[1]) == {"unchanged": 6, "unreadable": 1}


def test_a_tar_whose_disk_fails_keeps_the_pictures_that_were_not_seen(tars, index, scorer, tmp_path, monkeypatch):
    whole = vectors(index)
    make_older(tars / "0.tar")  # so that both are read again
    os.utime(tars / "1.tar", ns=(OLD_NS + 10**9, OLD_NS + 10**9))
    read = tarfile.TarFile.next

    def failing(archive):
        if archive.offset > 0 and archive.firstmember is None:  # after the first member
            raise OSError(errno.EIO, "Input/output error")
        return read(archive)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", failing)
        index, changes, log = update(tmp_path / "index", scorer, tars)
    assert changes.removed == 0
    assert changes.kept > 0
    assert vectors(index) == whole
    assert any("Input/output error" in reason for _, reason in log.entries)
    index, changes, _ = update(tmp_path / "index", scorer, tars)  # although the tar has not changed since
    assert changes.kept == 0
    assert vectors(index) == whole


def test_a_tar_that_was_written_just_now_is_read_again(tars, scorer, tmp_path, monkeypatch):
    put_tar(tars / "1.tar", [("new.png", encoded(random_picture(78)))])
    update(tmp_path / "index", scorer, tars)
    opened = record_tars(monkeypatch)
    assert numbers(update(tmp_path / "index", scorer, tars)[1]) == {"unchanged": 3}
    assert opened == ["1.tar"]


def test_lost_vectors_are_restored(tars, index, scorer, tmp_path):
    whole = vectors(index)
    path = index._files.vectors_path
    content = bytearray(path.read_bytes())
    content[1] ^= 64
    path.write_bytes(content)
    index, changes, _ = update(tmp_path / "index", scorer, tars)
    assert changes.restored == 1
    assert vectors(index) == whole


@pytest.mark.parametrize("batches", [1, 2])
def test_a_killed_update_goes_on_to_the_same_index(tars, scorer, tmp_path, monkeypatch, batches):
    monkeypatch.setattr(picture_files, "MAX_FILES", 2)
    add = IndexFiles.add
    added = []

    def deadly(*arguments):
        if len(added) == batches:
            kill_self()
        add(*arguments)
        added.append(1)

    with monkeypatch.context() as patch:
        patch.setattr(IndexFiles, "add", deadly)
        assert Forked(tmp_path / "output", update, tmp_path / "index", scorer, tars).wait() == -9
    index, changes, _ = update(tmp_path / "index", scorer, tars)
    assert changes.embedded == 5 - 2 * batches
    assert vectors(index) == vectors(update(tmp_path / "fresh", scorer, tars)[0])


def test_patterns_name_tars(tars, scorer, tmp_path, run, refused, tiny_model):
    wanted = {"0.tar", "1.tar"}
    for number, pattern in enumerate(("*.tar", "{0..1}.tar", "[01].tar")):
        index, *_ = update(tmp_path / str(number), scorer, f"{tars}/{pattern}")
        assert {path.tar.name for path, _ in index.pictures()} == wanted
        assert index.root == tars
    one, _, log = update(tmp_path / "one", scorer, f"{tars}/{{0,7}}.tar")
    assert (f"{tars}/7.tar", "missing tar: there is no such file") in log.entries
    # More tars of the folder are added to the same index, and those that are not named are removed.
    assert numbers(update(tmp_path / "one", scorer, tars / "1.tar")[1])["removed"] == 2
    with pytest.raises(UserError, match=r"expected a folder of pictures, or tars, got .*nothing"):
        one.update(tars / "nothing-*.tar")
    assert "expected a folder of pictures, or --out FOLDER with tars, got" in refused("index", tars / "0.tar")
    assert "expected a folder of pictures, or tars, got" in refused("index", "nowhere.tar", "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    printed = run("index", f"{tars}/{{0..1}}.tar", "--out", tmp_path / "c", "--scorer", tiny_model)
    assert "5 new, 1 moved or copied" in printed
    assert f"{tars}/" in run("search", tmp_path / "c", "a cat", "--scorer", tiny_model)


def test_pictures_beside_a_tar_are_what_is_indexed(pictures, scorer, tmp_path):
    put_tar(pictures / "backup.tar", [("old.png", encoded(random_picture(1)))])
    index, changes, _ = update(tmp_path / "index", scorer, pictures)
    assert numbers(changes) == {"embedded": 5}
    assert all(".tar" not in str(path) for path, _ in index.pictures())


def test_a_picture_beside_indexed_tars_is_refused(tars, index, scorer, tmp_path):
    whole = vectors(index)
    (tars / "stray.png").write_bytes(encoded(random_picture(79)))
    message = r"expected only tars in .*, got stray\.png beside them; move it away, or .* with --rebuild"
    with pytest.raises(UserError, match=message):
        update(tmp_path / "index", scorer, tars)
    assert vectors(ImageIndex.open(tmp_path / "index", scorer)) == whole
    index, _ = ImageIndex.rebuild(tmp_path / "index", scorer, tars)
    assert [path.name for path, _ in index.pictures()] == ["stray.png"]


def test_tars_may_be_replaced_by_their_pictures(tars, index, pictures, scorer, tmp_path):
    for path in tars.iterdir():
        path.unlink()
    (tars / "new.png").write_bytes(encoded(random_picture(79)))
    assert numbers(update(tmp_path / "index", scorer, tars)[1]) == {"embedded": 1, "removed": 7}


def test_an_index_and_its_tars_may_be_moved(tars, scorer, tmp_path):
    update(tars / ".dalle-index", scorer, tars)
    tars.rename(tmp_path / "moved")
    index = ImageIndex.open(tmp_path / "moved", scorer)
    assert index.root == tmp_path / "moved"
    assert len(hits_sheet(index.search("a cat", keep=1)).getcolors(2**20)) > 3
    assert numbers(index.update(tmp_path / "moved")) == {"unchanged": 6, "unreadable": 1}


def test_a_rebuilt_index_and_an_export_name_members(tars, scorer, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    index, changes = ImageIndex.rebuild(tmp_path / "index", scorer, tars)
    assert changes.embedded == 5
    export_clip_retrieval(index, tmp_path / "export")
    paths = parquet.read_table(tmp_path / "export/metadata/metadata_0.parquet")["image_path"].to_pylist()
    assert f"{tars}/0.tar:red.png" in paths


def test_tars_at_an_address(tars, index, scorer, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(remote, "sleep", lambda _: None)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in tars.iterdir():
        memory.pipe(f"/deep/set/{path.name}", path.read_bytes())
    for number, source in enumerate(("memory://deep/set", "memory://deep/set/{0..1}.tar", "memory://deep/*/*.tar")):
        there, changes, _ = update(tmp_path / str(number), scorer, source)
        assert numbers(changes) == {"embedded": 5, "reused": 1, "unreadable": 1}
        assert vectors(there) == vectors(index)
        assert str(there.root).replace(":///", "://") == "memory://deep/set"  # what a pattern gives has a slash more
        opened = record_tars(monkeypatch)
        assert numbers(update(tmp_path / str(number), scorer, source)[1]) == {"unchanged": 6, "unreadable": 1}
        assert opened == []
    hits = there.search(random_picture(0), keep=2)
    assert f"{there.root}/0.tar:red.png" in {str(path) for path in (hits[0].path, *hits[0].copies)}
    assert hits_sheet(hits[:1]).getcolors(2**20) != hits_sheet(hits[1:]).getcolors(2**20)
    memory.store.clear()


def test_a_strangers_index_leads_nowhere_else(index, scorer, tmp_path):
    with index._files.database as database:
        database.execute("UPDATE pictures SET path = ? WHERE path = ?", (b"../0.tar\0red.png", b"0.tar\0red.png"))
    with pytest.raises(UserError, match="leads out of its folder"):
        index.pictures()


def test_workers_need_the_same_scorer(scorer, tars):
    listing = embedding.PictureShare(tars, (), False)
    with pytest.raises(UserError, match="expected scorer one on every machine, got other on one"):
        embedding.embed_on_worker("one", (scorer, "other"), listing)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tars", "files"])
def test_workers_on_ray_make_the_same_index_although_one_is_killed(
    tars, pictures, scorer, tiny_model, tmp_path, monkeypatch, kind
):
    pytest.importorskip("ray")
    source = {"tars": tars, "files": pictures}[kind]
    alone, *_ = update(tmp_path / "alone", scorer, source)
    monkeypatch.setattr(embedding, "FILES_OF_SHARE", 2)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("KILLED_ONCE", str(tmp_path / "killed"))
    monkeypatch.setattr(embedding, "embed_share", None)  # this process embeds nothing
    with ray_workers(partial(make_worker, str(tiny_model), "cpu"), LOCAL, 2, accelerators=False) as workers:
        from helpers.ray_shares import embed_at_second_try

        monkeypatch.setattr(embedding, "embed_on_worker", embed_at_second_try)
        index, changes, _ = update(tmp_path / "index", scorer, source, workers=workers)
    assert (tmp_path / "killed").exists()
    assert changes.embedded == 5
    assert vectors(index) == vectors(alone)
    assert index.search("a cat") == alone.search("a cat")
    assert [path.read_bytes() for path in (index._files.vectors_path, alone._files.vectors_path)].count(
        alone._files.vectors_path.read_bytes()
    ) == 2
