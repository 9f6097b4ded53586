"""Stores and token caches: damage is found and named, a full disk ends the work in one line, foreign folders stay."""

import json
import shutil

import numpy as np
import pytest
from helpers.disks import fill_disk, small_disk
from helpers.training import cache_of, config_of

from dalle_mini_impl.data.picture_store import build_store, open_store
from dalle_mini_impl.util.errors import UserError


def damages(path, tries):
    """Damaged contents of a file: cut off at and with a flipped bit at random places."""
    content = path.read_bytes()
    random = np.random.default_rng(len(content))
    for place in random.integers(len(content), size=tries):
        yield content[:place]
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        yield bytes(flipped)


@pytest.mark.parametrize("name", ["store/pixels.npy", "store/pairs.jsonl", "store/pairs.npy", "store/sources.json"])
def test_damage_to_a_store_is_named(home, name, tries, report):
    config = config_of(home, "encode").data
    open_store(config, "train")
    path = home.folder / name
    content = path.read_bytes()
    count = 0
    for damaged in damages(path, tries(40, 8)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"store .* is damaged .*{path.name}"):
            open_store(config, "train")
        count += 1
    path.write_bytes(content)
    open_store(config, "train")
    report("stores and caches cut off or with a flipped bit", f"{name} {count} of {count} named")


@pytest.mark.parametrize("name", ["train/image_ids.npy", "train/pairs.jsonl", "train/pairs.npy", "cache.json"])
def test_damage_to_a_cache_is_named(home, name, tries, report):
    cache_of(home, "train")
    path = home.folder / "ids" / name
    count = 0
    for damaged in damages(path, tries(40, 8)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"encode again"):
            cache_of(home, "train")
        count += 1
    report("stores and caches cut off or with a flipped bit", f"ids/{name} {count} of {count} named")


def test_a_full_disk_ends_building_and_encoding_in_one_line(home, tmp_path, report):
    config = config_of(home, "encode").data
    with small_disk(tmp_path / "disk", 2048) as disk:
        ballast = fill_disk(disk, spare=16384)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; make space"):
            build_store(type(config)(**{**vars(config), "store": str(disk / "store"), "store_size": 64}))
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; make space"):
            home.run("encode", f"out={disk}/ids", "variants=2000")
        assert [path.name for path in disk.iterdir() if not path.name.endswith(".lock")] == ["ballast"]
        ballast.unlink()
        home.run("encode", f"out={disk}/ids")
    report("full disk", "building and encoding: one line, nothing half written")


@pytest.mark.parametrize("out", ["model", "pictures", "store"])
def test_an_encoder_replaces_no_other_folder(home, out, report):
    before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="to be absent, empty or written by this command"):
        home.run("encode", f"out={home.folder / out}")
    assert {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()} == before
    report("folders of something else as output", f"{out} kept")


def test_a_split_named_folder_of_pictures_is_kept(home):
    (home.folder / "data" / "train").mkdir(parents=True)
    shutil.copy(next((home.folder / "pictures").glob("*.png")), home.folder / "data" / "train")
    (home.folder / "data" / "cache.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected .*train to be"):
        home.run("encode", f"out={home.folder / 'data'}")


def test_ids_that_do_not_belong_to_their_pictures_are_named(home):
    folder = home.folder / "ids"
    header = (folder / "cache.json").read_text()
    ids = np.load(folder / "train" / "image_ids.npy")
    for wrong, message in (
        (ids + np.uint16(13), "holds the image id"),
        (ids[:-1], r"expected uint16 \("),
        (ids.astype(np.int64), "holds int64"),
        (ids[..., :1], r"expected uint16 \("),
    ):
        # Without checksums, as in caches of old versions.
        values = {"image_tokenizer": cache_header(header), "codebook_size": 13, "grid": [2, 2]}
        (folder / "cache.json").write_text(json.dumps(values))
        np.save(folder / "train" / "image_ids.npy", wrong)
        with pytest.raises(UserError, match=message):
            cache_of(home, "train")


def cache_header(text):
    """Identity of the image tokenizer in a header."""
    return json.loads(text)["image_tokenizer"]


def test_a_cache_of_pictures_that_have_changed_is_told(home):
    (home.folder / "pictures" / "red-disc.txt").write_text("a circle\n")
    with pytest.warns(UserWarning, match=r"lacks the latest pictures: 1 changed \(red-disc\.txt\)"):
        cache_of(home, "train")
    with pytest.raises(UserError, match=r"got 1 changed \(red-disc\.txt\)"):
        home.run("encode")


@pytest.mark.parametrize("setting", ["batch_size=0", "variants=-1", "seed=-1"])
def test_numbers_out_of_range_are_refused(home, setting):
    with pytest.raises(UserError, match=setting.split("=")[0]):
        home.run("encode", setting)


@pytest.mark.parametrize("size", [0, 70_000])
def test_a_codebook_that_no_cache_can_hold_is_refused_at_once(home, size):
    with pytest.raises(UserError, match=f"expected .*, got {size}"):
        home.run("image_tokenizer", f"model.codebook_size={size}")
