"""The website: mkdocs builds it without a warning, its links lead somewhere, and it needs nothing from the network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
"""Elements that a browser loads by itself -> their attribute with the address."""
pytestmark = pytest.mark.slow


class Addresses(HTMLParser):
    """Addresses that a page loads, those that it links to, and the names of its anchors."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag in LOADED and values.get(LOADED[tag]) and values.get("rel") != "canonical":
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path of each page of the site -> its addresses."""
    pytest.importorskip("material", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {path: Addresses(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_document_has_a_page(pages):
    names = {path.stem for path in pages}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "CHANGELOG", "MODEL_CARD"} <= names


def test_no_page_loads_anything_from_elsewhere(pages):
    for path, page in pages.items():
        assert page.loaded
        assert not [address for address in page.loaded if urlsplit(address).netloc], path
    (site,) = (path.parent for path in pages if path.name == "404.html")
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_lead_to_pages_and_anchors(pages):
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path} links to {address}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{path} links to {address}"


def test_the_reference_shows_arguments_and_their_meaning(pages):
    (path,) = (path for path in pages if path.parts[-2:] == ("api", "drawing.html"))
    text = path.read_text(encoding="utf-8")
    for words in ("num_images_per_prompt", "how many pictures to return for each", "Raises:", "stream_previews"):
        assert words in text
