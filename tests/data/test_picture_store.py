"""The picture store, and `dalle data store`."""

import dataclasses
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data import picture_store
from dalle_mini_impl.data.checksums import write_header_file
from dalle_mini_impl.data.pair import Caption, split_of
from dalle_mini_impl.data.picture_store import build_store, open_store
from dalle_mini_impl.util.errors import UserError

SIZE = 11
COLOURS = {"a": (250, 10, 20), "b": (10, 250, 20), "c": (20, 10, 250), "d": (250, 250, 20), "e": (90, 90, 90)}


@pytest.fixture
def config(tmp_path):
    """Five pictures of one colour; d and e are held out, b is a flag, f is broken."""
    lines = []
    for key, colour in COLOURS.items():
        Image.new("RGB", (31, 17), colour).save(tmp_path / f"{key}.png")
        split = "validation" if key in "de" else "train"
        details = {"kind": "flag"} if key == "b" else {}
        captions = [f"caption {key}", {"text": f"подпись {key}", "language": "ru"}]
        lines.append({"path": f"{key}.png", "captions": captions, "split": split, "may_flip": key == "a", **details})
    (tmp_path / "f.png").touch()
    lines.append({"path": "f.png", "captions": ["broken"], "split": "train"})
    source = tmp_path / "list.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return DataConfig(source=str(source), store=str(tmp_path / "store"), store_size=SIZE)


def keys(store):
    return [entry.key[0] for entry in store.entries]


def test_store_is_built_from_the_source_and_split(config, capsys):
    train, validation = open_store(config, "train"), open_store(config, "validation")
    output = capsys.readouterr().out
    assert "skipped 1: 1 empty file" in output
    assert output.count("decoded 5 pictures") == 1
    assert (keys(train), keys(validation)) == (["a", "b", "c"], ["d", "e"])
    assert (len(train), len(validation)) == (3, 2)
    first = train.entries[0]
    assert first.captions == (Caption("caption a"), Caption("подпись a", "ru"))
    assert (first.may_flip, train.entries[1].may_flip) == (True, False)
    assert train.entries[1].details == {"kind": "flag"}


def test_pixels_belong_to_their_entries(config):
    for split in ("train", "validation"):
        store = open_store(config, split)
        order = np.arange(len(store))[::-1]
        pixels = store.take(order)
        assert pixels.shape == (len(store), SIZE, SIZE, 4)
        assert pixels.dtype == np.uint8
        for row, index in zip(pixels, order, strict=True):
            assert (row == (*COLOURS[store.entries[index].key[0]], 255)).all()


def test_wide_picture_is_cropped_around_its_middle_with_its_transparency(tmp_path):
    image = Image.new("RGBA", (33, 11), (250, 0, 0, 255))
    image.paste((0, 0, 250, 255), (11, 0, 22, 11))
    image.paste((0, 0, 0, 0), (11, 0, 22, 4))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "a.txt").write_text("blue below")
    config = DataConfig(source=str(tmp_path / "set"), store=str(tmp_path / "s"), store_size=SIZE, validation=0)
    (pixels,) = open_store(dataclasses.replace(config, fit="crop"), "train").take(np.array([0]))
    assert (pixels[4:] == (0, 0, 250, 255)).all()
    assert (pixels[:4, :, 3] == 0).all()


def test_pictures_are_fitted_as_the_config_says(tmp_path, capsys):
    image = Image.new("RGBA", (33, 11))
    image.paste((0, 0, 250, 255), (0, 2, 33, 9))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.png")
    heights = {"auto": 2, "pad": 2, "crop": 7, "stretch": 7}
    for fit, height in heights.items():
        store = str(tmp_path / fit)
        config = DataConfig(source=str(tmp_path / "set"), store=store, store_size=SIZE, validation=0, fit=fit)
        (pixels,) = open_store(config, "train", captions="optional").take(np.array([0]))
        assert (pixels[:, 5, 3] > 200).sum() == pytest.approx(height, abs=1)
    printed = capsys.readouterr().out
    assert "auto: 1 padded\n" in printed
    assert "crop: 1 cropped; over a tenth of what is drawn was cut off from 1, over half from 1\n" in printed


def test_store_without_a_fit_was_cropped(config, tmp_path):
    config = dataclasses.replace(config, fit="crop")
    open_store(config, "train")
    header = tmp_path / "store" / "store.json"
    values = json.loads(header.read_text())
    del values["identity"]["fit"]
    write_header_file(header, {name: value for name, value in values.items() if name != "checksum"})
    assert keys(open_store(config, "train")) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"built with fit='crop', the config says fit='auto'; set data.fit=crop to use"):
        open_store(dataclasses.replace(config, fit="auto"), "train")


def test_unknown_fit_is_refused():
    with pytest.raises(UserError, match=r"expected data.fit of auto, pad, crop, stretch, got 'zoom'"):
        DataConfig(fit="zoom")


def test_store_is_reopened_without_its_source(config, tmp_path):
    open_store(config, "train")
    for path in tmp_path.glob("*.png"):
        path.unlink()
    (tmp_path / "list.jsonl").unlink()
    assert keys(open_store(config, "train")) == ["a", "b", "c"]
    assert keys(open_store(dataclasses.replace(config, source=""), "validation")) == ["d", "e"]


def test_kinds_can_be_left_out_of_a_built_store(config):
    open_store(config, "train")
    store = open_store(dataclasses.replace(config, skip_kinds=("flag",)), "train")
    assert keys(store) == ["a", "c"]
    assert tuple(store.take(np.array([1]))[0, 0, 0]) == (*COLOURS["c"], 255)


@pytest.mark.parametrize("change", [{"store_size": 13}, {"source": "other.jsonl"}, {"validation": 0.5}, {"fit": "pad"}])
def test_store_built_with_other_settings_is_refused(config, change):
    open_store(config, "train")
    with pytest.raises(UserError, match=r"was built with .* the config says") as error:
        open_store(dataclasses.replace(config, **change), "train")
    assert str(next(iter(change.values()))) in str(error.value)


def test_unnamed_store_is_refused(config):
    with pytest.raises(UserError, match=r"data\.store is empty"):
        open_store(dataclasses.replace(config, store=""), "train")


def test_neither_store_nor_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="no source was named"):
        open_store(DataConfig(store=str(tmp_path / "store")), "train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_folder_that_is_no_store_is_refused(config, tmp_path, content):
    (tmp_path / "store").mkdir()
    if content is not None:
        (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(UserError, match="is not a picture store"):
        open_store(config, "train")


def test_split_without_pictures_is_refused(config):
    with pytest.raises(UserError, match="no test pictures"):
        open_store(config, "test")
    with pytest.raises(UserError, match="no train pictures"):
        open_store(dataclasses.replace(config, skip_kinds=(None, "flag")), "train")


def test_source_without_a_usable_picture_leaves_no_store(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").touch()
    with pytest.raises(UserError, match="no readable picture"):
        build_store(DataConfig(source=str(tmp_path / "set"), store=str(tmp_path / "store")))
    assert "empty file" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_split_by_key_is_stable_and_near_its_fraction():
    splits = {f"key {number}": split_of(f"key {number}", 0.2) for number in range(2000)}
    held_out = [key for key, split in splits.items() if split == "validation"]
    assert 340 < len(held_out) < 460
    assert held_out[:3] == ["key 1", "key 8", "key 10"]
    assert all(split_of(key, 0.3) == "validation" for key in held_out)
    assert {split_of(key, 0) for key in splits} == {"train"}
    assert {split_of(key, 1) for key in splits} == {"validation"}


def test_pictures_without_a_split_are_assigned_by_key(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(23):
        Image.new("RGB", (7, 5)).save(tmp_path / "set" / f"{number}.png")
        (tmp_path / "set" / f"{number}.txt").write_text("black")
    config = DataConfig(source=str(tmp_path / "set"), store=str(tmp_path / "s"), store_size=3, validation=0.3)
    train, validation = open_store(config, "train"), open_store(config, "validation")
    assert len(train) + len(validation) == 23
    assert all(split_of(entry.key, 0.3) == "validation" for entry in validation.entries)
    assert all(split_of(entry.key, 0.3) == "train" for entry in train.entries)


# --- the command


def folder_of_pictures(path, count=7):
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (17, 13), (number, 2, 3)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"picture {number}")
    return path


def tar_of(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return folder.with_suffix(".tar")


def table_of(folder):
    lines = [json.dumps({"path": path.name, "text": path.stem}) for path in sorted(folder.glob("*.png"))]
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


@pytest.mark.parametrize("source_of", [lambda folder: folder, tar_of, table_of], ids=["folder", "tar", "jsonl"])
def test_command_builds_the_store_that_training_would_build(tmp_path, run, source_of):
    source = source_of(folder_of_pictures(tmp_path / "set"))
    printed = run("data", "store", source, "--out", tmp_path / "store", "--size", 5, "--validation", 0.3)
    assert printed.splitlines()[0] == f"reading {source}"
    assert "nothing was skipped" in printed
    assert [line for line in printed.splitlines() if line.strip()][-1] == str(tmp_path / "store")
    config = DataConfig(source=str(source), store=str(tmp_path / "trained"), store_size=5, validation=0.3)
    build_store(config)
    for name in ("pixels.npy", "pairs.jsonl", "store.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()
    train = open_store(dataclasses.replace(config, store=str(tmp_path / "store")), "train")
    assert 0 < len(train) < 7
    assert all(split_of(entry.key, 0.3) == "train" for entry in train.entries)


def test_command_reports_what_was_skipped_and_replaces_a_store(tmp_path, run):
    source = folder_of_pictures(tmp_path / "set")
    run("data", "store", source, "-o", tmp_path / "store")
    (source / "3.png").write_bytes(b"")
    assert "skipped 1: 1 empty file" in run("data", "store", source, "-o", tmp_path / "store")
    assert len(np.load(tmp_path / "store" / "pixels.npy")) == 6


def test_command_refuses_to_replace_other_folders(tmp_path, refused):
    source = folder_of_pictures(tmp_path / "set")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    out = tmp_path / "notes"
    error = refused("data", "store", source, "--out", out)
    assert f"expected {out} to be absent, empty or written by this command before, got a folder with a.txt" in error
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", (), "nowhere does not exist; expected a folder of pictures"),
        ("empty", (), "empty holds neither pictures nor .tar files"),
        ("set", ("--size", 0), "--size"),
        ("set", ("--validation", 1.5), "--validation"),
    ],
)
def test_command_refuses_bad_input_in_one_line(tmp_path, refused, source, options, message):
    (tmp_path / "empty").mkdir()
    folder_of_pictures(tmp_path / "set")
    error = refused("data", "store", tmp_path / source, "--out", tmp_path / "store", *options)
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "store").exists()


# --- sources that change, sizes, small sets, damage


@pytest.fixture
def pictures(tmp_path):
    """A store setting for seven pictures in a folder."""
    source = folder_of_pictures(tmp_path / "set")
    return DataConfig(source=str(source), store=str(tmp_path / "store"), store_size=SIZE, validation=0.3)


def recaption(source):
    (source / "3.txt").write_text("another caption")


def retouch(source):
    Image.new("RGB", (19, 13), (200, 2, 3)).save(source / "3.png")


def add(source):
    Image.new("RGB", (17, 13)).save(source / "more.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (recaption, r"got 1 changed \(3\.txt\)"),
        (retouch, r"got 1 changed \(3\.png\)"),
        (add, r"got 1 added \(more\.png\)"),
        (lambda source: (source / "3.png").unlink(), r"got 1 removed \(3\.png\)"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_store_whose_source_has_changed_is_refused(pictures, tmp_path, change, message, kind):
    source = tmp_path / "set"
    if kind == "table":
        names = [*(f"{number}.png" for number in range(7)), "more.png"]
        lines = [json.dumps({"path": name, "text": (source / f"{name[0]}.txt").name}) for name in names]
        (source / "list.jsonl").write_text("\n".join(lines))
        pictures = dataclasses.replace(pictures, source=str(source / "list.jsonl"))
        message = message.replace("3.txt", "list.jsonl")
        if change is recaption:
            message = r"got 1 changed \(list\.jsonl\)"
            change = lambda source: (source / "list.jsonl").write_text("\n".join(lines[1:]))  # noqa: E731
    open_store(pictures, "train")
    change(source)
    with pytest.raises(
        UserError, match=message + r"; rebuild with `dalle data store .* --size 11 --validation 0\.3 --fit auto`"
    ):
        open_store(pictures, "train")
    assert len(open_store(dataclasses.replace(pictures, source=""), "train")) > 0
    build_store(pictures)
    assert len(open_store(pictures, "train")) > 0


def test_a_changed_tar_is_noticed(pictures, tmp_path):
    tar = tar_of(tmp_path / "set")
    config = dataclasses.replace(pictures, source=str(tar))
    open_store(config, "train")
    retouch(tmp_path / "set")
    tar_of(tmp_path / "set")
    with pytest.raises(UserError, match=r"got 1 changed \(set\.tar\)"):
        open_store(config, "train")


def test_other_files_beside_the_pictures_and_a_source_that_is_away_change_nothing(pictures, tmp_path):
    open_store(pictures, "train")
    (tmp_path / "set" / "notes.log").write_text("mine")
    open_store(pictures, "train")
    (tmp_path / "set").rename(tmp_path / "away")
    open_store(pictures, "train")
    (tmp_path / "set").mkdir()  # the place where a drive is not mounted
    open_store(pictures, "train")


def test_paths_to_the_same_source_are_the_same_source(pictures, tmp_path, monkeypatch):
    open_store(pictures, "train")
    monkeypatch.chdir(tmp_path)
    for source in ("set", "set/", "./set", str(tmp_path / "set")):
        open_store(dataclasses.replace(pictures, source=source), "train")
    with pytest.raises(UserError, match="was built with"):
        open_store(dataclasses.replace(pictures, source="away"), "train")


def test_the_size_follows_from_the_model_unless_it_is_set(pictures):
    config = dataclasses.replace(pictures, store_size=0)
    assert [config.frame_for((size, size)) for size in (0, 16, 64, 256)] == [
        (side,) * 2 for side in (128, 128, 128, 512)
    ]
    assert [config.frame_for(size) for size in ((48, 32), (24, 40), (128, 192))] == [(144, 96), (96, 160), (256, 384)]
    with pytest.raises(UserError, match=r"stored pictures have 11×11 pixels .*, expected at least the 16×16"):
        open_store(pictures, "train", picture_size=16)
    assert open_store(config, "train", picture_size=80).pixels.shape[1] == 160
    assert open_store(config, "train", picture_size=(160, 160)).pixels.shape[1] == 160
    with pytest.raises(
        UserError, match=r"holds pictures of 160×160 pixels, expected at least the 256×256 .* --size 512"
    ):
        open_store(config, "train", picture_size=256)


@pytest.mark.parametrize("values", [{"store_size": -1}, {"store_size": 10**6}, {"validation": float("nan")}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(UserError, match=rf"expected (a finite )?data\.{next(iter(values))}.*, got"):
        DataConfig(**values)


def test_enlarged_pictures_are_counted(pictures, capsys):
    build_store(dataclasses.replace(pictures, store_size=14))
    assert "7 of 7 pictures are smaller than 14 pixels and were enlarged" in capsys.readouterr().out


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("validation", [0.0001, 0.05, 0.9999])
def test_small_sets_have_both_splits(tmp_path, count, validation):
    source = folder_of_pictures(tmp_path / "set", count)
    config = DataConfig(source=str(source), store=str(tmp_path / "s"), store_size=3, validation=validation)
    train, held_out = open_store(config, "train"), open_store(config, "validation")
    assert len(train) + len(held_out) == count
    moved = [e for s in (train, held_out) for e in s.entries if e.split != split_of(e.key, validation)]
    assert len(moved) <= 1


def test_a_set_with_both_splits_and_one_without_validation_stay_as_they_are(tmp_path):
    source = folder_of_pictures(tmp_path / "set", 40)
    config = DataConfig(source=str(source), store=str(tmp_path / "s"), store_size=3, validation=0.3)
    for split in ("train", "validation"):
        assert all(split_of(entry.key, 0.3) == split for entry in open_store(config, split).entries)
    config = dataclasses.replace(config, store=str(tmp_path / "t"), validation=0)
    assert len(open_store(config, "train")) == 40


def test_pictures_without_captions_are_for_stages_that_need_none(pictures, tmp_path, capsys):
    for number in range(5):
        (tmp_path / "set" / f"{number}.txt").unlink()
    counts = [
        [len(open_store(pictures, s, captions=c)) for s in ("train", "validation")] for c in ("needed", "optional")
    ]
    assert sum(counts[0]) == 2
    assert sum(counts[1]) == 7
    assert min(counts[0]) == 1  # pictures with captions are in both splits
    assert "5 of 7 pictures have no caption: only the image tokenizer learns from them" in capsys.readouterr().out


def test_a_store_without_captions_says_so(pictures, tmp_path):
    for path in (tmp_path / "set").glob("*.txt"):
        path.unlink()
    assert len(open_store(pictures, "train", captions="optional")) > 0
    with pytest.raises(UserError, match=r"none of the \d train pictures of store .* has a caption"):
        open_store(pictures, "train")


def test_a_store_of_an_old_version_is_read(pictures, tmp_path):
    open_store(pictures, "train")
    header = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps({"identity": header["identity"], "size": 11, "count": 7}))
    for name in ("sources.json", "verified.json"):
        (tmp_path / "store" / name).unlink()
    add(tmp_path / "set")
    assert len(open_store(pictures, "train")) > 0


def test_damage_is_looked_for_once_and_found_after_each_change(pictures, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(picture_store, "check_checksums", lambda *_: calls.append(1))
    for _ in range(3):
        open_store(pictures, "train")
    assert len(calls) == 1
    (tmp_path / "store" / "pixels.npy").touch()
    open_store(pictures, "train")
    assert len(calls) == 2


# --- what is replaced


@pytest.mark.parametrize(
    "what", ["trained model", "pictures", "cache", "store.json of another program", "file", "link"]
)
def test_folders_of_other_things_are_refused_before_the_work(pictures, tmp_path, what):
    out = tmp_path / "store"
    target = tmp_path / "target"
    target.mkdir()
    names = {
        "trained model": ["config.yaml", "transformer.safetensors"],
        "pictures": ["a.png", "a.txt"],
        "cache": ["cache.json"],
        "store.json of another program": ["store.json"],
    }.get(what, ["x"])
    for name in names:
        (target / name).write_text("mine")
    if what == "file":
        out.write_text("mine")
    elif what == "link":
        out.symlink_to(target)
    else:
        target.rename(out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"expected .*store to be"):
        build_store(pictures)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --- pictures that are not square


def test_store_of_pictures_that_are_not_square(pictures, run, tmp_path):
    out = tmp_path / "wide"
    printed = run("data", "store", pictures.source, "--out", out, "--size", "9x12", "--fit", "stretch")
    assert "decoded 7 pictures at 9×12 px" in printed
    config = DataConfig(source=pictures.source, store=str(out), store_height=9, store_width=12, fit="stretch")
    assert open_store(config, "train").pixels.shape[1:] == (9, 12, 4)
    assert open_store(config, "train", picture_size=(6, 8)).pixels.shape[1:] == (9, 12, 4)
    assert open_store(config, "train", picture_size=12, any_proportions=True).pixels.shape[1:] == (9, 12, 4)
    for size in (6, (8, 6), (12, 16)):
        with pytest.raises(
            UserError, match=r"stored pictures have 9×12 pixels .*in their proportions; set data\.store_"
        ):
            open_store(config, "train", picture_size=size)
    with pytest.raises(UserError, match=r"built with store_size=\[9, 12\], the config says store_size=12"):
        open_store(dataclasses.replace(config, store_height=0, store_width=0, store_size=12), "train")


# --- every n-th picture


def test_every_nth_picture_is_used_and_another_number_refused(pictures, tmp_path):
    def keys(config):
        return {entry.key for split in ("train", "validation") for entry in open_store(config, split).entries}

    thinned = dataclasses.replace(pictures, store=str(tmp_path / "thinned"), every=3)
    every, third = keys(pictures), keys(thinned)
    assert third < every
    assert len(third) == -(-len(every) // 3)
    for other in (dataclasses.replace(thinned, every=1), dataclasses.replace(thinned, every=2)):
        with pytest.raises(UserError, match=r"was built with every=3, the config says every=\d"):
            open_store(other, "train")


def test_a_store_remembers_what_was_skipped(pictures, tmp_path):
    (tmp_path / "set" / "broken.png").write_bytes(b"no picture")
    open_store(pictures, "train")
    assert "broken.png" in picture_store.skipped_text(tmp_path / "store")
    assert picture_store.skipped_text(tmp_path / "nothing") == ""
