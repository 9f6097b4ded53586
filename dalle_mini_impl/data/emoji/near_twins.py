"""Finds pictures of the training set that are nearly held-out ones, which then are not held out.

Two vendors may draw the same design: Fluent 3D and Fluent flat often do, as do older and newer Noto.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini_impl.util.images import on_background

TWIN_DB = 20.0
"""Least peak signal-to-noise ratio, in dB, of two near twins."""
TWIN_SIZE = 64
"""Side in pixels at which pictures are compared, on white."""
UNUSED = "unused"
"""Split of a picture that is in the set but neither trained on nor held out."""


def psnr_on_white(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, at `TWIN_SIZE` on white; infinite for equal ones."""
    return _psnr(_small(first), _small(second))


def mark_near_twins(
    records: Sequence[dict[str, Any]],
    pictures: Mapping[tuple[str, str], Image.Image],
    *,
    leave_out: bool,
) -> dict[str, int]:
    """Mark near twins of the same emoji on both sides of the split, and take those of the training set out of it.

    Each of two twins gets the field `near_twins`, the names of the vendors of its twins, and each held-out picture
    gets `twin_free`: whether none of its twins is trained on. Where all training pictures of an emoji are twins of
    held-out ones, the first of them stays, so that no emoji is missing from training.

    Args:
        records: `emoji`, `vendor` and `split` of each picture; changed in place.
        pictures: (emoji, name of the vendor) -> picture.
        leave_out: whether training pictures with a held-out twin get the split `unused`.

    Returns:
        Counts: `pairs` of twins, `held_out` and `training` pictures that have one, `left_out` of the latter, and
        held-out pictures that are `twin_free`.
    """
    by_emoji: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_emoji[record["emoji"]].append(record)
    counts = {"pairs": 0, "held_out": 0, "training": 0, "left_out": 0}
    for emoji, group in by_emoji.items():
        held_out = [record for record in group if record["split"] == "validation"]
        training = [record for record in group if record["split"] == "train"]
        if not held_out or not training:
            continue
        small = {record["vendor"]: _small(pictures[emoji, record["vendor"]]) for record in group}
        twins: dict[str, list[str]] = defaultdict(list)
        for held in held_out:
            for other in training:
                if _psnr(small[held["vendor"]], small[other["vendor"]]) >= TWIN_DB:
                    twins[held["vendor"]].append(other["vendor"])
                    twins[other["vendor"]].append(held["vendor"])
                    counts["pairs"] += 1
        for record in held_out + training:
            if record["vendor"] in twins:
                record["near_twins"] = twins[record["vendor"]]
                counts["held_out" if record["split"] == "validation" else "training"] += 1
        if leave_out:
            removable = [record for record in training if record["vendor"] in twins]
            for record in removable[len(removable) == len(training) :]:
                record["split"] = UNUSED
                counts["left_out"] += 1
    for record in records:
        if record["split"] == "validation":
            splits = {other["vendor"]: other["split"] for other in by_emoji[record["emoji"]]}
            record["twin_free"] = "train" not in {splits[vendor] for vendor in record.get("near_twins", ())}
    counts["twin_free"] = sum(record.get("twin_free", False) for record in records)
    return counts


def _small(picture: Image.Image) -> np.ndarray:
    """A picture (TWIN_SIZE, TWIN_SIZE, 3) on white, as float values 0 to 255."""
    white = on_background(picture)
    return np.asarray(white.resize((TWIN_SIZE, TWIN_SIZE), Image.Resampling.BOX), dtype=np.float32)


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
