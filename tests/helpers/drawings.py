"""A small set of drawings by several vendors, whose concepts differ in colour and whose vendors differ in shade."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

VENDORS = {"noto": 0.7, "twemoji": 0.9, "openmoji": 1.0}
CONCEPTS = {
    "red heart": (230, 20, 30), "green apple": (30, 200, 40), "yellow star": (240, 220, 30), "house": (120, 70, 20),
    "tree": (10, 90, 30), "sea": (20, 60, 230), "rose": (250, 120, 180),
}  # fmt: skip
HELD_OUT = ("red heart", "house", "rose")
"""Concepts whose drawings by openmoji are held out."""
GERMAN = {"red heart": "rotes Herz", "house": "Haus", "sea": "Meer", "tree": "Baum"}


def make_drawing(colour, shade):
    """A disc on a transparent background."""
    rgba = np.zeros((24, 24, 4), np.uint8)
    rows, columns = np.mgrid[:24, :24]
    rgba[(rows - 11) ** 2 + (columns - 12) ** 2 < 100] = [*(int(value * shade) for value in colour), 255]
    return Image.fromarray(rgba)


def drawing_on_white(concept, vendor):
    """What a model that draws a concept rightly returns."""
    drawing = make_drawing(CONCEPTS[concept], VENDORS[vendor])
    return Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")


def write_drawings(folder: Path) -> str:
    """Write seven concepts by three vendors, of which three are held out, and a flag by one vendor; return the list."""
    lines = []
    for name, colour in CONCEPTS.items():
        for vendor, shade in VENDORS.items():
            make_drawing(colour, shade).save(folder / f"{vendor}-{name}.png")
            texts = [{"text": name, "language": "en"}, {"text": f"{name}, {vendor}", "language": "en"}]
            if name in GERMAN:
                texts.append({"text": GERMAN[name], "language": "de"})
            held_out = vendor == "openmoji" and name in HELD_OUT
            lines.append(
                {
                    "path": f"{vendor}-{name}.png",
                    "captions": texts,
                    "split": "validation" if held_out else "train",
                    "concept": name,
                    "vendor": vendor,
                    "kind": "plain",
                }
            )
    Image.new("RGB", (24, 24), (200, 30, 200)).save(folder / "flag.png")
    lines.append(
        {
            "path": "flag.png",
            "caption": "flag",
            "language": "en",
            "split": "train",
            "concept": "flag",
            "vendor": "noto",
            "kind": "flag",
        }
    )
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)
