"""Hostile pictures, tars, tables, caption files and folders: skipped or refused, without harm and in bounded memory."""

import contextlib
import functools
import gzip
import io
import json
import os
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import unicodedata
import zlib
from pathlib import Path

import pytest
from helpers.processes import Forked
from helpers.sources import encode, put, put_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS

ROW = "hostile pictures, tars, tables and folders, no harm done"
MEMORY = 3 << 29
"""Most bytes by which a hostile source may make the process grow. Pillow's limit, 89 million pixels, takes 358 MB as
RGBA, and decoding holds several copies."""
SECONDS = 60
"""Longest time for one hostile source; one that never ends takes longer than any."""
FORBIDDEN = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class", "socket.connect",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "shutil.rmtree", "shutil.move", "os.putenv", "os.kill",
}  # fmt: skip
"""Audit events that reading must not cause: other programs, the network, changed files."""


class Watch:
    """Records what the interpreter reports of this process while `folder` is set."""

    def __init__(self):
        self.folder = None
        self.offences = []
        self.temporary_folder = tempfile.gettempdir()  # finding it out opens files
        sys.addaudithook(self.hook)  # can never be removed

    def hook(self, event, arguments):
        if self.folder is None:
            return
        if event in FORBIDDEN:
            self.offences.append((event, arguments))
        elif event == "open" and not isinstance(arguments[0], int):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            # A temporary file without a name is opened as its folder.
            temporary = path == self.temporary_folder or arguments[2] & getattr(os, "O_TMPFILE", 0) > os.O_DIRECTORY
            own = Path(path).is_relative_to(self.folder)
            of_python = Path(path).is_relative_to(sys.prefix) or Path(path).is_relative_to(sys.base_prefix)
            if (writes and not temporary) or not (own or temporary or of_python):
                self.offences.append((event, arguments))


@functools.cache
def watch():
    return Watch()


def has_controls(text):
    """Whether text has characters that steer a terminal, or that cannot be encoded."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def read_all(source, folder):
    """Read a source; only a `UserError` of one line may come out, and nothing outside `folder` may be touched."""
    read_all_once()
    guard = watch()
    guard.offences.clear()
    guard.folder = folder
    log = SkipLog()
    refusal = ""
    try:
        pairs = list(read_pairs(source, log))
    except UserError as error:
        pairs, refusal = [], str(error)
    finally:
        guard.folder = None
    assert not guard.offences
    assert "\n" not in refusal
    report = log.report()
    report.encode()
    assert "allocate" not in report
    assert "MemoryError" not in report
    assert not has_controls(report.replace("\n", ""))
    for pair in pairs:
        assert pair.image.mode in ("RGB", "RGBA")
        assert all(caption.text and not has_controls(caption.text) for caption in pair.captions)
        json.dumps([pair.key, pair.details], ensure_ascii=False).encode()
    return pairs


def run_in_bounds(folder, function):
    """Run a function in a process of its own that may neither grow by `MEMORY` nor take `SECONDS`."""

    def limit_and_run():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        function()

    forked = Forked(folder / "output.log", limit_and_run)
    code = forked.wait(SECONDS)
    if code is None:
        forked.kill()
    assert code == 0, (code, (folder / "output.log").read_text())


@functools.cache
def read_all_once():
    """Have Pillow import its modules before imports are watched."""
    Image.init()


@functools.cache
def pictures():
    """A picture in each format that can be written here, by its ending."""
    found = {}
    noise = Image.effect_noise((23, 17), 80).convert("RGB")
    for ending in sorted(PICTURE_ENDINGS):
        kind = Image.registered_extensions().get(ending)
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, KeyError, ValueError):
            noise.save(buffer, kind)
            found[ending] = buffer.getvalue()
    return found


NUMBERS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
"""The largest and smallest numbers, which damage writes over those of a file."""


def damaged(content, chance):
    """Content with some of its bytes changed, cut off, repeated or moved."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(content) + 1)
        if chance.random() < 0.5:
            place = min(place, chance.randrange(128))  # headers do the most harm
        action = chance.randrange(5)
        if action == 0:
            content[place : place + 4] = chance.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            )
        elif action == 1:
            content[place : place + 1] = bytes([chance.randrange(256)])
        elif action == 2:
            del content[place:]
        elif action == 3:
            content[place:place] = content[place : place + 60]
        else:
            del content[place : place + chance.randrange(1, 9)]
        if not content:
            break
    return bytes(content)


def fuzz(examples):
    """Run a test on that many inputs, the same ones every time."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "a.txt").write_text("changed"),
        lambda folder: (folder.parent / "secret").read_bytes(),
        lambda folder: os.system("true"),
        lambda folder: os.rename(folder / "a.txt", folder / "b.txt"),
    ],
)
def test_harm_would_be_noticed(tmp_path, monkeypatch, harm):
    (tmp_path / "secret").write_bytes(b"")
    folder = put(tmp_path, "set/a.txt", "red").parent
    monkeypatch.setattr(sys.modules[__name__], "read_pairs", lambda source, log: [])
    read_all(folder, folder)
    monkeypatch.setattr(sys.modules[__name__], "read_pairs", lambda source, log: [harm(folder)][:0])
    with pytest.raises(AssertionError):
        read_all(folder, folder)


def test_damaged_pictures(tmp_path, tries, report):
    count = tries(6000, 300)
    kinds = pictures()
    endings = list(kinds)
    assert {".png", ".jpg", ".gif", ".tif", ".webp", ".tga", ".ppm", ".ico", ".jp2", ".bmp"} <= set(endings)
    for number in range(0, count, 10):
        folder = tmp_path / str(number)
        for part in range(10):
            chance = random.Random(number + part)
            ending = chance.choice(endings)
            put(folder, f"{part}{chance.choice([ending, '.png'])}", damaged(kinds[ending], chance))
            put(folder, f"{part}.txt", "red")
        read_all(folder, tmp_path)
    report(ROW, f"pictures {count} of {count}")


NAMES = st.sampled_from(
    ["a.png", "a.txt", "a.json", "../../etc/b.png", "/etc/passwd.txt", "..", "", ".", "a/../../c.png", "a\0.png",
     "c.cls", "a" * 150 + ".png", "b.001.png", "b.001.txt", "x.input.jpg", "\x1b[2J.png", "\udcff.png", "con.txt",
     "a.img", "a.cap"]
)  # fmt: skip
CONTENTS = st.one_of(
    st.just(encode()), st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from([b'{"caption": NaN}', b'{"captions": {"en": "cat", "de": [null, 5]}}', b"[" * 50_000, b"9" * 6000,
                     b'{"caption": "' + b"\\ud800" * 3 + b'"}', b'{"caption": {"text": {"text": 5}}}', b"", b"\0" * 99])
)  # fmt: skip
KINDS = [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"V"]


def hostile_tar(members, chance, damage, compress):
    """A tar of members (name, content, kind, claimed size), possibly damaged and compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape") as archive:
        for name, content, kind, size in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc/passwd", len(content)
            archive.addfile(member, io.BytesIO(content))
            if size is not None:
                member.size = size
                archive.fileobj.write(member.tobuf(errors="surrogateescape"))
    content = damaged(buffer.getvalue(), chance) if damage else buffer.getvalue()
    return damaged(gzip.compress(content, 1), chance) if compress else content


def test_hostile_tars(tmp_path, tries, report):
    count = tries(3000, 80)
    sizes = st.none() | st.sampled_from([10**12, 2**33, 1, 0, 513])
    members = st.lists(st.tuples(NAMES, CONTENTS, st.sampled_from(KINDS), sizes), max_size=6)

    @fuzz(count)
    @given(members, st.randoms(use_true_random=False), st.booleans(), st.booleans())
    def check(members, chance, damage, compress):
        read_all(put(tmp_path, "set.tar", hostile_tar(members, chance, damage, compress)), tmp_path)

    check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.tar"]
    report(ROW, f"tars {count} of {count}")


FIELDS = st.one_of(
    st.sampled_from(["p0.png", '"', '""', '"p0.png', 'red"', "path", "caption", "\0", "\ufeff", "\u2028", "\x1b[2J",
                     "folder", "p0.png/x", "x" * 5000, "http://a/b.png", "",
                     "sep=;", "pipe.png", "zero.png", "\udcff"]),
    st.text(max_size=12),
)  # fmt: skip


def test_hostile_tables(tmp_path, tries, report):
    count = tries(6000, 150)
    put(tmp_path, "p0.png", encode())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    rows = st.lists(st.lists(FIELDS, max_size=4), max_size=12)
    shapes = st.tuples(
        st.sampled_from([",", ";", "\t", "|", '"', ""]),
        st.sampled_from(["\n", "\r\n", "\r", "\0\n"]),
        st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"]),
        st.sampled_from([".csv", ".tsv", ".jsonl"]),
        st.booleans(),
    )

    @fuzz(count)
    @given(rows, shapes)
    def check(rows, shape):
        delimiter, end, encoding, ending, named = shape
        head = [["path", "caption"]] if named else []
        if ending == ".jsonl":
            lines = [json.dumps(dict(zip(["path", "caption", "text", "split"], row, strict=False))) for row in rows]
        else:
            lines = [delimiter.join(row) for row in head + rows]
        content = end.join(lines).encode(encoding, "surrogatepass")
        # The fields above name nothing outside the folder, except absolute paths and `..` that chance would write.
        read_all(put(tmp_path, f"list{ending}", content), Path("/"))

    check()
    report(ROW, f"tables {count} of {count}")


MARKS = (b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")
"""Byte order marks."""


def test_hostile_caption_files(tmp_path, tries, report):
    count = tries(4000, 200)
    put(tmp_path, "a.png", encode())

    @fuzz(count)
    @given(
        CONTENTS,
        st.sampled_from([".txt", ".caption", ".cap", ".json"]),
        st.sampled_from([b"", b"\xff\xfe", b"\xef\xbb\xbf"]),
    )
    def check(content, ending, mark):
        path = put(tmp_path, f"a{ending}", mark + content)
        read_all(tmp_path, tmp_path)
        path.unlink()

    check()
    report(ROW, f"caption files {count} of {count}")


def test_hostile_names_and_special_files(tmp_path, report):
    folder = tmp_path / "set"
    put(folder, "good.png", encode())
    put(folder, "good.txt", "red")
    names = [b"\xff\xfe", b"\x1b[2J\x07", b"new\nline", "\u202egnp".encode(), b"a" * 240, b"-rf", b"$(id)", b"%s{0..9}"]
    for name in names:
        for ending, content in ((b".png", encode()), (b".txt", b"red")):
            with open(os.path.join(os.fsencode(folder), name + ending), "wb") as file:
                file.write(content)
    for number, target in enumerate(("/dev/zero", "/dev/random", "/dev/tty", "/proc/self/mem", "loop", ".")):
        for suffix in (".png", ".txt", ".json"):
            (folder / f"link{number}{suffix}").symlink_to(target)
    (folder / "loop").symlink_to("loop")
    for name in ("pipe.png", "pipe.txt", "pipe.json", "good.json"):
        os.mkfifo(folder / name)
    (folder / "folder.png").mkdir()
    put(folder, "pipe2.png", encode())
    os.mkfifo(folder / "pipe2.txt")
    (tmp_path / "outer.tar").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.tar")
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    sources = [folder, *(tmp_path / name for name in ("outer.tar", "pipe.tar", "pipe.csv", "pipe.jsonl", "zero.csv"))]

    def read_sources():
        keys = {pair.key for pair in read_all(folder, Path("/"))}
        assert keys >= {"good", "-rf", "$(id)", "%s{0..9}"}
        assert not any(read_all(source, Path("/")) for source in sources[1:])

    run_in_bounds(tmp_path, read_sources)
    report(ROW, f"names and special files in {len(sources)} sources")


# --- bombs


def png_header(width, height):
    """The start of a PNG that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def icon_with(content):
    """An icon that claims 1 x 1 pixels and holds another picture."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 1, 1, 0, 0, 1, 32, len(content), 22) + content


def picture_bombs():
    """Name -> content of files that are small and claim to be large."""
    zeros = zlib.compress(bytes(1 << 26), 9)
    pixel = png_chunk(b"IDAT", zlib.compress(bytes(5)))
    black = png_header(40_000, 40_000) + png_chunk(b"IDAT", zlib.compress(bytes(1 << 24), 9))
    return {
        "huge.png": black,
        "wide.png": png_header(2**31 - 1, 1) + png_chunk(b"IDAT", zeros),
        "text.png": png_header(1, 1) + png_chunk(b"zTXt", b"a\0\0" + zeros) + pixel,
        "profile.png": png_header(1, 1) + png_chunk(b"iCCP", b"a\0\0" + zeros) + pixel,
        "long.png": png_header(1, 1) + png_chunk(b"IDAT", zeros),
        "ppm.ppm": b"P6 70000 70000 255\n" + bytes(99),
        "pgm.pgm": b"P2 " + b"9" * 100_000,
        "bmp.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "gif.gif": b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + b","
        + b"\xff" * 9
        + b"\x08\x01a\0;",
        "tga.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65535, 65535, 32, 0) + b"\xff" * 99,
        "ico.ico": icon_with(black),
        "qoi.qoi": b"qoif" + struct.pack(">IIBB", 2**32 - 1, 2**32 - 1, 4, 0) + b"\xfd" * 99,
    }


def write_bombs(folder):
    """Each kind of bomb in a source of its own; yields the sources."""
    for name, content in picture_bombs().items():
        put(folder, f"pictures/{name}", content)
        put(folder, f"pictures/{Path(name).stem}.txt", "red")
    for name in ("sparse.png", "sparse2.txt", "sparse3.json"):
        os.truncate(put(folder, f"sparse/{name}", b""), 1 << 40)
    for name, content in (("sparse.txt", b"red"), ("sparse2.png", encode()), ("sparse3.png", encode())):
        put(folder, f"sparse/{name}", content)
    yield from (folder / "pictures", folder / "sparse")
    for name in ("sparse.tar", "sparse.csv", "sparse.jsonl"):
        os.truncate(put(folder, name, b""), 1 << 33)
        yield folder / name
    header = tarfile.TarInfo("a.txt")
    header.size = 10**12
    yield put(folder, "claims.tar", header.tobuf() + b"red")
    header.pax_headers = {"GNU.sparse.realsize": str(10**12), "GNU.sparse.size": str(10**12), "GNU.sparse.map": "0,3"}
    header.size = 3
    yield put(folder, "holes.tar", header.tobuf(tarfile.PAX_FORMAT) + b"red" + bytes(509))
    long_name = tarfile.TarInfo("x" * 99)
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2**33
    yield put(folder, "name.tar", long_name.tobuf(tarfile.GNU_FORMAT))
    red = '{"caption": "red", "n": '
    for number, content in enumerate((
        red.replace('"red"', "[" * 1_000_000),
        red + "9" * 1_000_000 + "}",
        red + "[" * 900 + "]" * 900 + "}",
    )):  # fmt: skip
        yield put_tar(folder / f"json{number}.tar", [("a.png", encode()), ("a.json", content)])
    yield put(folder, "list.jsonl", b'{"path": "a.png", "caption": ' + b'{"text":' * 1_000_000)
    yield put(folder, "line.csv", b"path,caption\na.png," + b'"x' * 30_000_000)
    yield put(folder, "header.csv", b"path,caption," * 2_000_000)
    yield put(folder, "quotes.csv", b"path,caption\n" + b'a.png,"\nx\n' * 10_000)


def test_bombs_take_bounded_memory_and_time(tmp_path, report):
    sources = list(write_bombs(tmp_path))
    started = time.monotonic()
    for source in sources:
        run_in_bounds(tmp_path, lambda source=source: read_all(source, tmp_path))
    for pattern in ("{0..999999999}", "{a,b}" * 40, "{" * 5000, "{0..9}" * 15 + ".tar", "{" + "a," * 10**6 + "}" * 9):
        run_in_bounds(tmp_path, lambda pattern=pattern: read_all(str(tmp_path / pattern), tmp_path))
    report(ROW, f"bombs {len(sources) + 5} in {time.monotonic() - started:.0f} s")


@pytest.mark.slow
def test_a_compressed_tar_of_zeros_takes_bounded_memory_and_disk(tmp_path, report):
    path = tmp_path / "zeros.tar.gz"
    with gzip.open(path, "wb", 9) as file:
        for _ in range(1 << 12):
            file.write(bytes(1 << 20))
    run_in_bounds(tmp_path, lambda: read_all(path, tmp_path))
    report(ROW, "4 GiB of zeros in a compressed tar")
