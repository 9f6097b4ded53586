"""Encoding straight from a source: the ids of a store, and the same cache however it is made."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from helpers.processes import Forked, kill_self
from helpers.sources import put_tar
from helpers.training import Home, cache_of, launch_two

from dalle_mini_impl.data import remote
from dalle_mini_impl.data.encoded_blocks import EncodedBlocks
from dalle_mini_impl.train import encode_source
from dalle_mini_impl.util import temporary_names
from dalle_mini_impl.util.errors import UserError

PLAIN = ("variants=0", "data.validation=0.3")
FILES = ("cache.json", *(f"{split}/{name}" for split in ("train", "validation")
         for name in ("image_ids.npy", "pairs.jsonl", "pairs.npy", "languages.json")))  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 5 samples, so that a few pictures make many."""
    monkeypatch.setattr(encode_source, "BLOCK_SAMPLES", 5)


@pytest.fixture
def source(home, tmp_path):
    """The pictures of `home` in three tars of different sizes, one of which also holds no picture."""
    files = sorted((home.folder / "pictures").iterdir())
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, part in enumerate((files[:30], files[30:36], files[36:])):
        put_tar(folder / f"{number}.tar", [(path.name, path.read_bytes()) for path in part])
    put_tar(folder / "3.tar", [("broken.png", b"no picture"), ("broken.txt", b"no picture")])
    return folder


def run(home, source, *settings, out="straight"):
    """Encode without a store; returns the content of the cache."""
    home.run("encode", "data.store=''", f"data.source={source}", f"out={home.folder / out}", *settings)
    return content(home.folder / out)


def content(cache):
    return {name: (cache / name).read_bytes() for name in FILES}


def test_ids_are_those_of_a_store(home, source, capsys):
    straight = run(home, source, *PLAIN)
    assert "encoded 24 train, 18 validation pictures" in capsys.readouterr().out
    home.run("encode", *PLAIN, f"data.source={source}", f"data.store={home.folder}/other", f"out={home.folder}/stored")
    stored = content(home.folder / "stored")
    assert {name: straight[name] for name in FILES[1:]} == {name: stored[name] for name in FILES[1:]}
    header = json.loads(straight["cache.json"])
    assert (header["store"], header["source"]) == ("", "tars")
    assert not (home.folder / "straight.blocks").exists()


def test_what_was_skipped_is_told(home, source, capsys):
    run(home, source, *PLAIN)
    assert "skipped 1: 1 not a picture" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [("workers=2",), ("workers=3", "batch_size=7")])
def test_the_cache_is_the_same_at_any_number_of_workers(home, source, settings):
    assert run(home, source, *settings, out="other") == run(home, source)


def test_variants_differ_and_follow_from_the_key(home, source, tmp_path):
    run(home, source)
    ids = np.load(home.folder / "straight/train/image_ids.npy")
    assert ids.shape[1:] == (3, 2, 2)
    assert not np.array_equal(ids[:, 0], ids[:, 1])
    keys = [json.loads(line)["key"] for line in (home.folder / "straight/train/pairs.jsonl").open()]
    # Other tars with other blocks: each picture has the same variants.
    run(home, home.folder / "pictures", out="folder")
    others = [json.loads(line)["key"] for line in (home.folder / "folder/train/pairs.jsonl").open()]
    order = [others.index(key) for key in keys]
    assert np.array_equal(np.load(home.folder / "folder/train/image_ids.npy")[order], ids)


def test_pictures_may_be_augmented_where_they_are_encoded(home, source, monkeypatch):
    expected = run(home, source)

    class OnDevice(encode_source.SourceBatches):
        def __init__(self, config, size, block, finished, on_device, *processes):
            assert not on_device
            super().__init__(config, size, block, finished, True, *processes)

    monkeypatch.setattr(encode_source, "SourceBatches", OnDevice)
    assert run(home, source, "workers=1", out="device") == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["before", "within", "joining"])
def test_a_killed_run_goes_on_to_the_same_cache(home, source, tmp_path, monkeypatch, workers, moment):
    settings = [f"workers={workers}"]
    whole = run(home, source, *settings)
    with monkeypatch.context() as patch:
        if moment == "joining":
            patch.setattr(EncodedBlocks, "join", kill_self)
        else:
            die_in_block(patch, 4, moment)
        process = Forked(tmp_path / "output", lambda: run(home, source, *settings, out="killed"))
        assert process.wait() == -9, process.output.read_text()
    finished = [path.name for path in (home.folder / "killed.blocks").glob("[0-9]*.npz")]
    assert len(finished) == (10 if moment == "joining" else 4)
    read = count_read(monkeypatch)
    temporary_names._remove_litter.cache_clear()  # a new process looks at each folder anew
    assert run(home, source, *settings, out="killed") == whole
    if not workers:  # workers read in processes of their own
        assert len(read) == 43 - sum_of_samples(finished)
    assert sorted(path.name for path in home.folder.glob("*killed*")) == ["killed"]


def die_in_block(patch, number, moment):
    """End by SIGKILL when so many blocks are written, or in the middle of writing the next one."""
    write = EncodedBlocks.write
    written = []

    def deadly(*arguments):
        if len(written) == number:
            if moment == "within":
                patch.setattr(np, "savez", lambda path, **_: (path.write_bytes(b"half a bl"), kill_self()))
                write(*arguments)
            kill_self()
        write(*arguments)
        written.append(arguments)

    patch.setattr(EncodedBlocks, "write", deadly)


def count_read(monkeypatch):
    """A list to which each sample that is read from now on is appended."""
    from dalle_mini_impl.data import blocks

    read = []
    read_sample = blocks.read_sample
    monkeypatch.setattr(
        blocks, "read_sample", lambda sample, log: (read.append(sample[0]), read_sample(sample, log))[1]
    )
    return read


def sum_of_samples(names):
    """Samples of blocks by the names of their files: 15, 3, 24 and 1 in blocks of 5."""
    last = {"000001-000000-last.npz": 3, "000002-000004-last.npz": 4, "000003-000000-last.npz": 1}
    return sum(last.get(name, 5) for name in names)


def test_other_settings_do_not_go_on(home, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        die_in_block(patch, 2, "before")
        assert Forked(tmp_path / "output", run, home, source).wait() == -9
    with pytest.raises(UserError, match=r"begun with another seed, variants; repeat the command"):
        run(home, source, "variants=5", "seed=3")
    put_tar(source / "9.tar", [])
    with pytest.raises(UserError, match="begun with another files of the source"):
        run(home, source)
    shutil.rmtree(home.folder / "straight.blocks")
    assert run(home, source, "variants=5", "seed=3")


def test_a_source_with_a_typing_error_can_be_mended(home, source):
    with pytest.raises(UserError, match="does not exist"):
        run(home, home.folder / "nowhere.tar")
    assert run(home, source)


def test_blocks_that_were_written_elsewhere_are_missed(home, source, monkeypatch):
    whole = run(home, source)
    write = EncodedBlocks.write
    with monkeypatch.context() as patch:
        # As by a process on a machine that does not share the folder.
        patch.setattr(EncodedBlocks, "write", lambda *given: write(*given) if given[1].part != 3 else None)
        with pytest.raises(UserError, match=r"blocks of 4 parts .* got not all of 1 .* all machines share"):
            run(home, source, out="other")
    assert not (home.folder / "other").exists()
    assert run(home, source, out="other") == whole


def test_soft_ids(home, source, capsys):
    run(home, source, "soft_ids=4", "workers=1", "data.validation=0.3")
    assert "of 4 ids stored for each cell" in capsys.readouterr().out
    for split, pictures, variants in (("train", 24, 3), ("validation", 18, 1)):
        ids, likely, shares = (
            np.load(home.folder / "straight" / split / f"{name}.npy") for name in ("image_ids", "likely_ids", "shares")
        )
        assert likely.shape == shares.shape == (pictures, variants, 2, 2, 4)
        assert np.array_equal(likely[..., 0], ids)


def test_a_transformer_trains_on_it(home, source):
    shutil.rmtree(home.folder / "ids")
    run(home, source, out="ids")
    home.run("transformer", "run.steps=2")
    assert cache_of(home, "train").header.source == "tars"
    assert home.log("transformer")


def test_a_heavier_source_is_encoded_more_often(home, source):
    sources = f"[{{path: {source}/0.tar, weight: 2.5}}, {{path: {source}/1.tar}}]"
    home.run("encode", "data.store=''", "data.source=''", f"data.sources={sources}", f"out={home.folder}/straight")
    keys = [json.loads(line)["key"] for line in (home.folder / "straight/train/pairs.jsonl").open()]
    counts = {key: keys.count(key) for key in keys}
    assert {count for key, count in counts.items() if key.startswith("1/")} == {1}
    assert {count for key, count in counts.items() if key.startswith("0/")} == {2, 3}
    ids = np.load(home.folder / "straight/train/image_ids.npy")
    first, second = (np.flatnonzero(np.array(keys) == key)[:2] for key in sorted(counts)[:2])
    assert any(not np.array_equal(ids[a], ids[b]) for a, b in (first, second))
    held_out = [json.loads(line)["key"] for line in (home.folder / "straight/validation/pairs.jsonl").open()]
    assert len(held_out) == len(set(held_out))


def test_kinds_are_left_out(home, tmp_path):
    tar = tmp_path / "kinds.tar"
    picture = next((home.folder / "pictures").glob("*.png")).read_bytes()
    kinds = ["flag" if number % 2 else "other" for number in range(40)]
    members = [(f"{number}.png", picture) for number in range(40)]
    members += [(f"{number}.json", json.dumps({"text": "a", "kind": kind})) for number, kind in enumerate(kinds)]
    put_tar(tar, members)
    run(home, tar, "data.skip_kinds=[flag]", "data.validation=0.3")
    lines = [json.loads(line) for split in ("train", "validation")
             for line in (home.folder / f"straight/{split}/pairs.jsonl").open()]  # fmt: skip
    assert sorted(int(line["key"]) for line in lines) == list(range(0, 40, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_from_an_address(home, source, workers, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(remote, "sleep", lambda _: None)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in source.iterdir():
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    straight = run(home, "memory://set/{0..3}.tar", f"workers={workers}", out="remote")
    memory.store.clear()
    local = run(home, source)
    assert {name: straight[name] for name in FILES[1:]} == {name: local[name] for name in FILES[1:]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_that_could_not_be_read_is_read_by_the_run_that_goes_on(home, source, tmp_path, monkeypatch, workers):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(remote, "sleep", lambda _: None)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in source.iterdir():
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    settings = "memory://set/{0..3}.tar", f"workers={workers}"
    whole = run(home, *settings, out="whole")
    with monkeypatch.context() as patch:
        open_at = remote._open_at
        patch.setattr(
            remote, "_open_at", lambda path, start: open_at(path, start) if "0.tar" not in str(path) else fail()
        )
        patch.setattr(EncodedBlocks, "join", kill_self)
        assert Forked(tmp_path / "output", run, home, *settings).wait() == -9
    begun = EncodedBlocks(home.folder / "straight.blocks")
    assert any("OSError: the server is tired; tried 5 times" in reason for _, reason in begun.skipped().entries)
    assert (begun.folder / "000000-000000-last-partial.npz").exists()
    assert run(home, *settings) == whole
    memory.store.clear()


def fail():
    raise OSError("the server is tired")


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_is_refused(home, source, out, tmp_path, monkeypatch):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"expected a folder with a name of its own, got \S+; name a new folder"):
        home.run("encode", "data.store=''", f"data.source={source}", f"out={out}")


def test_workers_of_a_cluster_need_its_address(home):
    with pytest.raises(UserError, match=r"expected ray=ADDRESS with ray_workers, got ray_workers=2 alone"):
        home.run("encode", "ray_workers=2", "data.store=''")


def test_neither_source_nor_store_is_refused(home):
    with pytest.raises(UserError, match=r"expected data\.source, or data\.store with decoded pictures, got neither"):
        home.run("encode", "data.store=''", "data.source=''")


def test_a_split_without_pictures_is_refused(home, source, capsys):
    with pytest.raises(UserError, match=r"got no validation picture; see the list above, check data\.validation"):
        run(home, source, "data.validation=0")
    assert "skipped 1" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_that_cannot_be_read_is_told_in_one_line(home, tmp_path, workers):
    with pytest.raises(UserError, match=r"nowhere.* does not exist"):
        run(home, tmp_path / "nowhere.tar", f"workers={workers}")


def test_ctrl_c_says_how_to_go_on(home, source, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EncodedBlocks, "write", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        run(home, source)


@pytest.mark.slow
def test_two_processes_make_the_same_cache(home, source):
    whole = run(home, source)
    two = Home(home.folder)
    arguments = two.arguments("encode", "data.store=''", f"data.source={source}", f"out={home.folder}/two", "workers=1")
    launch_two("-m", "dalle_mini_impl.train.encode", *arguments)
    assert content(home.folder / "two") == whole


@pytest.mark.slow
def test_workers_on_ray_make_the_same_cache(home, source, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    expected = run(home, source)
    monkeypatch.setattr(encode_source, "encode_share", None)  # this process encodes nothing
    assert run(home, source, "ray=local", "ray_workers=2", out="other") == expected


def test_ray_encodes_without_a_store(home):
    with pytest.raises(UserError, match=r"expected ray without data\.store, got both"):
        home.run("encode", "ray=local", f"out={home.folder}/other")
