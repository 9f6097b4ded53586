"""Tars: names with dots, endings of other writers, compression, captions that cannot be used, and hostile members."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc

import pytest
from helpers.sources import encode, put, put_tar, read, reasons, texts

from dalle_mini_impl.data.pair import Caption


def test_names_with_dots_are_grouped_by_what_their_endings_show(tmp_path):
    put_tar(
        tmp_path / "set.tar",
        [
            *((f"x/IMG.{n}.{ending}", encode((n, 1, 2)) if ending == "png" else f"number {n}")
              for n in (1, 2) for ending in ("png", "txt")),
            ("a.png", encode()), ("a.seg.png", encode()), ("a.txt", "plain"),
            ("b.image.jpg", encode(kind="JPEG")), ("b.txt", "the only picture"),
            ("c.input.jpg", encode(kind="JPEG")), ("c.target.jpg", encode(kind="JPEG")), ("c.txt", "which?"),
            ("d.jpg", encode(kind="JPEG")), ("d.jpg.txt", "named after the file"),
            ("v1.5.png", encode()),
        ],
    )  # fmt: skip
    pairs, log = read(tmp_path / "set.tar")
    assert [(pair.key, texts(pair)) for pair in pairs] == [
        ("x/IMG.1", ["number 1"]),
        ("x/IMG.2", ["number 2"]),
        ("a", ["plain"]),
        ("b", ["the only picture"]),
        ("d", ["named after the file"]),
    ]
    assert pairs[1].image.getpixel((1, 1)) == (2, 1, 2)
    assert reasons(log) == {"c": "no picture", "v1.5": "no caption"}
    assert ".input.jpg" in log.entries[0][1]


@pytest.mark.parametrize(("picture", "caption"), [(".img", ".cap"), (".image", ".text"), (".jpe", ".caption")])
def test_endings_of_other_writers_are_understood(tmp_path, picture, caption):
    put_tar(tmp_path / "set.tar", [(f"a{picture}", encode(kind="JPEG")), (f"a{caption}", "red")])
    (pair,), log = read(tmp_path / "set.tar")
    assert texts(pair) == ["red"]
    assert not log.entries


def test_samples_without_captions_or_readable_pictures_say_what_they_have(tmp_path):
    put_tar(tmp_path / "set.tar", [("a.png", encode()), ("a.cls", "5"), ("b.psd", "x"), ("b.txt", "red")])
    pairs, log = read(tmp_path / "set.tar")
    assert not pairs
    assert dict(log.entries)[f"{tmp_path}/set.tar:a"].endswith("only .png, .cls")
    assert dict(log.entries)[f"{tmp_path}/set.tar:b"].startswith("unreadable format: .psd")


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["set.tar", "set.tar.{}", "set.TGZ"])
def test_compressed_tars_are_read_whatever_their_name(tmp_path, mode, name):
    path = tmp_path / name.format(mode)
    plain = put_tar(path, [("a.png", encode()), ("a.txt", "red")]).read_bytes()
    path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[mode].compress(plain))
    for source in (path, tmp_path):
        (pair,), log = read(source)
        assert texts(pair) == ["red"]
        assert not log.entries


def test_compressed_tar_that_is_cut_off_gives_what_lies_before(tmp_path):
    tar = put_tar(
        tmp_path / "a.tar",
        [(f"{n}.{e}", os.urandom(5000) if e == "bin" else "x") for n in range(9) for e in ("bin", "txt")],
    )
    content = gzip.compress(tar.read_bytes())
    tar.write_bytes(content[: len(content) // 2])
    _, log = read(tar)
    assert reasons(log)["a.tar"] == "truncated tar"
    assert 3 <= sum(reason.startswith("no picture") for _, reason in log.entries) <= 5


def test_tar_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.data.tar_file.FREE_UNPACKED_BYTES", 1 << 22)
    put(tmp_path, "bomb.tar", gzip.compress(bytes(1 << 23)))
    pairs, log = read(tmp_path / "bomb.tar")
    assert not pairs
    assert "unpacks to more than 4194304 bytes" in log.entries[0][1]


@pytest.mark.parametrize("bad", ['{"caption": NaN}', '{"caption": 5}', '{"caption": null}', "[1]", "{cut", b"\xff"])
def test_good_captions_are_kept_beside_a_bad_file(tmp_path, bad):
    put_tar(tmp_path / "set.tar", [("a.png", encode()), ("a.txt", "red"), ("a.json", bad)])
    (pair,), log = read(tmp_path / "set.tar")
    assert texts(pair) == ["red"]
    assert not log.entries
    is_missing = bad in ('{"caption": NaN}', '{"caption": null}')
    assert [name for name, _ in log.notes] == [] if is_missing else [f"{tmp_path}/set.tar:a"]
    put_tar(
        tmp_path / "set.tar",
        [("a.png", encode()), ("a.txt", "red\0"), ("a.json", '{"caption": {"en": "red", "de": "rot"}}')],
    )
    (pair,), log = read(tmp_path / "set.tar")
    assert pair.captions == (Caption("red", "en"), Caption("rot", "de"))
    assert [reason.split(":")[0] for _, reason in log.notes] == ["caption not UTF-8"]


def test_titles_are_no_captions_beside_a_caption_file(tmp_path):
    entry = json.dumps({"title": "IMG_0012", "split": "val"})
    put_tar(tmp_path / "set.tar", [("a.png", encode()), ("a.txt", "red"), ("a.json", entry)])
    (pair,), _ = read(tmp_path / "set.tar")
    assert texts(pair) == ["red"]
    assert pair.details == {"title": "IMG_0012"}


def test_members_that_claim_much_are_refused_unread(tmp_path):
    with (tmp_path / "set.tar").open("wb") as file:
        for name, kind, size in (("a.txt", b"S", 10**12), ("b.png", b"0", 8 * 10**9), ("c", b"L", 8 * 10**9)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, size
            header = bytearray(member.tobuf(tarfile.GNU_FORMAT)[:512])
            if kind == b"S":
                header[124:136] = b"%011o\0" % 512  # stored; of the sparse file there is one part, at its end
                header[386:410] = b"%011o\0%011o\0" % (0, 512)
                header[483:495] = (128).to_bytes(1, "big") + (10**12).to_bytes(11, "big")
                header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
            file.write(bytes(header) + bytes(512))
    tracemalloc.start()
    pairs, log = read(tmp_path / "set.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not pairs
    assert log.entries
    assert peak < 1 << 24


def test_nothing_is_read_or_written_outside_a_tar(tmp_path):
    secret = put(tmp_path, "secret.txt", "secret")
    put(tmp_path, "inside/keep", "")
    with tarfile.open(tmp_path / "inside" / "set.tar", "w") as archive:
        for name, content in (
            ("../a.png", encode()),
            ("../a.txt", b"up"),
            (f"{tmp_path}/b.png", encode()),
            (f"{tmp_path}/b.txt", b"absolute"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in (
            ("c.png", tarfile.SYMTYPE, "/dev/zero"),
            ("a.cap", tarfile.LNKTYPE, str(secret)),
            ("d.txt", tarfile.CHRTYPE, ""),
            ("e.txt", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    pairs, log = read(tmp_path / "inside")
    assert sorted(text for pair in pairs for text in texts(pair)) == ["absolute", "up"]
    assert sorted(tmp_path.rglob("*")) == before
    assert sum("a link, a device" in reason for _, reason in log.entries) == 4
