"""Inspection of a data source, and `dalle data inspect`."""

import json
import pickle
import random
import sys
from dataclasses import asdict

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from dalle_mini_impl import cli
from dalle_mini_impl.cli.data import data
from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data import duplicates, inspect
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.duplicates import near_duplicate_groups
from dalle_mini_impl.data.fit import fit_picture
from dalle_mini_impl.data.inspect import Inspection, inspect_pairs, report_text, scripts_of
from dalle_mini_impl.data.inspect_processes import inspect_source
from dalle_mini_impl.data.pair import Caption, Pair, SkipLog
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images


def noise(seed, size=(53, 41)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 11, 3), np.uint8)).resize(size)


def make_pair(key, image, *captions, split=""):
    return Pair(key=key, image=image, captions=tuple(Caption(text) for text in captions or ("red",)), split=split)


def inspected(*pairs, sample=5):
    report, shown = inspect_pairs(pairs, sample)
    return report, shown


# --- the report


def test_report_has_counts_and_ranges():
    report, _ = inspected(
        make_pair("a", noise(1, (10, 40)), "ab", "abcd", split="train"),
        make_pair("b", noise(2, (20, 20)), "abcdefg", split="train"),
        make_pair("c", noise(3, (90, 30)).convert("RGBA"), "abc", "x", "abcde"),
    )
    assert (report.pictures, report.captions, report.transparent) == (3, 6, 1)
    assert report.splits == {"train": 2, "unassigned": 1}
    assert report.width == inspect.Range(10, 20, 90)
    assert report.height == inspect.Range(20, 30, 40)
    assert report.aspect == inspect.Range(0.25, 1, 3)
    assert report.captions_per_picture == inspect.Range(1, 2, 3)
    assert report.characters == inspect.Range(1, 3.5, 7)
    assert report.languages == {"unknown": 6}
    assert (report.exact_duplicates, report.near_duplicates, report.leaking) == ([], [], 0)


def test_no_picture_gives_no_report():
    assert inspected() == (None, [])


def test_scripts_of_letters():
    text = "Heart сердце 心臓 ハート ー はあ 하트 καρδιά قلب दिल 7️⃣ !"
    counts = scripts_of([Caption(text), Caption("ｆµªー々")])
    assert counts == {
        "Latin": 7,
        "Cyrillic": 6,
        "Han": 3,
        "Katakana": 5,
        "Hiragana": 2,
        "Hangul": 2,
        "Greek": 7,
        "Arabic": 3,
        "Devanagari": 2,
    }


def test_scripts_are_fractions_of_the_letters():
    report, _ = inspected(make_pair("a", noise(1), "abc д", "12 !"))
    assert report.scripts == {"Latin": 0.75, "Cyrillic": 0.25}
    silent, _ = inspected(make_pair("a", noise(1), "12"))
    assert silent.scripts == {}


# --- duplicates


def test_equal_pixels_are_exact_duplicates_and_leaks_are_counted():
    report, _ = inspected(
        make_pair("a", noise(1), split="train"),
        make_pair("b", noise(2), split="train"),
        make_pair("c", noise(1), split="validation"),
        make_pair("d", noise(2).convert("RGBA"), split="train"),
    )
    assert report.exact_duplicates == [["a", "c"], ["b", "d"]]
    assert report.near_duplicates == []
    assert report.leaking == 1


def test_same_bytes_of_another_shape_are_no_duplicate():
    plain = Image.new("RGB", (8, 18), "red")
    report, _ = inspected(make_pair("a", plain), make_pair("b", Image.new("RGB", (18, 8), "red")))
    assert report.exact_duplicates == []


def test_a_rescaled_recompressed_copy_is_a_near_duplicate(tmp_path):
    noise(1, (160, 120)).save(tmp_path / "a.jpg", quality=70)
    copy = Image.open(tmp_path / "a.jpg").resize((97, 71), Image.Resampling.LANCZOS)
    report, _ = inspected(
        *(make_pair(f"other {seed}", noise(seed, (160, 120))) for seed in range(2, 12)),
        make_pair("first", noise(1, (160, 120)), split="train"),
        make_pair("copy", copy, split="validation"),
    )
    assert report.exact_duplicates == []
    assert report.near_duplicates == [["first", "copy"]]
    assert report.leaking == 1


def face(colour, start, stop):
    image = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((4, 4, 124, 124), colour)
    pen.arc((40, 60, 88, 100), start, stop, "black", 9)
    return image


def test_another_colour_or_expression_is_no_duplicate():
    report, _ = inspected(
        make_pair("smile", face("gold", 0, 180)),
        make_pair("frown", face("gold", 180, 360)),
        make_pair("red", face("red", 0, 180)),
    )
    assert report.near_duplicates == []


@pytest.mark.parametrize("rows", [3, 7, 1024])
def test_near_duplicates_in_chunks_equal_comparing_each_with_each(rows):
    limit = duplicates.MAX_STEP_DIFFERENCES
    rng = np.random.default_rng(5)
    steps = np.repeat(rng.random((6, 8, 8)) < 0.5, 4, axis=0)
    thumbs = np.full((24, 16, 16, 3), 100, np.uint8)
    for number in range(24):
        steps[number].flat[rng.choice(64, number % 4, replace=False)] ^= True
    thumbs[20:] = rng.integers(0, 256, (4, 16, 16, 3))
    expected = []
    for first in range(0, 20, 4):
        group, changed = [first], True
        while changed:
            near = [
                other
                for other in range(24)
                if other not in group
                and any((steps[other] != steps[one]).sum() <= limit and other < 20 for one in group)
            ]
            changed = bool(near)
            group += near
        expected.append(sorted(group))
    assert near_duplicate_groups(steps, thumbs, rows) == [group for group in expected if len(group) > 1]


def test_search_for_near_duplicates_is_bounded_and_reported(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 3)
    report, _ = inspected(*(make_pair(str(seed), noise(seed)) for seed in range(5)))
    assert report.compared == 3
    assert "only the first 3 different pictures" in report_text(report)


def test_search_for_same_pixels_is_bounded_and_reported(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_DIFFERENT", 3)
    report, _ = inspected(*(make_pair(str(number), noise(seed)) for number, seed in enumerate([1, 2, 3, 4, 1, 4, 2])))
    assert report.exact_duplicates == [["0", "4"], ["1", "6"]]
    assert (report.exact_repeats, report.different, report.forgotten) == (2, 3, 2)
    assert "same pixels were searched among the first 3 different pictures" in report_text(report)


def test_keys_of_equal_pictures_beyond_a_limit_are_counted_only(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_KEYS", 3)
    report, _ = inspected(*(make_pair(str(number), noise(number % 2)) for number in range(8)))
    assert report.exact_duplicates == [["0", "2"], ["1"]]
    assert report.exact_repeats == 6
    assert "same pixels            repeats: 6, groups: 2" in report_text(report)


def test_what_is_held_does_not_grow_with_the_number_of_pictures(monkeypatch):
    for name in ("MAX_DIFFERENT", "MAX_COMPARED", "MAX_KEYS"):
        monkeypatch.setattr(duplicates, name, 10)
    inspection = Inspection(5, (8, 8), "auto")

    def size_after(first, last):
        for number in range(first, last):
            inspection.add(make_pair(f"key {number}", noise(number % 60, (9, 7)), f"caption {number:05}"))
        return len(pickle.dumps(inspection))

    before = size_after(0, 140)
    assert size_after(140, 300) - before < 100


# --- several processes


def sorted_lists(report):
    """A report in which nothing depends on the order of the pictures."""
    values = asdict(report)
    for name in ("exact_duplicates", "near_duplicates"):
        values[name] = sorted(sorted(group) for group in values[name])
    return values


def test_merged_parts_equal_the_whole():
    pairs = [
        make_pair(f"key {n}", noise(n % 9, (20 + n % 7, 30)), f"caption {n}", *["другая"] * (n % 3)) for n in range(23)
    ]
    whole = Inspection(5, (32, 48), "crop")
    parts = [Inspection(5, (32, 48), "crop") for _ in range(3)]
    for number, pair in enumerate(pairs):
        whole.add(pair)
        parts[number % 3].add(pair)
    merged = Inspection(5, (32, 48), "crop")
    for part in parts:
        merged.merge(part)
    assert sorted_lists(merged.report()) == sorted_lists(whole.report())
    shown = [[(text, image.tobytes()) for text, image in one.shown()] for one in (merged, whole)]
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_two_processes_report_the_same(folder):
    reports = []
    for processes in (1, 2):
        log = SkipLog()
        inspection = inspect_source(str(folder), log, Inspection(48, (64, 64), "auto"), processes)
        reports.append((sorted_lists(inspection.report()), log.entries, [text for text, _ in inspection.shown()]))
    assert reports[0] == reports[1]
    assert reports[0][0]["pictures"] == 8


# --- the sample


def test_sample_depends_on_the_keys_alone():
    pairs = [make_pair(f"key {number}", noise(number), f"caption {number}") for number in range(23)]
    _, shown = inspected(*pairs, sample=5)
    random.Random(3).shuffle(pairs)
    _, reordered = inspected(*pairs, sample=5)
    assert [text for text, _ in shown] == [text for text, _ in reordered]
    assert len({text for text, _ in shown}) == 5
    _, more = inspected(*pairs, sample=7)
    assert [text for text, _ in more][:5] == [text for text, _ in shown]


def test_sample_shows_what_the_model_sees():
    picture = Image.new("RGBA", (300, 60))
    picture.paste(noise(5, (60, 60)), (20, 0))
    for fit in ("auto", "pad", "crop", "stretch"):
        for frame in ((64, 64), (24, 40)):
            _, [(_, shown)] = inspect_pairs([make_pair("a", picture)], frame=frame, fit=fit)
            stored = fit_picture(picture, DataConfig().frame_for(frame), fit).image
            (seen,) = to_images(pixels_on_white(np.array(stored)[None], frame))
            factor = 128 // max(frame)
            assert shown.size == (factor * frame[1], factor * frame[0])
            assert np.array_equal(np.asarray(shown)[::factor, ::factor], np.asarray(seen))


# --- how pictures are fitted


def wide_pictures(number, size=(90, 30)):
    return [make_pair(f"photo {n}", noise(n, size)) for n in range(number)]


def test_report_counts_what_is_lost():
    cut_out = Image.new("RGBA", (90, 30))
    cut_out.paste((250, 0, 0, 255), (0, 0, 90, 25))
    pairs = [make_pair("drawing", cut_out), *wide_pictures(2), make_pair("square", noise(9, (40, 40)))]
    report, _ = inspect_pairs(pairs)
    assert (report.fitted, report.lost_tenth, report.lost_half) == ({"padded": 1, "cropped": 2, "whole": 1}, 2, 2)
    assert "fit auto to 64×64" in report_text(report)
    assert "1 whole, 1 padded, 2 cropped; over a tenth of what is drawn was cut off from 2" in report_text(report)
    cropped, _ = inspect_pairs(pairs, fit="crop")
    assert (cropped.fitted, cropped.lost_tenth) == ({"cropped": 3, "whole": 1}, 3)
    assert "suggestion: data.fit=auto would cut nothing off from 1 of these pictures" in report_text(cropped)


def test_proportions_that_most_pictures_have_are_suggested():
    suggestion = "model.image_size=0 model.height=32 model.width=96 would fit them better"
    report, _ = inspect_pairs(wide_pictures(5))
    assert report.suggestions == [f"5 of 5 pictures have a width : height near 3; {suggestion}"]
    assert inspect_pairs(wide_pictures(5), frame=(32, 96))[0].suggestions == []
    assert inspect_pairs(wide_pictures(5, (40, 40)))[0].suggestions == []
    mixed = [make_pair(str(n), noise(n, size)) for n, size in enumerate([(90, 30), (30, 90), (40, 40), (60, 30)])]
    assert inspect_pairs(mixed)[0].suggestions == []


# --- the command


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        noise(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"caption {number}\nпара {number}", encoding="utf-8")
    (tmp_path / "zero.png").touch()
    (tmp_path / "zero.txt").write_text("nothing")
    noise(3).save(tmp_path / "copy.png")
    (tmp_path / "copy.txt").write_text("a copy")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(data, ["inspect", *map(str, arguments)])


def test_inspect_prints_the_report_and_ends_with_the_sheet(folder):
    sheet = folder / "deep" / "sheet.png"
    result = run(folder, "--sheet", sheet)
    assert result.exit_code == 0
    for expected in (
        "pictures               8 (0 with transparency)",
        "captions               15",
        "53 / 53 / 53 px",
        "Latin 65.9%, Cyrillic 34.1%",
        "same pixels            repeats: 1, groups: 1",
        "  3 = copy",
        "skipped 1: 1 empty file",
        "zero.png: empty file: zero bytes",
    ):
        assert expected in result.stdout
    assert result.stdout.splitlines()[-1] == str(sheet)
    with Image.open(sheet) as image:
        assert image.width >= 3 * 53
        assert image.height >= 3 * 41


def test_inspect_prints_json(folder):
    sheet = folder / "sheet.PNG"
    result = run(folder, "--json", "--sheet", sheet)
    report = json.loads(result.stdout)
    assert (report["pictures"], report["captions"]) == (8, 15)
    assert report["exact_duplicates"] == [["3", "copy"]]
    assert report["width"] == {"smallest": 53, "median": 53, "largest": 53}
    assert [entry["reason"] for entry in report["skipped"]] == ["empty file: zero bytes"]
    assert report["sheet"] == str(sheet)
    assert sheet.is_file()


def test_inspect_fits_as_asked(folder):
    result = run(folder, "--sheet", folder / "sheet.png", "--fit", "stretch", "--size", "32x48", "--json")
    report = json.loads(result.stdout)
    assert (report["fit"], report["frame"], report["fitted"]) == ("stretch", [32, 48], {"stretched": 8})
    with Image.open(folder / "sheet.png") as image:
        assert image.width == 3 * (96 + 4) + 4
    for size in ("0", "-3", "12x", "1x2x3", "100000"):
        assert run(folder, "--size", size).exit_code == 2
    assert run(folder, "--fit", "zoom").exit_code == 2


def test_inspect_refuses_a_missing_source_in_one_line(tmp_path):
    result = run(tmp_path / "nowhere")
    assert result.exit_code != 0
    assert isinstance(result.exception, UserError)
    assert "\n" not in str(result.exception)


def test_inspect_of_an_unusable_source_lists_the_reasons(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text("red")
    result = run(tmp_path, "--sheet", tmp_path / "sheet.png")
    assert isinstance(result.exception, UserError)
    assert "no usable picture" in str(result.exception)
    assert "empty file" in result.stderr
    assert not (tmp_path / "sheet.png").exists()


def test_inspect_refuses_an_unwritable_sheet(folder):
    result = run(folder, "--sheet", folder / "0.png" / "sheet.png")
    assert isinstance(result.exception, UserError)


def test_bad_input_ends_with_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dalle", "data", "inspect", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
