"""Stores of encoded pictures: the pixels of other stores in less space, built by several processes and resumed."""

import dataclasses
import io
import json

import numpy as np
import pytest
from helpers.pictures import random_picture
from helpers.processes import Forked, kill_self
from helpers.sources import put, put_tar
from PIL import Image

from dalle_mini_impl.config.data import DataConfig, SourceConfig
from dalle_mini_impl.data import store_builder
from dalle_mini_impl.data.encoded_pictures import decode_stored, encode_picture
from dalle_mini_impl.data.picture_blocks import PictureBlocks
from dalle_mini_impl.data.picture_store import open_store, store_version
from dalle_mini_impl.data.store_builder import build_store
from dalle_mini_impl.util import files, temporary_names
from dalle_mini_impl.util.errors import UserError

SIZE = 24
NAMES = ("store.json", "pictures.bin", "pictures.npy", "pairs.jsonl", "pairs.npy", "sources.json", "skipped.txt")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 5 samples, so that a few pictures make many."""
    monkeypatch.setattr(store_builder, "BLOCK_SAMPLES", 5)


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(seed, width=2 * SIZE, height=SIZE):
    """A picture with soft edges, as a photograph."""
    return random_picture(seed, 6, 5).resize((width, height), Image.Resampling.BICUBIC)


def clear_picture(seed):
    """A picture with a transparent ground."""
    image = smooth_picture(seed).convert("RGBA")
    image.putalpha(Image.new("L", image.size).transform(image.size, Image.Transform.EXTENT, (0, 0, 1, 1)))
    image.paste(smooth_picture(seed, 20, 14), (9, 4))
    return image


@pytest.fixture
def source(tmp_path):
    """Four tars of different sizes: photographs, drawings with transparency, pictures of the store's size, none."""
    folder = tmp_path / "tars"
    folder.mkdir()
    pictures = [(f"{n}.jpg", file_of(smooth_picture(n), "JPEG")) for n in range(13)]
    captions = [(f"{n}.txt", f"picture {n}") for n in range(11)]  # two have none
    put_tar(folder / "0.tar", pictures + captions)
    put_tar(folder / "1.tar", [(f"clear{n}.png", file_of(clear_picture(n))) for n in range(3)])
    square = [smooth_picture(n, SIZE, SIZE) for n in range(20, 33)]
    kinds = {"jpg": ("JPEG", {"quality": 60}), "webp": ("WEBP", {}), "png": ("PNG", {})}
    put_tar(
        folder / "2.tar",
        [
            (f"square{n}.{ending}", file_of(image, kind, **options))
            for n, image in enumerate(square)
            for ending, (kind, options) in [[*kinds.items()][n % 3]]
        ]
        + [(f"square{n}.json", json.dumps({"text": f"square {n}", "may_flip": n % 2 == 0})) for n in range(13)],
    )
    put_tar(folder / "3.tar", [("broken.png", b"no picture"), ("broken.txt", b"no picture")])
    return folder


@pytest.fixture
def config(source, tmp_path):
    return DataConfig(
        source=str(source), store=str(tmp_path / "png"), store_size=SIZE, store_format="png", validation=0.3
    )


def of(config, store_format, name):
    """A store of the same pictures in another form, beside it."""
    store = str(config.store).removesuffix("png") + name
    return dataclasses.replace(config, store_format=store_format, store=store)


def content(config, names=NAMES):
    folder = store_builder.Path(config.store)
    return {name: (folder / name).read_bytes() for name in names}


def splits(config, **options):
    return [open_store(config, split, captions="optional", **options) for split in ("train", "validation")]


def test_png_has_the_pixels_and_entries_of_a_store_of_pixels(config, capsys):
    pixels = of(config, "pixels", "pixels")
    build_store(pixels)
    told = capsys.readouterr().out
    for mine, theirs in zip(splits(config), splits(pixels), strict=True):
        assert list(mine.entries) == list(theirs.entries)
        assert mine.frame == theirs.frame == (SIZE, SIZE)
        order = np.random.default_rng(0).permutation(len(mine))
        assert np.array_equal(mine.take(order), theirs.take(order))
        assert len(mine) > 3
    mine = capsys.readouterr().out
    assert told.partition("decoded")[0] == mine.partition("encoded as png")[0]
    assert "skipped 1: 1 not a picture" in mine
    assert "encoded as png 29 pictures at 24 px" in mine
    assert len(content(config)["pictures.bin"]) < 29 * SIZE * SIZE * 4 / 2
    assert content(config, ["pairs.jsonl", "pairs.npy", "skipped.txt", "sources.json"]) == content(
        pixels, ["pairs.jsonl", "pairs.npy", "skipped.txt", "sources.json"]
    )


def test_jpeg_is_nearly_the_same_in_less_space_and_keeps_transparency(config):
    jpeg = of(config, "jpeg", "jpeg")
    for mine, theirs in zip(splits(jpeg), splits(config), strict=True):
        assert list(mine.entries) == list(theirs.entries)
        for number, entry in enumerate(mine.entries):
            found, expected = (store.take(np.array([number]))[0].astype(int) for store in (mine, theirs))
            assert np.abs(found - expected)[expected[..., 3] > 0].max() < 24
            assert np.array_equal(found[..., 3], expected[..., 3])
            if entry.key.startswith("clear"):
                assert np.array_equal(found, expected)
                assert found[..., 3].min() < 255


def test_files_of_the_stored_size_are_kept_as_they_are(config, source):
    import tarfile

    build_store(of(config, "jpeg", "jpeg"))
    build_store(config)
    kept = {form: content(of(config, form, form))["pictures.bin"] for form in ("png", "jpeg")}
    with tarfile.open(source / "2.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith((".jpg", ".webp", ".png")):
                found = {form: tar.extractfile(member).read() in content for form, content in kept.items()}
                assert found == {"png": True, "jpeg": not member.name.endswith(".png")}


def test_what_is_encoded_is_what_is_decoded():
    opaque = np.asarray(smooth_picture(1, SIZE, SIZE).convert("RGBA"))
    clear = np.asarray(clear_picture(2).crop((0, 0, SIZE, SIZE)))
    for rgba in (opaque, clear):
        for form in ("png", "jpeg"):
            stored = encode_picture(rgba, b"", form)
            if form == "png" or rgba is clear:
                assert np.array_equal(decode_stored(stored), rgba)
            # A file of another size, one that is larger than the pixels, and none are encoded.
            for other in (file_of(smooth_picture(1)), file_of(Image.fromarray(rgba)) + bytes(rgba.nbytes), b"<svg/>"):
                assert encode_picture(rgba, other, form) == stored


def test_a_photograph_takes_far_less_space_than_its_pixels():
    grain = np.random.default_rng(0).normal(0, 3, (128, 128, 3))
    pixels = np.clip(np.asarray(smooth_picture(1, 128, 128)) + grain, 0, 255).astype(np.uint8)
    rgba = np.asarray(Image.fromarray(pixels).convert("RGBA"))
    png, jpeg = (len(encode_picture(rgba, b"", form)) for form in ("png", "jpeg"))
    assert jpeg < png / 2 < rgba.nbytes / 3


def test_large_pictures_make_small_blocks(config, monkeypatch):
    alone = of(config, "png", "alone")
    build_store(alone)
    monkeypatch.setattr(store_builder, "BLOCK_BYTES", 2 * 4 * SIZE * SIZE)
    sizes = []
    write = PictureBlocks.write
    monkeypatch.setattr(PictureBlocks, "write", lambda *given: sizes.append(len(given[3].contents)) or write(*given))
    build_store(config)
    assert max(sizes) == 2
    assert content(config) == content(alone)


def test_pictures_that_are_not_square(config):
    config = dataclasses.replace(config, store_size=0, store_height=SIZE, store_width=2 * SIZE)
    train, _ = splits(config, picture_size=(SIZE // 2, SIZE))
    assert train.take(np.arange(3)).shape == (3, SIZE, 2 * SIZE, 4)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_store_does_not_depend_on_the_processes(config, processes):
    alone = of(config, "png", "alone")
    build_store(config, processes=processes)
    build_store(alone)
    assert content(config) == content(alone)
    assert store_version(store_builder.Path(config.store)) == store_version(store_builder.Path(alone.store)) != ""


def test_several_sources_with_weights_are_those_of_a_store_of_pixels(config, source):
    sources = (SourceConfig(path=f"{source}/0.tar", weight=2.5), SourceConfig(path=f"{source}/2.tar"))
    several = dataclasses.replace(config, source="", sources=sources)
    for mine, theirs in zip(splits(several), splits(of(several, "pixels", "pixels")), strict=True):
        assert [entry.key for entry in mine.entries] == [entry.key for entry in theirs.entries]
        assert np.array_equal(mine.rows, theirs.rows)


@pytest.mark.parametrize("every", [2, 7])
def test_every_nth_picture_is_that_of_a_store_of_pixels(config, every):
    thinned = dataclasses.replace(config, every=every)
    build_store(thinned)
    build_store(of(thinned, "pixels", "pixels"))
    assert content(thinned, ["pairs.jsonl"]) == content(of(thinned, "pixels", "pixels"), ["pairs.jsonl"])


@pytest.mark.parametrize("moment", ["before", "within", "joining", "replacing", "removing"])
def test_a_killed_build_goes_on_to_the_same_store(config, tmp_path, monkeypatch, moment):
    whole = of(config, "png", "whole")
    build_store(whole)
    with monkeypatch.context() as patch:
        die_at(patch, moment)
        process = Forked(tmp_path / "output", build_store, config)
        assert process.wait() == -9, process.output.read_text()
    blocks = PictureBlocks(tmp_path / "png.blocks")
    kept = blocks.finished().blocks if blocks.folder.exists() else set()
    assert len(kept) == {"before": 4, "within": 4, "joining": 8, "replacing": 8, "removing": 0}[moment]
    encoded = []
    encode = store_builder.encode_picture
    monkeypatch.setattr(store_builder, "encode_picture", lambda *given: encoded.append(1) or encode(*given))
    temporary_names._remove_litter.cache_clear()  # a new process looks at each folder anew
    build_store(config)
    assert content(config) == content(whole)
    assert len(encoded) == {0: 29, 4: 13, 8: 0}[len(kept)]
    assert sorted(path.name for path in tmp_path.glob("*png*")) == ["png"]


def die_at(patch, moment):
    """End by SIGKILL at a moment of a build."""
    write = PictureBlocks.write
    written = []

    def deadly(*arguments):
        if len(written) == 4:
            if moment == "within":
                patch.setattr(np, "savez", lambda path, **_: (path.write_bytes(b"half a bl"), kill_self()))
                write(*arguments)
            kill_self()
        write(*arguments)
        written.append(arguments)

    if moment in ("before", "within"):
        patch.setattr(PictureBlocks, "write", deadly)
    elif moment == "joining":
        patch.setattr(store_builder, "write_header_file", kill_self)
    elif moment == "replacing":
        patch.setattr(PictureBlocks, "remove", kill_self)
    else:
        remove = PictureBlocks.remove
        patch.setattr(
            PictureBlocks, "remove", lambda blocks: (patch.setattr(files.shutil, "rmtree", kill_self), remove(blocks))
        )


def test_another_work_does_not_go_on(config, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, "before")
        assert Forked(tmp_path / "output", build_store, config).wait() == -9
    with pytest.raises(UserError, match=r"png\.blocks to be of the same work, .* another fit, format; repeat"):
        build_store(dataclasses.replace(config, store_format="jpeg", fit="crop"))
    put_tar(source / "9.tar", [])
    with pytest.raises(UserError, match="begun with another files of the source"):
        build_store(config)


def damaged(config, place):
    path = store_builder.Path(config.store) / "pictures.bin"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_damaged_bytes_are_named_when_the_store_is_opened(config):
    build_store(config)
    index = np.load(store_builder.Path(config.store) / "pictures.npy")
    start, end = index["end"][[4, 5]]
    damaged(config, int(start) + 3)
    message = rf"store .*png is damaged \(ValueError: pictures\.bin has other bytes than were written from {start} to "
    with pytest.raises(UserError, match=message + rf"{end}, picture 6 of 29\); delete it, so that it is built anew"):
        open_store(config, "train")


def test_damage_that_comes_later_is_named_by_the_batch_that_meets_it(config):
    train, _ = splits(config)
    start, end = train.pixels._index["end"][[train.rows[0] - 1, train.rows[0]]] if train.rows[0] else (0, 0)
    end = int(train.pixels._index["end"][train.rows[0]])
    damaged(config, end - 1)
    assert train.take(np.array([1])).any()
    with pytest.raises(UserError, match=rf"is damaged .* from {start} to {end}, picture \d+ of 29\)"):
        train.take(np.array([1, 0]))


@pytest.mark.parametrize("name", ["pictures.bin", "pictures.npy"])
def test_a_file_that_is_cut_off_or_too_long_is_named(config, name):
    build_store(config)
    path = store_builder.Path(config.store) / name
    content = path.read_bytes()
    for changed in (content[:-1], content[:100], b"", content + b"more"):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"store .*png is damaged .*; delete it"):
            open_store(config, "train")


def test_any_store_is_taken_unless_the_config_says_which(config):
    build_store(config)
    assert len(open_store(dataclasses.replace(config, store_format="auto"), "train"))
    with pytest.raises(UserError, match=r"built with store_format='png', the config says store_format='jpeg'"):
        open_store(dataclasses.replace(config, store_format="jpeg"), "train")
    with pytest.raises(UserError, match=r"expected data\.store_format of auto, pixels, png, jpeg, got 'gif'"):
        DataConfig(store_format="gif")


def test_advice_builds_the_same_kind_again(config, source):
    build_store(config)
    put_tar(source / "9.tar", [])
    with pytest.raises(UserError, match=r"rebuild with `dalle data store .* --fit auto --format png`"):
        open_store(dataclasses.replace(config, store_format="auto"), "train")


def test_a_store_replaces_one_of_another_kind(config, tmp_path):
    pixels = dataclasses.replace(config, store_format="pixels")
    for one, name in ((config, "pictures.bin"), (pixels, "pixels.npy"), (config, "pictures.bin")):
        build_store(one)
        assert [path.name for path in (tmp_path / "png").glob("pi*.*")][-1].startswith(name[:3])
        assert (tmp_path / "png" / name).exists()
        assert len(open_store(one, "train"))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_small_sets_have_both_splits(tmp_path, count):
    for number in range(count):
        put(tmp_path / "set", f"{number}.png", file_of(random_picture(number)))
    config = DataConfig(
        source=str(tmp_path / "set"),
        store=str(tmp_path / "png"),
        store_size=SIZE,
        store_format="png",
        validation=0.0001,
    )
    pixels = of(config, "pixels", "pixels")
    lines = [[list(store.entries) for store in splits(one)] for one in (config, pixels)]
    assert lines[0] == lines[1]
    assert all(lines[0])


def test_a_source_without_a_usable_picture_leaves_nothing(tmp_path):
    put(tmp_path / "set", "a.png", b"")
    config = DataConfig(source=str(tmp_path / "set"), store=str(tmp_path / "png"), store_format="png")
    with pytest.raises(UserError, match="no readable picture"):
        build_store(config)
    with pytest.raises(UserError, match="nowhere does not exist"):
        build_store(dataclasses.replace(config, source=str(tmp_path / "nowhere"), store=str(tmp_path / "a" / "b")))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_command_builds_it(config, run, refused, tmp_path, processes):
    arguments = ("data", "store", config.source, "--out", tmp_path / "png", "--size", SIZE, "--validation", 0.3)
    error = refused(*arguments, "--processes", 2)
    assert "expected one process for a store of pixels, got 2; choose --format png or jpeg" in error
    printed = run(*arguments, "--format", "png", "--processes", processes)
    assert "encoded as png 29 pictures at 24 px" in printed
    assert len(splits(config)[0]) > 3
