"""Reading folders, JSONL and CSV files, and tars, with what must be skipped."""

import io
import json
import os
import tarfile
import warnings

import pytest
from helpers.sources import SIZE, encode, put, put_tar, read, reasons, texts
from PIL import Image

from dalle_mini_impl.data.pair import Caption, SkipLog
from dalle_mini_impl.data.parts import read_samples
from dalle_mini_impl.data.readers import pictures_of_table, read_pairs
from dalle_mini_impl.data.sample import UnusableSample, decode_picture
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import PICTURE_ENDINGS

# --- folders


def test_folder_gives_nested_pictures_with_every_caption_line(tmp_path):
    put(tmp_path, "a.png", encode("red"))
    put(tmp_path, "a.txt", "\ufeffa red square\n\n  ein rotes   Quadrat \r\n")
    put(tmp_path, "deep/er/A photo.v2.JPEG", encode("lime", "JPEG"))
    put(tmp_path, "deep/er/A photo.v2.TXT", "green")
    put(tmp_path, "deep/a.WEBP", encode("blue", "WEBP", lossless=True))
    put(tmp_path, "deep/a.txt", "blue")
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["a", "deep/a", "deep/er/A photo.v2"]
    assert texts(pairs[0]) == ["a red square", "ein rotes Quadrat"]
    assert [pair.image.getpixel((3, 2)) for pair in pairs[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert [pair.split for pair in pairs] == ["", "", ""]
    assert not log.entries


@pytest.mark.parametrize("ending", ["PNG", "JPG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "png", "Gif"])
def test_picture_endings_in_any_case(tmp_path, ending):
    kind = {"JPG": "JPEG"}.get(ending.upper(), ending.upper())
    put(tmp_path, f"a.{ending}", encode("red", kind))
    put(tmp_path, "a.txt", "red")
    pairs, log = read(str(tmp_path))
    assert pairs[0].image.size == SIZE
    assert pairs[0].image.mode == "RGB"
    assert not log.entries


def test_unusable_files_of_a_folder_are_logged_and_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    good = encode("red")
    for name, picture, caption in (
        ("good", good, "red"),
        ("truncated", Image.effect_noise((11, 17), 90)._repr_png_()[:-40], "red"),
        ("zero", b"", "red"),
        ("bomb", encode(size=(19, 17)), "red"),  # 1.6 times the limit: Pillow only warns
        ("huge", encode(size=(31, 29)), "red"),  # 4.5 times the limit: Pillow refuses
        ("page", b"<html>no picture here</html>", "red"),
        ("wordless", good, None),
        ("blank", good, " \n\t\n"),
        ("latin", good, "gr\u00fcn".encode("latin-1")),
    ):
        put(tmp_path, f"{name}.png", picture)
        if caption is not None:
            put(tmp_path, f"{name}.txt", caption)
    put(tmp_path, "orphan.txt", "nothing to see")
    put(tmp_path, "good.webp", encode("red", "WEBP"))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    put(tmp_path, "gone.txt", "red")
    put(tmp_path, ".hidden.png", b"")
    pairs, log = read(tmp_path)
    assert [pair.key for pair in pairs] == ["good"]
    assert reasons(log) == {
        "truncated.png": "truncated picture",
        "zero.png": "empty file",
        "bomb.png": "decompression bomb",
        "huge.png": "decompression bomb",
        "page.png": "not a picture",
        "wordless.png": "no caption",
        "blank.png": "empty caption",
        "latin.png": "caption not UTF-8",
        "orphan.txt": "no picture",
        "good.webp": "same name",
        "gone.png": "missing file",
    }
    assert len(log.entries) == 11
    assert all("\n" not in reason for _, reason in log.entries)


def test_names_that_are_not_unicode_are_skipped_and_can_be_printed(tmp_path):
    stem = os.path.join(os.fsencode(tmp_path), b"bl\xe5")
    for ending, content in ((b".png", encode()), (b".txt", b"blue")):
        with open(stem + ending, "wb") as file:
            file.write(content)
    pairs, log = read(tmp_path)
    assert not pairs
    assert log.entries[0][1].startswith("not Unicode")
    log.report().encode()


def test_linked_folders_are_followed_once(tmp_path):
    put(tmp_path, "set/a.png", encode())
    put(tmp_path, "set/a.txt", "red")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    pairs, log = read(tmp_path / "set")
    assert [pair.key for pair in pairs] == ["a"]
    assert not log.entries


def test_unreadable_subfolder_is_logged(tmp_path, monkeypatch):
    put(tmp_path, "a.png", encode())
    put(tmp_path, "a.txt", "red")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pairs, log = read(tmp_path)
    assert len(pairs) == 1
    assert reasons(log) == {"locked": "unreadable folder"}


# --- pictures


def test_exif_orientation_is_applied():
    image, exif = Image.new("RGB", SIZE, "red"), Image.Exif()
    image.putpixel((0, 0), (0, 0, 255))
    exif[0x0112] = 6  # orientation tag: rotate clockwise by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    upright = decode_picture(buffer.getvalue())
    assert upright.size == (7, 13)
    assert upright.getpixel((6, 0)) == (0, 0, 255)


def test_palette_with_transparency_becomes_rgba():
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 250, 20, 30])
    image.putpixel((2, 3), 0)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    decoded = decode_picture(buffer.getvalue())
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((2, 3))[3] == 0
    assert decoded.getpixel((5, 5)) == (250, 20, 30, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 50), (77, 77, 77, 50)),
        ("I;16", 0x8000, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_or_rgba(mode, colour, expected):
    assert decode_picture(encode(colour, mode=mode)).getpixel((4, 4)) == expected


def test_damaged_data_is_skipped_whatever_the_decoder_raises(monkeypatch):
    def fail(self):
        raise IndexError

    data = encode()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UnusableSample, match=r"^broken picture: IndexError$"):
        decode_picture(data)


def test_check_for_decompression_bombs_restores_global_state(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    before = list(warnings.filters)
    with pytest.raises(UnusableSample, match="decompression bomb"):
        decode_picture(encode())
    assert warnings.filters == before
    assert Image.MAX_IMAGE_PIXELS == 80


# --- tables


@pytest.mark.parametrize("field", ["path", "image", "file_name"])
def test_jsonl_captions_and_fields(tmp_path, field):
    put(tmp_path, "pictures/a.png", encode("red"))
    put(tmp_path, "b.png", encode("blue"))
    lines = [
        {field: "pictures/a.png", "captions": ["red", {"text": "rot", "language": "de"}], "split": "val"},
        {field: "b.png", "caption": "blau", "language": "de", "may_flip": True, "width": 13},
        {field: "b.png", "text": "blue"},
    ]
    table = put(tmp_path, "list.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, lines)))
    (first, second), log = read(table)
    assert (first.key, first.split, first.may_flip) == ("pictures/a.png", "validation", False)
    assert first.captions == (Caption("red"), Caption("rot", "de"))
    assert first.image.getpixel((1, 1)) == (255, 0, 0)
    assert second.captions == (Caption("blau", "de"), Caption("blue"))
    assert (second.split, second.may_flip, second.details) == ("", True, {"width": 13})
    assert not log.entries


def test_unusable_jsonl_lines_are_logged(tmp_path):
    put(tmp_path, "a.png", encode())
    put(tmp_path, "b.png", encode())
    deep = "[" * 100_000
    lines = [
        b'{"path": "a.png", "caption": "red"',
        b'{"path": "a.png", "caption": "gr\xfcn"}',
        b'["a.png", "red"]',
        b'{"caption": "red"}',
        b'{"path": ["a.png"], "caption": "red"}',
        b'{"path": "gone.png", "caption": "red"}',
        b'{"path": "b.png", "caption": 7}',
        b'{"path": "b.png"}',
        b'{"path": "a.png", "caption": "red", "split": "train"}',
        b'{"path": "./b.png", "caption": "half a pair \\ud83d"}',
        b'{"path": "x/../b.png", "caption": "red", "split": "test"}',
        deep.encode(),
    ]
    pairs, log = read(put(tmp_path, "list.jsonl", b"\n".join(lines)))
    assert [(pair.key, pair.split) for pair in pairs] == [("a.png", "train")]
    assert {name.split(".jsonl:")[1].split(" ")[0]: reason.split(":")[0] for name, reason in log.entries} == {
        "1": "malformed line",
        "2": "caption not UTF-8",
        "3": "malformed line",
        "4": "no path",
        "5": "no path",
        "6": "missing file",
        "7": "malformed caption",
        "8": "empty caption",
        "10": "not Unicode",
        "11": "other split",
        "12": "malformed line",
    }


def test_csv_rows_of_one_picture_are_joined(tmp_path):
    put(tmp_path, "a.png", encode("red"))
    put(tmp_path, "b.png", encode("blue"))
    rows = '\ufeffImage,Caption,may_flip,note\na.png,"red, very",1,x\nb.png,blue,,\na.png,"say ""red""",,\n'
    (first, second), log = read(put(tmp_path, "list.CSV", rows))
    assert texts(first) == ["red, very", 'say "red"']
    assert (first.may_flip, first.details) == (True, {"note": "x"})
    assert (second.may_flip, second.details) == (False, {})
    assert not log.entries


def test_tsv_is_read_with_tabs(tmp_path):
    put(tmp_path, "a.png", encode())
    (pair,), _ = read(put(tmp_path, "list.tsv", "path\ttext\na.png\tred, very\n"))
    assert texts(pair) == ["red, very"]


def test_unusable_csv_rows_are_logged(tmp_path):
    put(tmp_path, "a.png", encode())
    rows = [
        b"path,caption",
        b"a.png,red, without quotes",
        b"a.png,gr\xfcn",
        b"gone.png,red",
        b"a.png",
        b',"no path"',
        b'a.png,"re"d',
        b"",
        b'a.png,"never closed',
    ]
    pairs, log = read(put(tmp_path, "list.csv", b"\n".join(rows)))
    assert not pairs
    assert sorted(reason.split(":")[0] for _, reason in log.entries) == [
        "malformed line",
        "malformed line",
        "malformed line",
        "missing file",
        "no path",
        "not Unicode",
    ]


def test_picture_path_that_is_a_folder_is_logged(tmp_path):
    (tmp_path / "a.png").mkdir()
    _, log = read(put(tmp_path, "list.csv", "path,caption\na.png,red\n"))
    assert log.entries[0][1].startswith("unreadable file")


# --- tars


def test_tar_members_are_grouped_by_folder_and_first_dot(tmp_path):
    entry = {"captions": ["red", {"text": "rot", "language": "de"}], "split": "train", "may_flip": True, "n": 3}
    tar = put_tar(
        tmp_path / "set.tar",
        [
            ("./x/a.json", json.dumps(entry)),  # members of a sample are not neighbours here
            ("y/a.PNG", encode("blue")),
            ("x/a.png", encode("red")),
            ("y/a.txt", "blue\nblau"),
            ("y/a.seg.png", encode("white")),
        ],
    )
    (first, second), log = read(tar)
    assert (first.key, first.split, first.may_flip, first.details) == ("x/a", "train", True, {"n": 3})
    assert first.captions == (Caption("red"), Caption("rot", "de"))
    assert (second.key, texts(second)) == ("y/a", ["blue", "blau"])
    assert second.image.getpixel((1, 1)) == (0, 0, 255)
    assert not log.entries


def test_captions_of_text_and_json_members_are_joined(tmp_path):
    entry = json.dumps({"caption": "red", "url": "x", "width": 13})
    tar = put_tar(tmp_path / "set.tar", [("a.png", encode()), ("a.txt", "red\nrot"), ("a.json", entry)])
    (pair,), _ = read(tar)
    assert texts(pair) == ["red", "rot"]
    assert pair.details == {"url": "x", "width": 13}


def test_unusable_tar_members_are_logged(tmp_path):
    good = encode()
    tar = put_tar(
        tmp_path / "set.tar",
        [
            ("broken.png", good[:50]),
            ("broken.txt", "red"),
            ("list.png", good),
            ("list.json", "[1, 2]"),
            ("cut.png", good),
            ("cut.json", '{"caption": "re'),
            ("latin.png", good),
            ("latin.json", '{"caption": "grün"}'.encode("latin-1")),
            ("wordless.png", good),
            ("cls.png", good),
            ("cls.cls", "5"),
            ("blind.txt", "red"),
            ("ok.png", good),
            ("ok.txt", "red"),
            ("ok.png", good),
            ("._ok.png", b""),
        ],
    )
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "ok.png"
        archive.addfile(link)
    pairs, log = read(tar)
    assert [pair.key for pair in pairs] == ["ok"]
    assert reasons(log) == {
        "broken": "truncated picture",
        "list": "malformed JSON",
        "cut": "malformed JSON",
        "latin": "caption not UTF-8",
        "wordless": "no caption",
        "cls": "no caption",
        "blind": "no picture",
        "ok.png": "same name",
        "link.png": "unreadable tar member",
    }


def three_pairs(tmp_path, name="set.tar"):
    members = [(f"{key}.{ending}", encode() if ending == "png" else key) for key in "abc" for ending in ("png", "txt")]
    return put_tar(tmp_path / name, members)


def test_damaged_header_loses_one_sample_only(tmp_path):
    tar = three_pairs(tmp_path)
    with tarfile.open(tar) as archive:
        header = archive.getmember("b.png").offset
    content = bytearray(tar.read_bytes())
    content[header + 3] ^= 255
    tar.write_bytes(content)
    pairs, log = read(tar)
    assert [pair.key for pair in pairs] == ["a", "c"]
    assert reasons(log) == {"set.tar": "damaged tar", "b": "no picture"}


@pytest.mark.parametrize("cut", ["in a picture", "in a header", "between members"])
def test_truncated_tar_gives_its_whole_samples(tmp_path, cut):
    tar = three_pairs(tmp_path)
    with tarfile.open(tar) as archive:
        picture, text = archive.getmember("c.png"), archive.getmember("b.txt")
    stop = {
        "in a picture": picture.offset_data + 5,
        "in a header": picture.offset + 100,
        "between members": text.offset_data + 512,
    }[cut]
    tar.write_bytes(tar.read_bytes()[:stop])
    pairs, log = read(tar)
    assert [pair.key for pair in pairs] == ["a", "b"]
    expected = {"set.tar": "damaged tar" if cut == "in a header" else "truncated tar"}
    assert reasons(log) == expected | ({"c": "no caption"} if cut == "in a picture" else {})


def test_unreadable_tars_are_logged_and_the_others_read(tmp_path):
    put(tmp_path, "a.tar", b"")
    put(tmp_path, "b.tar", os.urandom(3000))
    three_pairs(tmp_path, "c.TAR")
    (tmp_path / "d.tar").mkdir()
    put(tmp_path, "e.png", encode())
    pairs, log = read(tmp_path)
    assert len(pairs) == 3
    assert reasons(log) == {
        "a.tar": "unreadable tar",
        "b.tar": "damaged tar",
        "d.tar": "unreadable tar",
        "e.png": "beside tars",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("set-{08..10}.tar", ["08", "09", "10"]),
        ("set-{10,08}.tar", ["10", "08"]),
        ("{set,odd}-*.tar", ["08", "09", "10", "1"]),
        ("set-0?.tar", ["08", "09"]),
        ("**/odd-1.tar", ["1"]),
        ("", ["1", "08", "09", "10"]),
    ],
)
def test_tars_are_found_by_pattern(tmp_path, pattern, expected):
    for number in ("set-08", "set-09", "set-10", "odd-1"):
        key = number.split("-")[1]
        put_tar(tmp_path / f"{number}.tar", [(f"{key}.png", encode()), (f"{key}.txt", "red")])
    pairs, log = read(f"{tmp_path}/{pattern}")
    assert [pair.key for pair in pairs] == expected
    assert not log.entries


def test_tar_missing_from_a_range_is_logged(tmp_path):
    three_pairs(tmp_path, "set-1.tar")
    pairs, log = read(f"{tmp_path}/set-{{0..2}}.tar")
    assert len(pairs) == 3
    assert reasons(log) == {"set-0.tar": "unreadable tar", "set-2.tar": "unreadable tar"}


def test_braces_of_an_existing_name_are_not_expanded(tmp_path):
    pairs, _ = read(three_pairs(tmp_path, "set-{0..2}[x].tar"))
    assert len(pairs) == 3


# --- workers


def sources(tmp_path):
    """Each kind of source, with 11 good samples and some that are skipped."""
    members, lines = [], ['{"path": "gone.png", "caption": "x"}', "{"]
    for number in range(11):
        put(tmp_path, f"set/{number}.png", encode())
        put(tmp_path, f"set/{number}.txt", "red")
        members += [(f"{number}.png", encode()), (f"{number}.txt", "red")]
        lines.append(json.dumps({"path": f"set/{number}.png", "caption": "red"}))
    put(tmp_path, "set/wordless.png", encode())
    put(tmp_path, "set/orphan.txt", "red")
    members += [("wordless.png", encode()), ("orphan.txt", "red")]
    put(tmp_path, "list.jsonl", "\n".join(lines))
    put_tar(tmp_path / "one.tar", members)
    put(tmp_path, "many/0.tar", os.urandom(2000))
    for tar in range(1, 6):
        put_tar(tmp_path / "many" / f"{tar}.tar", members[tar * 4 - 4 : tar * 4] if tar < 5 else members[16:])
    return {name: tmp_path / name for name in ("set", "list.jsonl", "one.tar", "many")}


@pytest.mark.parametrize("workers", [2, 3, 7, 29])
@pytest.mark.parametrize("kind", ["set", "list.jsonl", "one.tar", "many"])
def test_workers_read_disjoint_parts_that_cover_the_source(tmp_path, kind, workers):
    source = sources(tmp_path)[kind]
    whole, whole_log = read(source)
    parts = [read(source, worker=worker, workers=workers) for worker in range(workers)]
    keys = [pair.key for pairs, _ in parts for pair in pairs]
    assert len(keys) == 11
    assert sorted(keys) == sorted(pair.key for pair in whole)
    assert sorted(entry for _, log in parts for entry in log.entries) == sorted(whole_log.entries)
    repeated, _ = read(source, worker=1, workers=workers)
    assert [pair.key for pair in repeated] == [pair.key for pair in parts[1][0]]


def test_enough_tars_are_divided_as_whole_tars(tmp_path):
    source = sources(tmp_path)["many"]
    pairs, _ = read(source, worker=1, workers=3)  # tars 1 and 4 of 0 to 5
    assert [pair.key for pair in pairs] == ["0", "1", "6", "7"]


def test_samples_of_one_tar_are_divided_evenly(tmp_path):
    source = sources(tmp_path)["one.tar"]
    assert [len(read(source, worker=worker, workers=3)[0]) for worker in range(3)] == [4, 4, 3]


@pytest.mark.parametrize(("worker", "workers"), [(2, 2), (-1, 3), (0, 0)])
def test_worker_out_of_range_is_refused(tmp_path, worker, workers):
    with pytest.raises(ValueError, match=f"expected worker from 0 to {workers - 1}, got {worker}"):
        read_pairs(tmp_path, SkipLog(), worker=worker, workers=workers)


# --- unusable sources


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "does not exist"),
        ("set-{0..3}.tar", None, "does not exist"),
        ("set-*.tar", None, "does not exist"),
        ("list.jsonl", b"\n\n", "has no rows"),
        ("list.csv", b"", "has no rows"),
        ("list.csv", b"path,caption\n", "has no rows"),
        ("list.csv", b"a.png,red\n", "starts with the columns a.png, red"),
        ("list.csv", b"picture:caption\na.png:red\n", "starts with the columns picture:caption"),
        (
            "list.csv",
            b"URL,TEXT\nhttp://a/b.png,red\n",
            "pictures must be local; download them, for example with img2d",
        ),
        ("list.csv", "path,caption\n".encode("utf-16-le"), "save it as UTF-8"),
        ("set-{0..999999999}.tar", None, "stands for too many names"),
        ("{a,b}" * 20 + ".tar", None, "stands for too many names"),
        ("{a}" * 21 + ".tar", None, "stands for too many names"),
        ("notes.txt", b"red", "none of the kinds"),
        ("empty/notes.txt", b"red", "neither pictures nor .tar files"),
    ],
)
def test_unusable_source_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        put(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as error:
        read_pairs(tmp_path / name.split("/")[0], SkipLog())
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)


def test_empty_source_does_not_mean_the_current_folder(tmp_path, monkeypatch):
    put(tmp_path, "a.png", encode())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no source was named"):
        read_pairs("", SkipLog())


def test_source_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_pairs(tmp_path, SkipLog())


# --- the log


def test_skip_report_counts_categories_and_lists_the_first_entries():
    log = SkipLog()
    assert log.report() == ""

    def refuse(reason):
        def read():
            raise UnusableSample(reason)

        return read

    samples = [(f"{number}.png", refuse(f"empty file: {number}")) for number in range(3)]
    samples.append(("x\ny.png", refuse("no caption: two\nlines")))
    assert not list(read_samples(samples, log, 0, 1))
    lines = log.report(limit=2).splitlines()
    assert lines[0] == "skipped 4: 3 empty file, 1 no caption"
    assert lines[1:] == ["  0.png: empty file: 0", "  1.png: empty file: 1", "  … and 2 more"]
    assert log.entries[3] == ("x y.png", "no caption: two lines")


def test_picture_endings_are_lower_case():
    assert all(ending == ending.lower() and ending.startswith(".") for ending in PICTURE_ENDINGS)


# --- pictures without captions


def captionless_source(path, kind):
    """A picture with a caption, one with none and one with an empty one."""
    path.mkdir()
    for name in "abc":
        Image.new("RGB", (5, 4)).save(path / f"{name}.png")
    (path / "a.txt").write_text("black")
    (path / "c.txt").write_text(" \n")
    if kind == "tar":
        with tarfile.open(path / "set.tar", "w") as archive:
            for file in sorted(path.glob("?.*")):
                archive.add(file, file.name)
        return path / "set.tar"
    if kind == "csv":
        (path / "list.csv").write_text("path,caption\na.png,black\nb.png,\nc.png,\n")
        return path / "list.csv"
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "csv"])
def test_pictures_without_captions_are_read_where_captions_are_optional(tmp_path, kind):
    source = captionless_source(tmp_path / "set", kind)
    log = SkipLog()
    pairs = list(read_pairs(source, log, captions="optional"))
    assert [[caption.text for caption in pair.captions] for pair in pairs] == [["black"], [], []]
    assert log.report() == ""
    assert len(list(read_pairs(source, log, captions="needed"))) == 1
    assert len(log.entries) == 2


def test_a_table_without_a_column_of_captions_is_read_where_they_are_optional(tmp_path):
    captionless_source(tmp_path / "set", "folder")
    table = tmp_path / "set" / "list.csv"
    table.write_text("path\nb.png\na.png\nb.png\n")
    assert [pair.key for pair in read_pairs(table, SkipLog(), captions="optional")] == ["b.png", "a.png"]
    assert pictures_of_table(table) == ["b.png", "a.png"]
