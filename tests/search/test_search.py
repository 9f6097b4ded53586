"""Image search: nearest vectors, the index and its updates, queries, commands, export, benchmark."""

import json
import os
import sqlite3
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.pictures import make_old, random_picture
from PIL import Image
from torch.nn import functional as F

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.search import Faiss, search_rows
from dalle_mini_impl.cli import bench, dalle
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.sample import read_bytes
from dalle_mini_impl.scorer import picture_files
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search import integrity, listing, nearest, query, store, update
from dalle_mini_impl.search.export import export_clip_retrieval, export_faiss
from dalle_mini_impl.search.index import (
    ImageIndex,
    hits_sheet,
)
from dalle_mini_impl.search.scorers import absolute_scorer_name
from dalle_mini_impl.util.errors import UserError

DIM = 19


@pytest.fixture
def refused(refused):
    """Runs `dalle` on bad input and returns its one line of error."""

    def run(*arguments):
        error = refused(*arguments).splitlines()[-1]
        assert error.startswith("error: ")
        return error

    return run


def run(*arguments, ok=True):
    result = CliRunner().invoke(dalle, list(map(str, arguments)), catch_exceptions=False)
    assert (result.exit_code == 0) is ok, result.output
    return result


def names(hits):
    return [hit.path.name for hit in hits]


def embedded_by(monkeypatch):
    """A list to which the number of pictures, padding included, is appended whenever some are embedded."""
    counts = []
    embed_prepared = Scorer.embed_prepared

    def count_and_embed(self, pixels):
        counts.append(len(pixels))
        return embed_prepared(self, pixels)

    monkeypatch.setattr(Scorer, "embed_prepared", count_and_embed)
    monkeypatch.setattr(picture_files, "MIN_PASS", 1)
    return counts


def record_reads(monkeypatch):
    """A list to which the name of each file that an update reads is appended."""
    names_read = []

    def record_and_read(path):
        names_read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(picture_files, "read_bytes", record_and_read)
    return names_read


# --- nearest


def test_nearest_is_exact_where_half_precision_is_not():
    torch.manual_seed(0)
    query = F.normalize(torch.randn(61), dim=0)
    vectors = F.normalize(query + 1e-4 * torch.randn(2003, 61), dim=1).half()  # cosines equal to 3 digits
    exact = vectors.double() @ query.double()
    scores, rows = nearest.nearest(vectors, query, 13)
    assert rows.tolist() == exact.topk(13).indices.tolist()
    assert torch.allclose(scores.double(), exact[rows], atol=1e-6)
    rough = torch.mv(vectors, query.half())
    assert rough.topk(13).indices.tolist() != rows.tolist()  # otherwise the test would prove nothing


def test_rounding_error_of_the_first_pass_is_within_its_slack():
    torch.manual_seed(1)
    query = F.normalize(torch.randn(512), dim=0)
    vectors = F.normalize(torch.randn(997, 512) + 9 * query, dim=1).half()
    error = (torch.mv(vectors, query.half()).double() - vectors.double() @ query.double()).abs().max()
    assert 0 < float(error) < nearest.SLACK / 2


def test_equal_vectors_keep_their_order_and_free_rows_are_never_found():
    vectors = torch.eye(7, 5).half()
    vectors[[1, 4, 6]] = vectors[2].clone()
    scores, rows = nearest.nearest(vectors, vectors[2].float(), 3)
    assert rows.tolist() == [1, 2, 4]
    assert scores.tolist() == [1, 1, 1]
    used = torch.tensor([True, False, True, True, True, True, False])
    assert nearest.nearest(vectors, vectors[2].float(), 11, used)[1].tolist() == [2, 4, 0, 3, 5]
    assert nearest.nearest(vectors[:0], vectors[2].float(), 3)[1].tolist() == []


# --- index


def test_pictures_are_found_by_picture_and_text(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    changes = index.update(pictures)
    assert changes == update.Changes(unchanged=0, embedded=5, reused=0, unreadable=0, removed=0)
    assert len(index) == 5
    hits = index.search(pictures / "sub/deep/noise.png", 3)
    assert hits[0].path == pictures / "sub/deep/noise.png"
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert len(hits) == 3

    images = [Image.open(path) for path, _ in index.pictures()]
    scores = scorer.score(images, "a red heart")
    hits = index.search("a red heart")
    assert [hit.path for hit in hits] == [index.pictures()[number][0] for number in scores.argsort(descending=True)]
    assert [hit.score for hit in hits] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-3)
    threshold = (hits[1].score + hits[2].score) / 2
    assert index.search("a red heart", threshold=threshold) == hits[:2]
    assert ImageIndex.open(tmp_path / "index", scorer).search("a red heart") == hits


def test_terms_are_summed_with_their_weights(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    image = random_picture(3)
    embed = index.embed([("a cat", 2.0), (image, 1.0), ("grass", -0.5)])
    texts = scorer.embed_texts(["a cat", "grass"])
    wanted = 2 * texts[0] + scorer.embed_images([image])[0] - 0.5 * texts[1]
    assert torch.allclose(embed, F.normalize(wanted, dim=0), atol=1e-6)
    everything = index.search(image, 5)
    assert names(index.search([(image, -1.0)], 5)) == names(everything)[::-1]


def test_only_changed_files_are_read_and_new_contents_embedded(pictures, scorer, tmp_path, monkeypatch):
    index, counts = ImageIndex.create(tmp_path / "index", scorer), embedded_by(monkeypatch)
    index.update(pictures)
    reads = record_reads(monkeypatch)
    assert index.update(pictures).unchanged == 5
    assert not reads

    (pictures / "sub/green.png").rename(pictures / "moved.png")  # known content
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    random_picture(11).save(pictures / "grey.webp", lossless=True)
    random_picture(12).save(pictures / "sub/new.png")
    (pictures / "sub/blue.jpg").unlink()
    counts.clear()
    assert index.update(pictures) == update.Changes(unchanged=2, embedded=2, reused=2, unreadable=0, removed=2)
    assert sorted(reads) == ["copy.png", "grey.webp", "moved.png", "new.png"]
    assert sum(counts) == 2
    assert {path.relative_to(pictures).as_posix() for path, _ in index.pictures()} == {
        "red.png",
        "copy.png",
        "moved.png",
        "grey.webp",
        "sub/deep/noise.png",
        "sub/new.png",
    }
    hit = index.search(random_picture(0), 1)[0]
    assert (hit.path.name, [path.name for path in hit.copies]) == ("copy.png", ["red.png"])
    assert "blue.jpg" not in names(index.search("a cat", 99))


def test_file_written_again_within_a_step_of_the_clock_is_noticed(pictures, scorer, tmp_path):
    path = pictures / "red.png"
    content = path.read_bytes()
    path.write_bytes(content + b"0")  # decoders ignore what is behind a picture
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    time = path.stat().st_mtime_ns
    path.write_bytes(content + b"1")
    os.utime(path, ns=(time, time))
    assert index.update(pictures) == update.Changes(unchanged=4, embedded=1, reused=0, unreadable=0, removed=0)


def test_file_is_trusted_once_its_time_is_older_than_a_step_of_the_clock(pictures, scorer, tmp_path, monkeypatch):
    (pictures / "red.png").touch()
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    reads = record_reads(monkeypatch)
    monkeypatch.setattr(listing.time, "time_ns", lambda: (pictures / "red.png").stat().st_mtime_ns + 2 * 10**9 + 1)
    assert [index.update(pictures).unchanged for _ in range(2)] == [5, 5]
    assert reads == ["red.png"]


def test_free_rows_are_reused(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    (pictures / "sub/green.png").unlink()
    index.update(pictures)
    assert len(index) == 4
    assert len(index.vectors) == 5
    random_picture(21).save(pictures / "a.png")
    random_picture(22).save(pictures / "b.png")
    index.update(pictures)
    assert len(index) == len(index.vectors) == 6
    for path, row in index.pictures():
        assert torch.allclose(index.vectors[row].float(), scorer.embed_images([Image.open(path)])[0], atol=1e-3)


def test_killed_update_continues_after_its_last_commit(pictures, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_FILES", 2)
    index = ImageIndex.create(tmp_path / "index", scorer)
    add, calls = store.IndexFiles.add, []

    def killed(self, entries, vectors, rows):
        calls.append(len(entries))
        if len(calls) == 2:  # the vectors are written, the database's rows are not
            self.database.close()
        add(self, entries, vectors, rows)

    with monkeypatch.context() as patch:
        patch.setattr(store.IndexFiles, "add", killed)
        with pytest.raises(UserError, match="cannot be read or written"):
            index.update(pictures)
    assert calls == [2, 2]
    assert next((tmp_path / "index").glob("vectors-*.f16")).stat().st_size == 4 * 2 * DIM

    index = ImageIndex.open(tmp_path / "index", scorer)
    assert len(index) == 2
    assert index.search(random_picture(4), 1)[0].path == pictures / "grey.webp"
    counts = embedded_by(monkeypatch)
    assert index.update(pictures).unchanged == 2
    assert sum(counts) == 3
    fresh = ImageIndex.create(tmp_path / "fresh", scorer)
    fresh.update(pictures)
    assert index.search("a cat") == fresh.search("a cat")


def test_second_writer_of_an_index_is_refused(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    with (
        store.write_lock(tmp_path / "index"),
        pytest.raises(UserError, match="alone, got another run that is writing it; wait for that run"),
    ):
        index.update(pictures)
    assert index.update(pictures).embedded == 5


# --- pictures of all kinds


def test_unusual_pictures_are_decoded_as_displayed(scorer, tmp_path):
    folder, plain = tmp_path / "pictures", random_picture(5, 40, 30)
    folder.mkdir()
    plain.quantize(256).save(folder / "palette.png")
    plain.save(folder / "animated.gif", save_all=True, append_images=[random_picture(6, 40, 30)])
    plain.convert("CMYK").save(folder / "cmyk.tif")
    grey = plain.convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90°
    plain.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.png", exif=exif)
    index, log = ImageIndex.create(tmp_path / "index", scorer), SkipLog()
    assert index.update(folder, log).embedded == 5
    assert not log.entries
    scores = {hit.path.name: hit.score for hit in index.search(plain)}
    for name in ("palette.png", "animated.gif", "cmyk.tif", "rotated.png"):
        assert scores[name] > 0.999, name
    assert index.search(grey, 1)[0].path.name == "sixteen.png"
    assert index.search(grey, 1)[0].score > 0.999


def test_unreadable_pictures_are_listed_and_skipped(pictures, scorer, tmp_path, monkeypatch):
    jpeg = (pictures / "sub/blue.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_text("no picture")
    bomb = (pictures / "red.png").read_bytes()
    size = (40_000).to_bytes(4, "big")
    header = b"IHDR" + size + size + bomb[24:29]
    (pictures / "bomb.png").write_bytes(bomb[:12] + header + zlib.crc32(header).to_bytes(4, "big") + bomb[33:])
    (pictures / "broken-link.png").symlink_to("nowhere")
    (pictures / os.fsdecode(b"\xff\xfe.png")).write_bytes((pictures / "red.png").read_bytes())
    make_old(pictures)
    index, log = ImageIndex.create(tmp_path / "index", scorer), SkipLog()
    changes = index.update(pictures, log)
    assert (changes.embedded, changes.unreadable) == (5, 5)
    reasons = {name: reason.split(":")[0] for name, reason in log.entries}
    assert reasons == {
        "bomb.png": "decompression bomb",
        "broken-link.png": "missing file",
        "cut.jpg": "truncated picture",
        "empty.png": "empty file",
        "text.png": "not a picture",
    }
    second_log = SkipLog()
    reads = record_reads(monkeypatch)
    changes = index.update(pictures, second_log)
    assert changes == update.Changes(unchanged=6, embedded=0, reused=0, unreadable=5, removed=0)
    assert reads == ["broken-link.png"]  # its target may appear
    assert sorted(second_log.entries) == sorted(log.entries)
    random_picture(31).save(pictures / "nowhere", "PNG")
    assert index.update(pictures).embedded == 1
    assert index.search(random_picture(31), 1)[0].path.name == "broken-link.png"


def test_every_text_finds_pictures(pictures, tmp_path, tiny_model):
    run("index", pictures, "--scorer", tiny_model, "--device", "cpu")
    for text in ("❤️ 🦊", "قلب أحمر", "word " * 2000, "\udcff", "'; DROP TABLE pictures"):
        result = run("search", pictures, text, "--keep", 2, "--scorer", tiny_model)
        assert len(result.stdout.splitlines()) == 2
        assert len(result.stderr) < 1000


# --- what is refused


def test_another_scorer_is_refused(pictures, scorer, tmp_path, tiny_model, refused):
    run("index", pictures, "--scorer", tiny_model, "--out", tmp_path / "index")
    expected, other = scorer_identity(scorer), scorer_identity(Scorer.from_pretrained("emoji"))
    for arguments in (("search", tmp_path / "index", "a cat"), ("index", pictures, "--out", tmp_path / "index")):
        error = refused(*arguments, "--scorer", "emoji", "--device", "cpu")
        assert f"expected scorer {expected} ({tiny_model})" in error
        assert f"got {other}" in error
        assert "--rebuild" in error
    run("index", pictures, "--out", tmp_path / "index", "--scorer", "emoji", "--rebuild")
    assert store.IndexFiles(tmp_path / "index").metadata("scorer") == "emoji"
    assert len(run("search", tmp_path / "index", "a cat").stdout.splitlines()) == 5


def test_names_of_scorers_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert absolute_scorer_name("own") == str(tmp_path / "own")
    assert absolute_scorer_name("hf:own") == f"hf:{tmp_path / 'own'}"
    assert [absolute_scorer_name(name) for name in ("emoji", "hf:a/b", "open_clip:ViT-B-32:openai")] == [
        "emoji",
        "hf:a/b",
        "open_clip:ViT-B-32:openai",
    ]


def test_folders_without_pictures_are_refused(pictures, scorer, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "got none; give a folder with PNG, JPEG" in refused("index", tmp_path / "empty")
    assert "got none; fill it with: dalle index" in refused("search", tmp_path / "empty", "a cat")
    assert "expected a folder of pictures, or --out FOLDER with tars, got" in refused("index", tmp_path / "nowhere")
    assert "expected a folder of pictures, or --out FOLDER with tars, got" in refused("index", pictures / "red.png")
    assert not (tmp_path / "nowhere").exists()
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    with pytest.raises(UserError, match="expected a folder of pictures, or tars, got"):
        index.update(tmp_path / "nowhere")
    for path, _ in index.pictures():
        path.unlink()
    with pytest.raises(UserError, match="expected pictures in"):
        index.update(pictures)
    assert len(index) == 5  # the index of an unmounted disk is kept


def test_index_belongs_to_its_folder_even_if_it_is_moved(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    other = tmp_path / "other"
    other.mkdir()
    random_picture(41).save(other / "a.png")
    with pytest.raises(UserError, match=f"expected {pictures}, the folder of the index in .*, got {other};"):
        index.update(other)
    pictures.rename(tmp_path / "renamed")
    assert index.update(tmp_path / "renamed").unchanged == 5
    assert index.search(random_picture(0), 1)[0].path == tmp_path / "renamed/red.png"


def test_damaged_and_missing_indexes_are_refused(tmp_path, scorer, refused):
    assert "got none; make one with: dalle index" in refused("search", tmp_path, "a cat")
    (tmp_path / integrity.DATABASE).write_text("no database, but long enough to be read as one" * 99)
    assert "not a database" in refused("search", tmp_path, "a cat")
    with pytest.raises(UserError, match=r"got a file index\.sqlite of another program"):
        ImageIndex.create(tmp_path, scorer)
    (tmp_path / integrity.DATABASE).unlink()
    ImageIndex.create(tmp_path, scorer)  # without a name that it could be loaded by
    with pytest.raises(UserError, match="passed from Python without a name, so pass it again"):
        ImageIndex.open(tmp_path)
    with sqlite3.connect(tmp_path / integrity.DATABASE) as database:
        database.execute("DROP TABLE pictures")
    with pytest.raises(UserError, match=r"is damaged \(its tables contents, facts.* are not those of one"):
        ImageIndex.open(tmp_path, scorer)


def test_folder_that_cannot_be_written_is_refused(pictures, tmp_path, scorer):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; choose a writable path"):
        ImageIndex.create(tmp_path / "file/index", scorer)


def test_queries_without_a_direction_are_refused(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    with pytest.raises(UserError, match="expected a text, got an empty one"):
        index.search(" ")
    with pytest.raises(UserError, match="cancel each other out"):
        index.search([("a cat", 1.0), ("a cat", -1.0)])
    with pytest.raises(UserError, match="got no terms"):
        index.search([])
    with pytest.raises(UserError, match="expected a number as weight of a cat, got nan"):
        index.search([("a cat", float("nan"))])
    with pytest.raises(UserError, match="expected keep of at least 1, got 0"):
        index.search("a cat", 0)
    with pytest.raises(UserError, match=r"nowhere\.png is not a readable picture"):
        index.search(tmp_path / "nowhere.png")


# --- queries of the command line


def test_queries_are_parsed_into_terms_and_weights(tmp_path):
    assert query.parse_query(["cat", "+", "photo.JPG", "-", "green grass"]) == [
        ("cat", 1.0),
        (Path("photo.JPG"), 1.0),
        ("green grass", -1.0),
    ]
    assert query.parse_query(["cat:2", "-", "a.png:.5", "dog:-1", "-", "x:-2"]) == [
        ("cat", 2.0),
        (Path("a.png"), -0.5),
        ("dog", -1.0),
        ("x", 2.0),
    ]
    assert query.parse_query([r"half past 10\:30", "note: this", "two\nlines:3"]) == [
        ("half past 10:30", 1.0),
        ("note: this", 1.0),
        ("two\nlines", 3.0),
    ]
    with pytest.raises(UserError, match="expected one sign before each text or picture, got '\\+' and '-'"):
        query.parse_query(["cat", "+", "-", "dog"])
    with pytest.raises(UserError, match="expected a text or a picture after '-', got the end"):
        query.parse_query(["cat", "-"])


# --- commands


def test_commands_index_search_and_show(pictures, scorer, tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pictures / "cut.png").write_bytes((pictures / "red.png").read_bytes()[:100])
    result = run("index", "pictures", "--scorer", os.path.relpath(tiny_model, tmp_path), "--device", "cpu")
    assert "5 new, 0 moved or copied, 0 unchanged, 1 unreadable, 0 removed; 5 different" in result.stdout
    assert result.stdout.splitlines()[-1] == os.path.join("pictures", store.DEFAULT_FOLDER)
    assert "cut.png: truncated picture" in result.stderr
    monkeypatch.chdir(pictures)  # the scorer's path does not depend on the working directory
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    assert "0 new, 1 moved or copied, 5 unchanged, 1 unreadable" in run("index", ".", "--scorer", tiny_model).stdout

    terms = ["--scorer", tiny_model, "a cat", "+", "red.png:0.5", "-", "grass"]
    hits = ImageIndex.open(".", scorer).search([("a cat", 1.0), (random_picture(0), 0.5), ("grass", -1.0)], 3)
    result = run("search", ".", *terms, "--keep", 3, "--sheet", tmp_path / "sheet.png")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines == [[f"{hit.score:.4f}", str(hit.path), *map(str, hit.copies)] for hit in hits]
    assert str(tmp_path / "sheet.png") in result.stderr
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 2 * 23
    shown = json.loads(run("search", ".", *terms, "--keep", 3, "--json", "-").stdout)
    assert [entry["path"] for entry in shown] == [str(hit.path) for hit in hits]
    assert [entry["score"] for entry in shown] == [hit.score for hit in hits]
    result = run("search", ".", "a cat", "--threshold", 2, "--scorer", tiny_model)
    assert result.stdout == ""
    assert "none of 5 pictures scores 2.0 or more" in result.stderr


def test_file_names_that_are_not_utf8_are_printed_unchanged(tmp_path, tiny_model):
    folder = tmp_path / "pictures"
    folder.mkdir()
    name = os.fsdecode(b"\xff\xfe \xe2\x80\xae.png")
    random_picture(51).save(folder / name)
    run("index", folder, "--scorer", tiny_model)
    result = run("search", folder, "a cat", "--sheet", tmp_path / "sheet.png", "--scorer", tiny_model)
    assert result.stdout_bytes.rstrip(b"\n").endswith(os.fsencode(folder / name))
    assert json.loads(run("search", folder, "a cat", "--scorer", tiny_model, "--json").stdout)[0]["path"] == str(
        folder / name
    )


def test_sheet_is_white_where_a_picture_no_longer_exists(pictures, scorer, tmp_path):
    index = ImageIndex.create(tmp_path / "index", scorer)
    index.update(pictures)
    hits = index.search(random_picture(0), 2)
    full = hits_sheet(hits)
    hits[0].path.unlink()
    assert np.asarray(hits_sheet(hits)).mean() > np.asarray(full).mean()


# --- export


def test_export_has_the_layout_of_clip_retrieval(pictures, scorer, tmp_path, tiny_model):
    parquet = pytest.importorskip("pyarrow.parquet")
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    result = run("index", pictures, "--scorer", tiny_model, "--export", tmp_path / "export")
    files = [tmp_path / "export/img_emb/img_emb_0.npy", tmp_path / "export/metadata/metadata_0.parquet"]
    assert result.stdout.splitlines()[-3:-1] == list(map(str, files))
    vectors = np.load(files[0])
    paths = parquet.read_table(files[1]).to_pydict()["image_path"]
    assert (vectors.shape, vectors.dtype) == ((6, DIM), np.float16)
    assert sorted(paths) == sorted(
        str(path) for path in pictures.rglob("*.*") if path.is_file() and store.DEFAULT_FOLDER not in str(path)
    )
    wanted = scorer.embed_images([Image.open(path) for path in paths])
    assert np.abs(vectors - wanted.numpy()).max() < 1e-3


def test_faiss_index_has_the_rows_of_the_export(pictures, scorer, tmp_path, tiny_model):
    pytest.importorskip("pyarrow")
    faiss = pytest.importorskip("faiss")
    (pictures / "copy.png").write_bytes((pictures / "red.png").read_bytes())
    result = run("index", pictures, "--scorer", tiny_model, "--export", tmp_path / "export", "--faiss")
    assert result.stdout.splitlines()[-2] == str(tmp_path / "export/image.index")
    vectors = np.load(tmp_path / "export/img_emb/img_emb_0.npy").astype(np.float32)
    index = faiss.read_index(str(tmp_path / "export/image.index"))
    scores, _ = index.search(vectors, 1)
    assert index.ntotal == len(vectors) == 6
    assert np.abs(scores - 1).max() < 1e-3
    assert np.abs(index.reconstruct_n(0, 6) - vectors).max() == 0


def test_faiss_index_needs_its_extra_and_a_folder(pictures, scorer, tmp_path, monkeypatch, refused):
    assert "expected --export with --faiss, got --faiss alone" in refused("index", pictures, "--faiss")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"faiss-cpu is not installed.*\[faiss\]"):
        export_faiss(ImageIndex.create(tmp_path / "index", scorer), tmp_path / "export")


def test_missing_pyarrow_names_its_extra(pictures, scorer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed.*\[search\]"):
        export_clip_retrieval(ImageIndex.create(tmp_path / "index", scorer), tmp_path / "export")


# --- bench


def test_search_is_timed():
    machine = MachineSpeed("cpu", copy=1e9, flops={"bf16": 1e9, "fp32": 1e9})
    (row,) = search_rows(machine, None, 1, 61)
    assert row.name == "search/61"
    assert row.ours > 0
    assert row.details["dim"] == 512


def test_search_is_a_part_of_dalle_bench():
    machine = MachineSpeed("cpu", copy=1e9, flops={"bf16": 1e9, "fp32": 1e9})
    rows = list(bench.all_rows(machine, "quick", {}, ("search",), 1, [1]))
    assert [row.name for row in rows] == ["search/4096"]


def test_search_is_timed_beside_faiss():
    pytest.importorskip("faiss")
    machine = MachineSpeed("cpu", copy=1e9, flops={"bf16": 1e9, "fp32": 1e9})
    (row,) = search_rows(machine, Faiss, 1, 20_011)
    assert (row.peer, row.ratio > 0) == ("faiss", True)


def test_peer_with_other_results_is_reported():
    class Wrong:
        name = "wrong"

        def __init__(self, vectors):
            pass

        def search(self, query):
            return [0]

    machine = MachineSpeed("cpu", copy=1e9, flops={"bf16": 1e9, "fp32": 1e9})
    with pytest.raises(UserError, match=r"\[0\] from wrong; one of them is wrong"):
        list(search_rows(machine, Wrong, 1, 61))
