"""Sources at addresses: what can be read there, and what happens when a server or the line fails."""

import gzip
import io
import json
import tarfile
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers.sources import encode, put_tar, read, reasons, texts
from helpers.web import web_server

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data import remote
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.picture_store import build_store, open_store, source_changes
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.data.remote import RemotePath, is_address, source_path
from dalle_mini_impl.data.source_files import describe_changes, source_states
from dalle_mini_impl.evaluate.data import store_config
from dalle_mini_impl.train.whole.pictures import look_at
from dalle_mini_impl.util.errors import UserError

COLOURS = ("red", "lime", "blue", "white", "black", "yellow")


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited for, none of which pass."""
    waited = []
    monkeypatch.setattr(remote, "sleep", waited.append)
    return waited


@pytest.fixture
def memory():
    """Fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def web():
    pytest.importorskip("aiohttp")
    with web_server() as server:
        yield server


def tar_of(*colours, size=(13, 7)):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for colour in colours:
            for name, part in ((f"{colour}.png", encode(colour, size=size)), (f"{colour}.txt", colour.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))
    return content.getvalue()


def keys(source, **part):
    pairs, log = read(source, **part)
    return [pair.key for pair in pairs], log.entries


# --- addresses


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://bucket/x", True),
        ("https://host/x.tar?a=b", True),
        ("simplecache::s3://bucket/x", True),
        ("HF://datasets/a/b", True),
        ("folder/x.tar", False),
        ("C:/pictures", False),
        ("/s3:/x", False),
        ("a b://x", False),
    ],
)
def test_addresses_are_told_from_paths(source, expected):
    assert is_address(source) is expected


def test_parts_of_an_address():
    path = RemotePath("https://host/set/a.b.tar?key=a/b.c")
    assert (path.name, path.stem, path.suffix, str(path.parent)) == ("a.b.tar", "a.b", ".tar", "https://host/set")
    assert not path.is_pattern
    assert RemotePath("s3://bucket/a?.tar").is_pattern
    assert str(RemotePath("s3://bucket/tables") / "../pictures/./a.png") == "s3://bucket/pictures/a.png"
    assert str(RemotePath("s3://bucket/set") / "/etc/a.png") == "s3://bucket/set/etc/a.png"


def test_a_protocol_whose_package_is_missing_names_the_extra(monkeypatch):
    def missing(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3fs is not installed; run: pip install s3fs .*'\.\[remote\]'"):
        source_path("s3://bucket/x")
    with pytest.raises(UserError, match="gs://bucket/x cannot be read: Install s3fs"):
        source_path("gs://bucket/x")


def test_an_unknown_protocol_is_refused_in_one_line(refused):
    output = refused("data", "inspect", "nonsense://host/x")
    assert output.startswith("error: nonsense://host/x cannot be read: Protocol not known: nonsense")
    assert output.count("\n") == 1


# --- what is read


@pytest.mark.parametrize("source", ["memory://set", "memory://set/", "memory://set/*.tar", "memory://set/{0..1}.tar"])
def test_tars_in_memory(memory, source):
    memory.pipe({"/set/0.tar": tar_of("red", "lime"), "/set/1.tar": tar_of("blue"), "/set/notes.md": b"#"})
    pairs, log = read(source)
    assert [(pair.key, texts(pair), pair.image.getpixel((3, 2))) for pair in pairs] == [
        ("red", ["red"], (255, 0, 0)),
        ("lime", ["lime"], (0, 255, 0)),
        ("blue", ["blue"], (0, 0, 255)),
    ]
    assert not log.entries


def test_compressed_tar_in_memory(memory):
    memory.pipe("/set.tar.gz", gzip.compress(tar_of("red")))
    assert keys("memory://set.tar.gz") == (["red"], [])


def test_folder_of_pictures_in_memory(memory):
    picture = encode("red")
    memory.pipe({
        "/set/a.png": picture, "/set/a.txt": b"one\ntwo", "/set/deep/b c.png": picture, "/set/deep/b c.json":
        b'{"caption": "three"}', "/set/deep/d.png": picture, "/set/.hidden.png": picture, "/set/.git/x.png": picture,
        "/set/deep/metadata.jsonl": b'{"file_name": "d.png", "text": "four"}\n', "/set/e.png": picture,
    })  # fmt: skip
    pairs, log = read("memory://set")
    assert [(pair.key, texts(pair)) for pair in pairs] == [
        ("a", ["one", "two"]),
        ("deep/b c", ["three"]),
        ("deep/d", ["four"]),
    ]
    assert reasons(log) == {"e.png": "no caption"}


def test_table_in_memory(memory):
    rows = [{"path": "a.png", "text": "one"}, {"path": "../b.png", "text": "two"}, {"path": "c.png", "text": "three"}]
    memory.pipe(
        {"/set/rows.jsonl": "\n".join(map(json.dumps, rows)).encode(), "/set/a.png": encode(), "/b.png": encode()}
    )
    pairs, log = read("memory://set/rows.jsonl")
    assert [(pair.key, texts(pair)) for pair in pairs] == [("a.png", ["one"]), ("../b.png", ["two"])]
    assert log.entries == [("memory://set/rows.jsonl:3 (c.png)", "missing file: memory://set/c.png")]


def test_a_table_cannot_name_files_of_this_machine(memory, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode())
    memory.pipe("/rows.csv", f"path,text\n{secret},one\n".encode())
    assert keys("memory://rows.csv")[0] == []


def test_workers_divide_the_tars(memory):
    memory.pipe({f"/set/{number}.tar": tar_of(colour) for number, colour in enumerate(COLOURS)})
    parts = [keys("memory://set", worker=worker, workers=4)[0] for worker in range(4)]
    assert parts == [["red", "black"], ["lime", "yellow"], ["blue"], ["white"]]


@pytest.mark.parametrize("source", ["nothing", "nothing.tar", "nothing/*.tar", "nothing/{0..3}.tar", "nothing.jsonl"])
def test_a_missing_address_is_refused_in_one_line(memory, source):
    with pytest.raises(UserError, match=r"memory://nothing.* does not exist; expected a folder"):
        read_pairs(f"memory://{source}", SkipLog())


# --- web servers


def test_tars_of_a_web_server(web):
    web.files = {f"/set/a-{number:03}.tar": tar_of(colour) for number, colour in enumerate(COLOURS[:3])}
    assert keys(f"{web.address}/set/a-{{000..002}}.tar") == (["red", "lime", "blue"], [])
    assert [request for request in web.requests if request[0] == "GET"] == [
        ("GET", f"/set/a-{number:03}.tar", "") for number in range(3)
    ]
    assert keys(f"{web.address}/set/*.tar")[0] == ["red", "lime", "blue"]
    assert keys(f"{web.address}/set")[0] == ["red", "lime", "blue"]
    assert keys(f"{web.address}/set/a-001.tar?signature=a/b&x=1") == (["lime"], [])


def test_folder_of_pictures_of_a_web_server(web):
    web.files = {"/set/a.png": encode(), "/set/a.txt": b"red", "/set/deep/b.png": encode(), "/set/deep/b.txt": b"b"}
    assert keys(f"{web.address}/set/") == (["a", "deep/b"], [])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_goes_on(web, ranges):
    content = np.random.default_rng(1).bytes(1_000_000)
    web.ranges = ranges
    web.files["/a"] = content
    web.faults["/a"] = [-300_000, -300_000 if ranges else -600_000, 503, 200]
    assert b"".join(RemotePath(f"{web.address}/a").blocks()) == content
    starts = [int(asked.strip("bytes=-") or 0) for _, _, asked in web.requests]
    assert len(starts) == 4
    assert starts == sorted(starts)


def test_the_waits_grow_and_the_tries_end(web, waits):
    web.files["/a.tar"] = tar_of("red")
    web.faults["/a.tar"] = [200, 503]
    assert keys(f"{web.address}/a.tar")[0] == []
    assert waits == [1, 2, 4, 8]
    assert sum(method == "GET" for method, *_ in web.requests) == 5


def test_a_shard_that_stays_broken_is_listed_and_the_others_are_read(web):
    web.files = {f"/{number}.tar": tar_of(colour) for number, colour in enumerate(COLOURS)}
    del web.files["/1.tar"]
    web.faults = {"/2.tar": [500], "/3.tar": [403], "/4.tar": [-100, 503]}
    names, skipped = keys(f"{web.address}/{{0..5}}.tar")
    assert names == ["red", "yellow"]
    assert [(name.removeprefix(web.address), reason.split(":")[0]) for name, reason in skipped] == [
        (f"/{number}.tar", "unreadable tar") for number in range(1, 5)
    ]
    assert "No such file" in skipped[0][1]
    assert "500" in skipped[1][1]
    assert "tried 5 times" in skipped[1][1]
    assert "403" in skipped[2][1]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (410, 1), (429, 5), (502, 5)])
def test_only_what_may_pass_is_asked_for_again(web, status, tries):
    web.files["/a.tar"] = tar_of("red")
    web.faults["/a.tar"] = [200, status]
    keys(f"{web.address}/a.tar")
    assert sum(method == "GET" for method, *_ in web.requests) == tries


def test_a_server_that_is_away_for_a_moment_is_asked_again(web, waits):
    web.files["/a.tar"] = tar_of("red")
    web.faults["/a.tar"] = [503, 503, 503, 503, 200]  # each look is a HEAD and a GET
    assert keys(f"{web.address}/a.tar") == (["red"], [])
    assert waits == [1, 2]


def test_a_server_that_stays_away_is_refused_in_one_line(web, waits):
    web.faults["/a.tar"] = [503]
    with pytest.raises(UserError, match=r"a\.tar cannot be read \(.*503.*\); check the address, the connection"):
        read_pairs(f"{web.address}/a.tar", SkipLog())
    assert waits == [1, 2, 4, 8]


# --- other file systems


class BrittleFileSystem(MemoryFileSystem):
    """In memory; the reading of a file fails where it is told to."""

    protocol = "brittle"
    faults: ClassVar[list[int]] = []
    """After how many bytes each opening of a file fails, the first one first."""
    starts: ClassVar[list[int]] = []
    """From where each of them was read."""

    def _open(self, path, mode="rb", **kwargs):
        file = super()._open(path, mode, **kwargs)
        if mode != "rb":
            return file
        limit = self.faults.pop(0) if self.faults else 1 << 62
        starts = self.starts

        class Brittle(io.BytesIO):
            size = len(file.getvalue())

            def read(self, count=-1):
                if self.tell() >= limit:
                    raise ConnectionResetError("the line broke")
                return super().read(min(count, 1000, limit - self.tell()))

            def seek(self, place, *whence):
                starts.append(place)
                return super().seek(place, *whence)

        return Brittle(file.getvalue()[: self.cut])

    cut: ClassVar[int | None] = None
    """How many bytes of a file arrive."""


@pytest.fixture
def brittle(memory, monkeypatch):
    fsspec.register_implementation("brittle", BrittleFileSystem, clobber=True)
    for name, value in (("faults", []), ("starts", []), ("cut", None)):
        monkeypatch.setattr(BrittleFileSystem, name, value)
    return BrittleFileSystem


def test_a_broken_transfer_goes_on_where_it_stopped(brittle, waits):
    content = np.random.default_rng(1).bytes(10_000)
    brittle().pipe("brittle://a", content)
    brittle.faults = [3000, 5000, 5000, 5000, 8500]
    assert b"".join(RemotePath("brittle://a").blocks()) == content
    assert brittle.starts == [0, 3000, 5000, 5000, 5000, 8500]
    assert waits == [1, 1, 2, 4, 1]  # what arrived counts: the tries begin anew


def test_a_transfer_that_ends_too_early_is_a_failure(brittle, waits):
    brittle().pipe("brittle://a", bytes(10_000))
    brittle.cut = 7000
    with pytest.raises(OSError, match="the transfer ended after 7000 of 10000 bytes; tried 5 times"):
        RemotePath("brittle://a").read_bytes(1 << 20)
    assert waits == [1, 2, 4, 8]


def test_a_file_above_the_limit_is_refused(memory):
    memory.pipe("/a", bytes(1001))
    assert len(RemotePath("memory://a").read_bytes(1001)) == 1001
    with pytest.raises(UserError, match="expected memory://a to have at most 1000 bytes"):
        RemotePath("memory://a").read_bytes(1000)


# --- what else takes a source


def test_states_tell_what_changed(memory):
    memory.pipe({"/set/0.tar": tar_of("red"), "/set/1.tar": tar_of("lime")})
    before = source_states("memory://set")
    assert sorted(before) == ["0.tar", "1.tar"]
    assert source_states("memory://set") == before
    memory.pipe({"/set/1.tar": tar_of("blue"), "/set/2.tar": tar_of("lime")})
    memory.rm("/set/0.tar")
    now = source_states("memory://set")
    assert describe_changes(before, now) == "1 added (2.tar), 1 changed (1.tar), 1 removed (0.tar)"
    states = source_states("memory://set/{1..3}.tar")
    assert [bool(state) for state in states.values()] == [True, True, False]


def test_states_of_a_source_that_cannot_be_reached_are_empty(web):
    web.faults["/a.tar"] = [503]
    assert source_states(f"{web.address}/a.tar") == {}


def test_store_of_an_address(memory, tmp_path, capsys):
    memory.pipe({f"/set/{number}.tar": tar_of(colour) for number, colour in enumerate(COLOURS)})
    config = DataConfig(source="memory://set", store=str(tmp_path / "store"), validation=0.3)
    build_store(config)
    assert "decoded 6 pictures" in capsys.readouterr().out
    entries = [entry.key for split in ("train", "validation") for entry in open_store(config, split).entries]
    assert sorted(entries) == sorted(COLOURS)
    assert source_changes(tmp_path / "store") == ""
    memory.pipe("/set/6.tar", tar_of("gray"))
    assert source_changes(tmp_path / "store") == "1 added (6.tar)"
    with pytest.raises(UserError, match="expected memory://set to be as it was"):
        open_store(config, "train")


@pytest.mark.parametrize("source", ["memory://set", "memory://set/{0..5}.tar"])
def test_first_look_counts_the_pictures_of_tars(memory, source):
    memory.pipe({f"/set/{number}.tar": tar_of(*COLOURS) for number in range(6)})
    look = look_at(source, 10)
    assert look.count == len(COLOURS)  # of one tar
    assert 36 <= look.total <= 60  # a tar is filled up to a multiple of 10,240 bytes


def test_evaluation_needs_a_store_of_an_address():
    with pytest.raises(
        UserError, match=r"expected a picture store, got the address s3://b/x; make .* data store 's3://b"
    ):
        store_config("s3://b/x")


def test_inspect_reads_an_address(memory, run, tmp_path):
    memory.pipe("/set/0.tar", tar_of(*COLOURS))
    output = run("data", "inspect", "memory://set", "--sheet", tmp_path / "sheet.png")
    assert "pictures               6 (0 with transparency)" in output


def test_local_tars_keep_their_patterns(tmp_path):
    for number in range(3):
        put_tar(tmp_path / f"{number:02}.tar", [(f"{number}.png", encode()), (f"{number}.txt", "red")])
    assert keys(f"{tmp_path}/{{00..02}}.tar") == (["0", "1", "2"], [])
