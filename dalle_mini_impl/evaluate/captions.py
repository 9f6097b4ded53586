"""Generative classification measured: the name of a held-out picture, found among all by log p(image | name)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.evaluate.intervals import TOP, Share, cell, markdown, share
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True)
class CaptionReport:
    """How often a picture's own name came first, and among the first five, by one way of choosing."""

    language: str
    way: str
    pictures: int
    names: int
    """Among which the right one was to be found."""
    shares: tuple[Share, ...]
    """Top-1 and top-5."""


@dataclass(frozen=True, eq=False)
class NamingTask:
    """Pictures, and the names among which theirs are to be found."""

    language: str
    names: list[str]
    rows: np.ndarray
    """(P,) of the pictures in their store."""
    true: Tensor
    """(P,) int64, number of each picture's name."""


def make_naming_task(store: PictureStore, language: str, count: int, seed: int) -> NamingTask:
    """Choose pictures at random; all names in the store, each picture's first caption in a language, are possible.

    Args:
        store: pictures, best ones the model has not been trained on.
        language: of the names; captions that tell no language count as of this one.
        count: pictures; all where there are fewer.
        seed: chooses them.

    Raises:
        UserError: no picture has a caption in this language.
    """
    rows = [row for row, entry in enumerate(store.entries) if {language, ""} & {one.language for one in entry.captions}]
    if not rows:
        known = sorted({one.language for entry in store.entries for one in entry.captions})
        raise UserError(f"no picture has a caption in {language!r}; there are {', '.join(known)}")
    own = {row: caption_in_language(store.entries[row].captions, language).text for row in rows}
    names = sorted(set(own.values()))
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    return NamingTask(language, names, chosen, torch.tensor([names.index(own[row]) for row in chosen.tolist()]))


def evaluate_captions(
    dalle: DalleMini, store: PictureStore, quiz: NamingTask, progress: Callable[[int], object] = lambda pairs: None
) -> list[CaptionReport]:
    """Find the names of pictures by the transformer, and by the scorer.

    Args:
        dalle: the model.
        store: where the pictures are.
        quiz: what to find.
        progress: told how many pairs of a picture and a name each step has judged.

    Returns:
        A report for each way of choosing; chance first.

    Raises:
        UserError: the model has no scorer.
    """
    count = len(quiz.names)
    found = {"chance": tuple(Share(*[min(1.0, k / count)] * 3) for k in TOP)}
    for way, table in _tables(dalle, quiz.names, store.take(quiz.rows), progress).items():
        found[way] = shares(table, quiz.true)
    return [CaptionReport(quiz.language, way, len(quiz.rows), count, values) for way, values in found.items()]


def _tables(
    dalle: DalleMini, names: list[str], rgba: np.ndarray, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """How well each picture (P, S, S, 4) fits each name, (P, names), by every way of choosing."""
    size, device = dalle.image_tokenizer.config.image_size, dalle.transformer.device
    image_ids = dalle.image_tokenizer.encode(pixels_on_white(rgba, size).to(device))
    image_embed = dalle.scorer.embed_images(pixels_on_white(rgba, dalle.scorer.image_size))
    likelihood = dalle.caption_model.table(names, image_ids, progress=progress)
    return {
        "likelihood": likelihood,
        "likelihood + prior": likelihood + dalle.caption_model.text_nats(names),
        "likelihood, blind": dalle.caption_model.table(names, image_ids, blind=True),
        "CLIP scorer": image_embed @ dalle.scorer.embed_texts(names).T,
    }


def shares(table: Tensor, true: Tensor) -> tuple[Share, ...]:
    """Top-1 and top-5 of (P, names) scores, the right name's column being `true` (P,); ties count against it."""
    places = (table >= table.gather(1, true[:, None])).sum(1)
    return tuple(share((places <= k).double().tolist()) for k in TOP)


def table(reports: Sequence[CaptionReport]) -> str:
    """A line for each report."""
    return markdown(
        [
            {
                "language": one.language,
                "by": one.way,
                "pictures": str(one.pictures),
                "names": str(one.names),
                **{f"top-{k}": _cell(one, value) for k, value in zip(TOP, one.shares, strict=True)},
            }
            for one in reports
        ]
    )


def _cell(report: CaptionReport, value: Share) -> str:
    """A share; chance is exact, and too small for two digits."""
    return f"{value.value:.4f}" if report.way == "chance" else cell(value)
