"""The set of captioned drawings of a collection: titles, choice, and files."""

import json

import numpy as np
import pytest
from helpers.sources import read, texts
from PIL import Image

from dalle_mini_impl.data.openclipart import Drawing, captioned, plain_words, read_description
from dalle_mini_impl.util.files import file_digest

SHAPES = ('<circle cx="{x}" cy="20" r="15" fill="{c}"/>', '<rect x="{x}" width="20" height="30" fill="{c}"/>')
METADATA = (
    '<metadata><cc:Work xmlns:cc="c" xmlns:dc="d" xmlns:rdf="r"><dc:title>{title}</dc:title>'
    "<dc:subject><rdf:Bag><rdf:li>{keyword}</rdf:li></rdf:Bag></dc:subject>"
    "<dc:creator><cc:Agent><dc:title>A. Painter</dc:title></cc:Agent></dc:creator></cc:Work></metadata>"
)


def put_drawing(folder, name, title="", keyword="", shape="<circle r='9'/>", attributes=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = METADATA.format(title=title, keyword=keyword)
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="80" {attributes}>'
    path.write_text(f"{start}{metadata}{shape}<rect x='30' y='30' width='20' height='9'/></svg>")
    return path


@pytest.fixture
def collection(tmp_path):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "svg"
    for number, (title, colour) in enumerate(
        [("Fire_Truck 02", "red"), ("blue fish", "blue"), ("Blue Fish", "lime"), ("blue fish 3", "gray")]
    ):
        shape = SHAPES[number % 2].format(x=20 + 9 * number, c=colour)
        put_drawing(folder, f"animals/deep{number // 2}/{number}.svg", title, title, shape)
    put_drawing(folder, "food/copy.svg", "red truck", "red truck", SHAPES[0].format(x=20, c="red"))  # as the fire truck
    put_drawing(folder, "food/empty.svg", "empty plate", "empty plate", "<g/>", 'viewBox="900 900 9 9"')
    (folder / "food/broken.svg").write_text(METADATA.format(title="broken plate", keyword="broken plate"))
    put_drawing(folder, "logos/a.svg", "logo", "logo")
    return folder


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Fire_Truck-02 (B and W)", "fire truck"),
        ("BlueMan#108", "blue man"),
        ("Rubik's Cube", "rubik's cube"),
        ("steak-v0.1", ""),
        ("Café", ""),
        ("  a  hat. ", "a hat"),
        ("???", ""),
    ],
)
def test_titles_become_plain_words(title, words):
    assert plain_words(title) == words


def test_captions_are_titles_in_words_that_the_collection_knows():
    series = [Drawing(f"food/{name}_01.svg", "R16 set", "", ()) for name in ("pear", "plum", "lime", "nut", "xyzzy")]
    drawings = [
        Drawing("animals/a.svg", "Red Fish", "", ("red", "fish", "pear", "plum tree", "lime", "nut")),
        Drawing("animals/b.svg", "Leone", "", ()),
        Drawing("animals/c.svg", "Qwertz", "", ()),
        Drawing("animals/d_bw.svg", "fish", "", ()),
        Drawing("computer/icons/e.svg", "fish", "", ()),
        Drawing("logos/f.svg", "fish", "", ()),
        Drawing("animals/g.svg", "red fish of red fish of red", "", ()),
        Drawing("animals/nut.svg", "", "", ()),
    ]
    captions = {drawing.name: caption for drawing, caption in captioned([*series, *drawings])}
    assert captions == {
        "food/pear_01.svg": "pear", "food/plum_01.svg": "plum", "food/lime_01.svg": "lime", "food/nut_01.svg": "nut",
        "animals/a.svg": "red fish", "animals/b.svg": "lion", "animals/nut.svg": "nut",
    }  # fmt: skip


def test_description_of_a_drawing_is_read(tmp_path):
    path = put_drawing(tmp_path, "food/a.svg", "Pear", "fruit")
    assert read_description(tmp_path, path) == Drawing("food/a.svg", "Pear", "A. Painter", ("fruit",))
    (tmp_path / "b.svg").write_bytes(b"\xff<svg/>")
    assert read_description(tmp_path, tmp_path / "b.svg") == Drawing("b.svg", "", "", ())


def test_set_is_a_folder_of_captioned_pictures_that_follows_from_the_collection(collection, tmp_path, run):
    out = tmp_path / "set"
    output = run("data", "openclipart", "--svg", collection, "--out", out, "--count", 9)
    assert "3 pictures, 2 different captions, public domain" in output
    assert "9 were asked" in output
    pairs, log = read(out)
    assert sorted(text for pair in pairs for text in texts(pair)) == ["blue fish", "blue fish", "fire truck"]
    assert not log.entries
    manifest = json.loads((out / "openclipart.json").read_text())
    assert {entry["author"] for entry in manifest["pictures"].values()} == {"A. Painter"}
    assert "public domain" in (out / "NOTICE").read_text()
    for name in manifest["pictures"]:
        picture = Image.open(out / name)
        assert picture.mode == "RGBA"
        alpha = np.asarray(picture.getchannel("A"))
        assert alpha[[0, -1]].max() == 0  # a margin
        assert alpha[10:-10].max() == 255
        assert max(picture.size) == 256
        assert picture.width != picture.height
    files = sorted(path for path in out.rglob("*") if path.is_file())
    first = [file_digest(path) for path in files]
    run("data", "openclipart", "--svg", collection, "--out", out, "--count", 9)
    assert [file_digest(path) for path in files] == first
    assert "2 pictures" in run("data", "openclipart", "--svg", collection, "--out", out, "--count", 2)


def test_missing_collection_is_refused_with_the_name_of_its_package(tmp_path, run, collection):
    message = run("data", "openclipart", "--svg", tmp_path / "none", "--out", tmp_path / "set", code=2)
    assert "apt-get install openclipart-svg" in message
    (tmp_path / "other").mkdir()
    message = run("data", "openclipart", "--svg", tmp_path / "other", "--out", tmp_path / "set", code=2)
    assert "no drawing with a title" in message
    assert not (tmp_path / "set").exists()


def test_folder_with_other_files_is_not_replaced(tmp_path, run, collection):
    run("data", "openclipart", "--svg", collection, "--out", tmp_path / "set", "--count", 2)
    (tmp_path / "set/mine.png").write_bytes(b"x")
    assert "mine.png" in run("data", "openclipart", "--svg", collection, "--out", tmp_path / "set", code=2)


def test_missing_library_is_named(tmp_path, run, without_svg, monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.data.openclipart.svg_installed", lambda: False)
    assert "pip install resvg-py" in run("data", "openclipart", "--out", tmp_path / "set", code=2)
