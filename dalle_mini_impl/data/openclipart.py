"""Builds a set of captioned drawings from Debian's package `openclipart-svg`, clip art in the public domain.

The collection was drawn by many people: titles are in several languages, name series or authors, or are missing. A
caption is the title, or the file's name where many drawings share a title, in plain words. It is used if a keyword of
the collection explains each of its words, or if `openclipart.txt`, beside this file, has it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.data.pair import hash_position
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder, write_json
from dalle_mini_impl.util.images import on_background
from dalle_mini_impl.util.svg import draw_svg, need_svg, svg_installed

FOLDER = Path("/usr/share/openclipart/svg")
"""Where the Debian package puts the drawings."""
COUNT = 1000
"""Default number of pictures."""
SIDE = 256
"""Longer side of the pictures in pixels."""
TOPICS = (
    "animals", "buildings", "buttons", "computer", "containers", "decorations", "education", "electronics", "food",
    "office", "people", "plants", "recreation", "science", "shapes", "signs_and_symbols", "tools", "transportation",
    "unsorted",
)  # fmt: skip
"""Folders of the collection, which are those of the set, too."""
CONTENTS = ("openclipart.json", "NOTICE", *TOPICS)
"""What a set's folder holds; the first name marks it."""
MAX_BYTES = 400_000
"""Larger drawings are left out: they take long to draw."""
SAME_CAPTION = 2
"""Most drawings of one caption."""
SERIES_SHARE = 0.04
"""Largest share of the set that comes from one folder of the collection, so that no series fills it."""
SERIES_TITLES = 5
"""A title that so many drawings share names a series, and the file's name says more."""
MIN_INK = 0.04
"""Smallest share of a picture that must be drawn."""
MIN_ALPHA = 8
"""Opacity, of 255, above which a pixel counts as drawn."""
MIN_CONTRAST = 8.0
"""Smallest standard deviation, of values 0 to 255, of the colours of a picture; below it all is one colour."""
MIN_DIFFERENCE = 14.0
"""Smallest root mean square difference, of values 0 to 255 in pictures of 16 x 16, between two pictures of the set."""
LEFT_OUT = (
    "shapes/stars", "shapes/jigsaw", "shapes/flowchart", "shapes/callouts", "computer/icons",
    "computer/buttons", "signs_and_symbols/flags", "signs_and_symbols/led", "signs_and_symbols/map_symbols",
    "signs_and_symbols/clocks", "unsorted/duplicates", "recreation/games/cards/white",
    "recreation/games/cards/simple", "recreation/games/cards/bordered", "recreation/games/cards/ornamental",
    "recreation/games/cards/cardbacks", "transportation/aiga-symbols", "transportation/roadsigns",
    "people/clothing/pantyhose", "people/stickmen",
)  # fmt: skip
"""Folders of series in which all drawings look alike, of signs and of icons of programs."""
COPIES = ("_bw", "_mateya_")
"""Parts of the names of drawings that repeat another one without its colours, or as an icon with a bar code."""
SMALL_WORDS = frozenset(["a", "an", "and", "at", "for", "from", "in", "of", "on", "the", "to", "with"])
NOTICE = """The pictures in this folder are drawings of the Open Clip Art Library (http://www.openclipart.org), as
Debian's package openclipart-svg has them. Their authors dedicated them to the public domain (Creative Commons Public
Domain Dedication). openclipart.json names the drawing and the author of each picture.
"""


@dataclass(frozen=True)
class Drawing:
    """One drawing of the collection with its description."""

    name: str
    """Path below the collection's folder."""
    title: str
    author: str
    keywords: tuple[str, ...]


def build_openclipart(out: Path, count: int = COUNT, folder: Path = FOLDER) -> dict[str, Any]:
    """Choose, draw and caption drawings: PNG files with transparency in nested folders, a `.txt` beside each.

    The same collection gives the same set: drawings are taken in an order that follows from their names.

    Args:
        out: folder to write; an older set there is replaced once the new one is complete.
        count: number of pictures; fewer if the collection has too few that fit.
        folder: of the collection.

    Returns:
        The manifest, also written as `openclipart.json`: source, licence and each picture's drawing and author.

    Raises:
        UserError: the collection or the `svg` extra is missing.
    """
    if not svg_installed():
        raise need_svg()
    if not folder.is_dir():
        raise UserError(
            f"expected the drawings of openclipart-svg in {folder}, which is missing; "
            "run: apt-get install openclipart-svg, or name their folder with --svg"
        )
    drawings = [read_description(folder, path) for path in sorted(folder.rglob("*.svg"))]
    candidates = sorted(captioned(drawings), key=lambda pair: hash_position(pair[0].name))
    if not candidates:
        raise UserError(f"{folder} has no drawing with a title that can be used; name the folder of openclipart-svg")
    with replace_folder(out, CONTENTS) as temporary:
        entries = _write_pictures(folder, temporary, candidates, count)
        (temporary / "NOTICE").write_text(NOTICE, encoding="utf-8")
        manifest = {"name": "openclipart", "licence": "public domain", "source": "openclipart-svg", "pictures": entries}
        write_json(temporary / CONTENTS[0], manifest)
    return manifest


def read_description(folder: Path, path: Path) -> Drawing:
    """Read a drawing's title, author and keywords; empty where it has none."""
    with path.open("rb") as file:
        text = file.read(2 * MAX_BYTES).decode("utf-8", "replace")
    match = re.search(r"<cc:Work[^>]*>(.*?)</cc:Work>", text, re.DOTALL)
    work = match[1] if match else ""
    title = re.search(r"<dc:title>([^<]*)</dc:title>", work)
    author = re.search(r"<dc:creator>.*?<dc:title>([^<]*)</dc:title>", work, re.DOTALL)
    return Drawing(
        path.relative_to(folder).as_posix(),
        title[1].strip() if title else "",
        author[1].strip() if author else "",
        tuple(re.findall(r"<rdf:li>([^<]+)</rdf:li>", work)),
    )


def captioned(drawings: list[Drawing]) -> Iterator[tuple[Drawing, str]]:
    """Yield each drawing that can be used, with its caption."""
    counts = Counter(drawing.title for drawing in drawings)
    known = {word for drawing in drawings for keyword in drawing.keywords for word in _words(keyword)} | SMALL_WORDS
    table = _table()
    for drawing in drawings:
        title = drawing.title
        is_copy = any(part in drawing.name for part in COPIES) or "(B and W)" in title or "Road Signs" in title
        is_topic = drawing.name.partition("/")[0] in TOPICS
        if is_copy or not is_topic or drawing.name.startswith(tuple(f"{name}/" for name in LEFT_OUT)):
            continue
        is_series = counts[title] >= SERIES_TITLES or title.lower().startswith("clipart by")
        caption = plain_words(Path(drawing.name).stem if is_series or not title else title)
        is_known = bool(caption) and all(word in known for word in caption.split())
        caption = table.get(caption, caption if is_known and len(caption.split()) <= 4 else "")
        if caption:
            yield drawing, caption


def plain_words(title: str) -> str:
    """A title in lower case without marks, numbers and remarks in parentheses; empty if it is not in English letters.

    >>> plain_words("Fire_Truck-02 (B and W)")
    'fire truck'
    """
    title = re.sub(r"\(.*?\)", " ", title)
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title)
    title = re.sub(r"[_\-/]+", " ", title)
    title = re.sub(r"#?\s*\d+\s*$|#\s*\d+", "", title.strip())
    title = " ".join(title.split()).strip(" .,:;!?-'\"").lower()
    return title if re.fullmatch(r"[a-z' ]+", title) else ""


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _table() -> dict[str, str]:
    """Title -> caption, which is empty for drawings to be left out."""
    table = {}
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            title, mark, caption = line.partition(" =")
            table[title] = caption.strip() if mark else title
    return table


def _write_pictures(
    folder: Path, out: Path, candidates: list[tuple[Drawing, str]], count: int
) -> dict[str, dict[str, str]]:
    """Write the pictures and their captions; returns name -> drawing, author and caption."""
    entries: dict[str, dict[str, str]] = {}
    used: Counter[str] = Counter()
    of_folder: Counter[str] = Counter()
    small = np.empty((0, 16 * 16 * 3), np.float32)
    progress = tqdm(total=count, desc="drawing", unit=" pictures", delay=2)
    for drawing, caption in candidates:
        place = Path(drawing.name).parent.as_posix()
        if used[caption] == SAME_CAPTION or of_folder[place] >= max(2, count * SERIES_SHARE):
            continue
        picture = _draw(folder / drawing.name)
        if picture is None:
            continue
        tiny = np.asarray(on_background(_square(picture)).resize((16, 16), Image.Resampling.BOX), np.float32).reshape(
            -1
        )
        if len(small) and np.sqrt(((small - tiny) ** 2).mean(1)).min() < MIN_DIFFERENCE:
            continue
        small = np.concatenate((small, tiny[None]))
        used[caption] += 1
        of_folder[place] += 1
        stem = caption.replace(" ", "-").replace("'", "") + (f"-{used[caption]}" if used[caption] > 1 else "")
        (out / place).mkdir(parents=True, exist_ok=True)
        picture.save(out / place / f"{stem}.png")
        (out / place / f"{stem}.txt").write_text(f"{caption}\n", encoding="utf-8")
        entries[f"{place}/{stem}.png"] = {"caption": caption, "drawing": drawing.name, "author": drawing.author}
        progress.update()
        if len(entries) == count:
            break
    progress.close()
    return dict(sorted(entries.items()))


def _draw(path: Path) -> Image.Image | None:
    """A drawing without the empty space around it, or None where it is too large, empty or cannot be drawn."""
    if path.stat().st_size > MAX_BYTES:
        return None
    data = path.read_bytes()
    try:
        picture = draw_svg(data, 2 * SIDE)
        box = _drawn_box(picture)
        if box is not None and SIDE / 4 < _longer(box) < SIDE:  # small on its page
            picture = draw_svg(data, math.ceil(2 * SIDE * SIDE / _longer(box)))
            box = _drawn_box(picture)
    except ValueError:
        return None
    if box is None or _longer(box) < SIDE or _longer(box) > 5 * min(box[2] - box[0], box[3] - box[1]):
        return None
    alpha = np.asarray(picture.getchannel("A"))
    colours = np.asarray(on_background(picture).crop(box).resize((16, 16), Image.Resampling.BOX), np.float32)
    if (alpha > MIN_ALPHA).mean() < MIN_INK or colours.std((0, 1)).max() < MIN_CONTRAST:
        return None
    margin = _longer(box) // 32
    picture = picture.crop((box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _drawn_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    return picture.getchannel("A").point(lambda value: 255 * (value > MIN_ALPHA)).getbbox()


def _longer(box: tuple[int, int, int, int]) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _square(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a transparent square."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
