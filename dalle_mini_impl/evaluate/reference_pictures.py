"""The captioned art that generated pictures are measured against: what is drawn, by whom, in which words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import PictureEntry, PictureStore, open_store
from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.util.errors import UserError

CHUNK = 128


@dataclass(frozen=True, eq=False)
class ReferencePictures:
    """Every picture of a store, of both splits."""

    store: PictureStore
    size: int
    """Side in pixels at which the pictures are looked at: that of the model to be measured."""
    concepts: Tensor
    """(n,) int64, number of each picture's concept."""
    vendors: Tensor
    """(n,) int64, number of who drew it."""
    vendor_names: tuple[str, ...]

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """Pictures on white, (len(numbers), 3, size, size) in [-1, 1]."""
        return pixels_on_white(self.store.take(np.asarray(numbers)), self.size)

    def numbers(self, split: str, kinds: Sequence[str]) -> list[int]:
        """Pictures of one split and of some kinds, ordered by key, so that no order of storage matters."""
        entries = self.store.entries
        chosen = [n for n, e in enumerate(entries) if e.split == split and e.details.get("kind", "plain") in kinds]
        return sorted(chosen, key=lambda number: entries[number].key)


def open_reference_pictures(store: str | Path, size: int) -> ReferencePictures:
    """Open a store of which each picture tells its `concept` and `vendor`, as the emoji set's do.

    Raises:
        UserError: there is no such store, or a picture tells no concept or vendor.
    """
    if not (Path(store) / "store.json").is_file():
        raise UserError(f"{store} is no store of decoded pictures; training with data.store makes one")
    config = DataConfig(store=str(store))
    train, validation = open_store(config, "train"), open_store(config, "validation")
    numbers = np.concatenate([train.rows, validation.rows])
    entries = train.entries + validation.entries
    for entry in entries:
        if not {"concept", "vendor"} <= entry.details.keys():
            raise UserError(
                f"picture {entry.key} of {store} tells no concept and vendor; generation is measured "
                f"on the emoji set, which dalle data emoji builds"
            )
    concepts, _ = _number([entry.details["concept"] for entry in entries])
    vendors, names = _number([entry.details["vendor"] for entry in entries])
    return ReferencePictures(PictureStore(train.pixels, numbers, entries), size, concepts, vendors, names)


def build_banks(
    art: ReferencePictures, judges: Mapping[str, Judge], progress: Callable[[int], object] = lambda pictures: None
) -> dict[str, RPrecision]:
    """Show all art to every judge.

    Args:
        art: the pictures.
        judges: by name.
        progress: told how many pictures each step has seen.
    """
    embeds: dict[str, list[Tensor]] = {name: [] for name in judges}
    for chunk in torch.arange(len(art.store)).split(CHUNK):
        pixels = art.pixels(chunk.tolist())
        for name, judge in judges.items():
            embeds[name].append(judge(pixels))
        progress(len(chunk))
    return {
        name: build_r_precision(judge, torch.cat(embeds[name]), art.concepts, art.vendors)
        for name, judge in judges.items()
    }


def prompt_of(entry: PictureEntry, language: str = "en", styled: bool = True) -> str | None:
    """A picture's name as its captions have it, with or without the vendor's style word.

    The emoji set has each caption once without and then once with the style word, the bare name first.

    Returns:
        None where there is no caption in this language.
    """
    texts = [caption.text for caption in entry.captions if caption.language == language]
    if not texts:
        return None
    name = texts[0]
    with_style = (text for before, text in pairwise(texts) if before == name and text.startswith(f"{name}, "))
    return next(with_style, name) if styled else name


def _number(names: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    known = sorted(set(names))
    table = {name: number for number, name in enumerate(known)}
    return torch.tensor([table[name] for name in names]), tuple(known)
