"""Drawings: their pixels, and hostile ones, which must neither crash, hang, nor read other files."""

import base64
import gzip
import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from dalle_mini_impl.util import svg_process
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.svg import MAX_SVG_BYTES, draw_svg, is_svg

pytest.importorskip("resvg_py")

START = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
RED = '<rect width="50" height="100" fill="red"/>'
SQUARE = START + 'width="100" height="100">'


def drawn(svg, side=64):
    return draw_svg(svg.encode(), side)


def is_empty(picture):
    return picture.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ('width="100" height="200"', (32, 64)),
        ('width="200" height="100"', (64, 32)),
        ('width="20cm" height="10cm"', (64, 32)),
        ('viewBox="0 0 10 20"', (32, 64)),
        ('width="1" height="200000"', (1, 64)),
        ('width="100000" height="200000"', (32, 64)),
    ],
)
def test_proportions_are_kept_and_the_longer_side_is_as_asked(attributes, size):
    assert drawn(f"{START}{attributes}>{RED}</svg>").size == size


def test_transparency_is_kept():
    picture = drawn(SQUARE + RED + "</svg>")
    assert picture.mode == "RGBA"
    assert picture.getpixel((10, 10)) == (255, 0, 0, 255)
    assert picture.getpixel((50, 10)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "encode",
    [
        str.encode,
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: gzip.compress(text.encode()),
        lambda text: b"<?xml version='1.0' encoding='latin-1'?><!-- \xe9 -->" + text.encode(),
        lambda text: text.replace("<", "<s:").replace("<s:/", "</s:").replace("xmlns=", "xmlns:s=").encode(),
    ],
)
def test_drawings_of_every_encoding_are_recognised_and_drawn(encode):
    data = encode(SQUARE + RED + "</svg>")
    assert is_svg(data[:300])
    assert draw_svg(data, 64).getpixel((10, 10)) == (255, 0, 0, 255)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"<html><body/></html>", b"\x1f\x8b", b"svg", b"<svgx>", gzip.compress(b"x")]
)
def test_other_files_are_no_drawings(data):
    assert not is_svg(data)


# --- hostile drawings


def names_of_a_file(tmp_path):
    """References to a red picture, in every way that a drawing could name it."""
    red = tmp_path / "red.png"
    Image.new("RGB", (9, 9), "red").save(red)
    (tmp_path / "red.svg").write_text(SQUARE + RED + "</svg>")
    inner = f'{SQUARE}<image width="100" height="100" href="{red}"/></svg>'
    names = [str(red), f" {red}", red.as_uri(), "red.png", f"file://{red}", str(tmp_path / "red.svg")]
    names += ["http://localhost:9/red.png", "data:image/svg+xml;base64," + base64.b64encode(inner.encode()).decode()]
    for name in names:
        for attribute in ("href", "xlink:href"):
            yield f'{SQUARE}<image width="100" height="100" {attribute}="{name}"/></svg>'
    yield f'<!DOCTYPE svg [<!ENTITY f "{red}">]>{SQUARE}<image width="100" height="100" href="&f;"/></svg>'
    yield f'{SQUARE}<filter id="f"><feImage href="{red}"/></filter><rect width="9" height="9" filter="url(#f)"/></svg>'
    yield f'{SQUARE}<use href="{tmp_path / "red.svg"}#a"/></svg>'


def test_other_files_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for svg in names_of_a_file(tmp_path):
        assert is_empty(drawn(svg)), svg
    inside = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    picture = drawn(f'{SQUARE}<image width="100" height="100" href="data:image/png;base64,{inside}"/></svg>')
    assert picture.getpixel((30, 30)) == (255, 0, 0, 255)


def png_bomb(side):
    """A black picture of `side` x `side` pixels, compressed in no time: all of it is the same block again and again."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    blocks, rest = divmod(side * (3 * side + 1), 1 << 20)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    rows = block * blocks + squeeze.compress(bytes(rest)) + squeeze.flush()
    adler = (side * (3 * side + 1) % 65521) << 16 | 1
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x78\xda" + rows + struct.pack(">I", adler)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_drawings_that_cannot_be_drawn_are_refused_and_others_still_drawn():
    deep = "<g>" * 100_000 + RED + "</g>" * 100_000
    groups = '<g opacity=".5">' * 250 + RED + "</g>" * 250
    chain = "".join(f'<g id="a{i + 1}" opacity=".9"><use href="#a{i}"/></g>' for i in range(3000))
    doubling = "".join(f'<g id="a{i + 1}">' + f'<use href="#a{i}"/>' * 10 + "</g>" for i in range(9))
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    bomb = base64.b64encode(png_bomb(30_000)).decode()
    assert not is_empty(drawn(f"{SQUARE}{groups.replace('.5', '.999')}</svg>"))
    for svg in (
        f"{SQUARE}{deep}</svg>",
        f'{SQUARE}<defs><g id="a0">{RED}</g>{chain}</defs><use href="#a3000"/></svg>',
        f'{SQUARE}<defs><g id="a0">{RED}</g>{doubling}</defs><use href="#a9"/></svg>',
        f'<!DOCTYPE svg [<!ENTITY e0 "aaaaaaaaaa">{entities}]>{SQUARE}<text>&e12;</text></svg>',
        f'<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]>{SQUARE}<text>&e;</text></svg>',
        f'{SQUARE}<image width="100" height="100" href="data:image/png;base64,{bomb}"/></svg>',
        SQUARE,
        "<html/>",
        f'{START}width="-5" height="0"></svg>',
        SQUARE + " " * MAX_SVG_BYTES + "</svg>",
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            drawn(svg)
        assert drawn(SQUARE + RED + "</svg>").getpixel((10, 10)) == (255, 0, 0, 255)
    with pytest.raises(ValueError, match="bytes"):
        draw_svg(gzip.compress(SQUARE.encode() + bytes(MAX_SVG_BYTES)))


def test_drawing_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.util.svg.MAX_SECONDS", 0.3)
    shape = RED.replace("/>", ' filter="url(#f)"/>')
    slow = '<feGaussianBlur stdDeviation="50"/><feTurbulence numOctaves="1000" baseFrequency="0.1"/>' * 200
    begin = time.monotonic()
    with pytest.raises(ValueError, match="takes more than"):
        drawn(f'{SQUARE}<filter id="f">{slow}</filter>{shape}</svg>', 512)
    assert time.monotonic() - begin < svg_process.MAX_CPU_SECONDS
    monkeypatch.undo()
    assert not is_empty(drawn(SQUARE + RED + "</svg>"))


def test_time_is_limited_where_the_parent_is_gone():
    child = os.fork()
    if child == 0:
        svg_process._limit_time(0.05)
        while True:
            pass
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def test_threads_and_forked_processes_draw_the_same():
    svgs = [f'{SQUARE}<rect width="{10 * n}" height="100"/></svg>' for n in range(1, 9)]
    expected = [np.asarray(drawn(svg)).tobytes() for svg in svgs]
    found = {}

    def draw(number):
        found[number] = np.asarray(drawn(svgs[number])).tobytes()

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [found[number] for number in range(8)] == expected
    child = os.fork()
    if child == 0:
        good = all(np.asarray(drawn(svg)).tobytes() == pixels for svg, pixels in zip(svgs, expected, strict=True))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.asarray(drawn(svgs[0])).tobytes() == expected[0]


def test_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("dalle_mini_impl.util.svg.svg_installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install resvg-py .*\[svg\]"):
        drawn(SQUARE + "</svg>")
