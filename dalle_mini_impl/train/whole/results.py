"""What a finished model can do: pictures for captions it has seen, for held-out ones and for new combinations of words.

How many are drawn follows from the time that is left. Where the `judge` extra is installed, the pictures are measured
by R-precision: whether a picture is nearest to the set's own picture of that caption (`evaluate/r_precision.py`).
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureEntry, PictureStore
from dalle_mini_impl.evaluate.judges import efficientnet_judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.train.whole.folder import RunFolder
from dalle_mini_impl.train.whole.new_captions import new_combinations
from dalle_mini_impl.train.whole.pictures import PictureFacts
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_pixels

CANDIDATES = 16
"""Pictures drawn for each caption."""
SHOWN = 4
"""Of them, the best, that the report shows."""
MOST_PROMPTS = 60
"""Captions of each kind that are drawn where there is time."""
LEAST_PROMPTS = 2
"""Captions of each kind that are drawn however little time there is."""
NEW_PROMPTS = 6
"""New combinations of words."""
MOST_REFERENCES = 1000
"""Pictures of the set that a drawn one is compared with."""
REFERENCE_SHARE = 0.25
"""Share of the time in which they may be prepared."""
DRAWING_SHARE = 0.85
"""Share of the time after which no further caption is drawn."""
COMPARED_CAPTIONS = 24
"""Pictures of each split with which it is measured what a caption tells the transformer."""
KINDS = ("seen", "held out", "new")
"""Kinds of captions."""


@dataclass(frozen=True, kw_only=True)
class DrawnCaption:
    """The pictures of one caption."""

    caption: str
    pictures: list[Image.Image]
    """Best first."""
    index: int
    """Of the picture it belongs to, within its split; -1 for a new caption."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a finished model can do."""

    figures: dict[str, Any]
    """Plain values, for `run.json`."""
    drawn: dict[str, list[DrawnCaption]] = field(default_factory=dict)
    """By kind of caption."""


def measure_results(folder: RunFolder, stores: dict[str, PictureStore], facts: PictureFacts, seconds: float) -> Results:
    """Draw and measure, for about some seconds.

    Args:
        folder: holds the model.
        stores: its pictures by split.
        facts: about them.
        seconds: that are left; a little is drawn even if none are.
    """
    start = time.monotonic()
    dalle = DalleMini.from_pretrained(folder.model)
    prompts = choose_prompts(stores, facts.first_language)
    figures: dict[str, Any] = {
        "caption": sample_caption(stores["train"], facts.first_language),
        "sampling": to_dict(dalle.sampling),
        "caption_nats": caption_nats(dalle, stores, facts),
    }
    try:
        references = build_references(dalle, stores, prompts, facts.first_language, REFERENCE_SHARE * seconds)
    except UserError as error:  # the extra is missing
        references = None
        figures["r_precision_missing"] = str(error)
    drawn: dict[str, list[DrawnCaption]] = {kind: [] for kind in KINDS}
    for number in range(MOST_PROMPTS):
        for kind in KINDS:
            if number >= len(prompts[kind]):
                continue
            if number >= LEAST_PROMPTS and time.monotonic() - start > DRAWING_SHARE * seconds:
                break
            index, caption = prompts[kind][number]
            result = dalle.generate(caption, CANDIDATES, SHOWN, seed=number)
            pictures = [candidate.image for candidate in result]
            drawn[kind].append(DrawnCaption(caption=caption, pictures=pictures, index=index))
    if references is not None:
        figures["r_precision"] = references.measure(drawn)
    return Results(figures=figures, drawn=drawn)


def choose_prompts(stores: dict[str, PictureStore], language: str) -> dict[str, list[tuple[int, str]]]:
    """Captions to draw by kind, evenly spread over the set: the index of the picture of each, and the text."""
    captions = {split: [main_caption(entry, language) for entry in store.entries] for split, store in stores.items()}
    seen = set(captions["train"])
    return {
        "seen": spread(captions["train"], MOST_PROMPTS),
        # A held-out picture whose caption a training picture has as well is no test of what was not seen.
        "held out": [(index, text) for index, text in spread(captions["validation"], MOST_PROMPTS) if text not in seen],
        "new": [(-1, text) for text in new_combinations(captions["train"], captions["validation"], NEW_PROMPTS)],
    }


def main_caption(entry: PictureEntry, language: str) -> str:
    """The caption of a picture that is drawn: its first one in a language, or its first one."""
    return caption_in_language(entry.captions, language).text


def spread(captions: Sequence[str], count: int) -> list[tuple[int, str]]:
    """Some different captions with their indices, in a random order that is the same each time."""
    first = {text: index for index, text in reversed(list(enumerate(captions)))}
    texts = sorted(first)
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return [(first[texts[number]], texts[number]) for number in order]


def sample_caption(store: PictureStore, language: str) -> str:
    """The caption of the set to try first."""
    return spread([main_caption(entry, language) for entry in store.entries], 1)[0][1]


def sample_command(folder: RunFolder, caption: str) -> str:
    """The command that draws a caption."""
    return f"dalle sample {shlex.quote(caption)} --model {shlex.quote(str(folder.model))}"


@dataclass(frozen=True, eq=False)
class References:
    """Pictures of the set that drawn ones are compared with."""

    r_precision: RPrecision
    concepts: dict[str, int]
    """Caption in lower case -> index of its concept."""
    size: int
    """Side at which the judge gets the pictures."""

    def measure(self, drawn: dict[str, list[DrawnCaption]]) -> dict[str, Any]:
        """Share of captions whose best picture is nearest to the own one, or among the five nearest."""
        rows: dict[str, Any] = {"references": len(self.concepts)}
        for kind in KINDS[:2]:
            known = [one for one in drawn[kind] if one.caption.casefold() in self.concepts]
            if known:
                pixels = to_pixels([one.pictures[0] for one in known], self.size)
                concepts = torch.tensor([self.concepts[one.caption.casefold()] for one in known])
                ranks = self.r_precision.ranks(self.r_precision.features_of(pixels), concepts)
                shares = {f"top_{k}": float((ranks < k).double().mean()) for k in (1, 5)}
                rows[kind] = {"captions": len(known), **shares}
        return rows


@torch.inference_mode()
def build_references(
    dalle: DalleMini,
    stores: dict[str, PictureStore],
    prompts: dict[str, list[tuple[int, str]]],
    language: str,
    seconds: float,
) -> References:
    """Have the judge look at pictures of the set: those of the prompts, and others for some seconds.

    Pictures with the same caption are one concept.

    Raises:
        UserError: the `judge` extra is not installed.
    """
    start = time.monotonic()
    judge = efficientnet_judge(dalle.image_tokenizer.device)
    size = dalle.image_tokenizer.config.image_size
    needed = [("train", index) for index, _ in prompts["seen"]]
    needed += [("validation", index) for index, _ in prompts["held out"]]
    others = [(split, index) for split, store in stores.items() for index in range(len(store))]
    order = np.random.default_rng(0).permutation(len(others))
    rows = list(dict.fromkeys([*needed, *(others[number] for number in order)]))[:MOST_REFERENCES]
    features: list[torch.Tensor] = []
    texts: list[str] = []
    for first in range(0, len(rows), 32):
        if first >= len(needed) and first >= 64 and time.monotonic() - start > seconds:
            break
        part = rows[first : first + 32]
        rgba = np.concatenate([stores[split].take(np.array([index])) for split, index in part])
        features.append(judge.features(pixels_on_white(rgba, size)))
        texts += [main_caption(stores[split].entries[index], language).casefold() for split, index in part]
    concepts = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    concept_ids = torch.tensor([concepts[text] for text in texts])
    measure = build_r_precision(judge, torch.cat(features), concept_ids, torch.zeros_like(concept_ids))
    return References(measure, concepts, size)


@torch.inference_mode()
def caption_nats(dalle: DalleMini, stores: dict[str, PictureStore], facts: PictureFacts) -> dict[str, float]:
    """By split, by how many nats a picture is likelier with its own caption than with that of another picture."""
    gains = {}
    for split, store in stores.items():
        captions = [main_caption(entry, facts.first_language) for entry in store.entries]
        rows = [index for index, _ in spread(captions, COMPARED_CAPTIONS)]
        if len(rows) < 2:
            continue
        tokenizer = dalle.image_tokenizer
        pixels = pixels_on_white(store.take(np.array(rows)), tokenizer.config.image_size)
        image_ids = tokenizer.encode(pixels.to(tokenizer.device)).cpu()
        differences = []
        for place, row in enumerate(rows):
            other = rows[(place + 1) % len(rows)]
            own, foreign = (
                float(dalle.log_likelihood(captions[index], image_ids[place : place + 1]).sum())
                for index in (row, other)
            )
            differences.append(own - foreign)
        gains[split] = sum(differences) / len(differences)
    return gains
