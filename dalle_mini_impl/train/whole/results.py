"""What a finished model can do: pictures for captions it has seen, for held-out ones and for new combinations of words.

How many are drawn follows from the time that is left. Where the `judge` extra is installed, the sampling settings are
chosen first, and the pictures are measured by R-precision: whether a picture is nearest to the set's own picture of
that caption (`evaluate/r_precision.py`).
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle_mini_impl.checkpoint.settings import save_sampling
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.evaluate.judges import Judge, efficientnet_judge
from dalle_mini_impl.evaluate.r_precision import RPrecision
from dalle_mini_impl.evaluate.reference_pictures import ReferencePictures, first_caption, open_reference_pictures
from dalle_mini_impl.evaluate.sampling_captions import Captions, measure_within
from dalle_mini_impl.evaluate.sampling_report import choice_text
from dalle_mini_impl.evaluate.sampling_settings import choose_sampling
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.train.whole.folder import RunFolder
from dalle_mini_impl.train.whole.new_captions import new_combinations
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
CHOOSING_SHARE = 0.45
"""Share of the time in which the sampling settings are chosen."""
REFERENCE_SHARE = 0.1
"""Share of the time in which the judge may look at pictures of the set."""
DRAWING_SHARE = 0.85
"""Share of the time after which no further caption is drawn."""
LEAST_SECONDS = 1.0
"""Time for all this where none is left."""
COMPARED_CAPTIONS = 24
"""Pictures of each split with which it is measured what a caption tells the transformer."""
SPLITS = {"seen": "train", "held out": "validation"}
"""Kinds of captions that pictures have -> split."""
KINDS = (*SPLITS, "new")
"""Kinds of captions."""


@dataclass(frozen=True, kw_only=True)
class DrawnCaption:
    """The pictures of one caption."""

    caption: str
    pictures: list[Image.Image]
    """Best first."""
    index: int
    """Of the reference picture it belongs to; -1 for a new caption."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a finished model can do."""

    figures: dict[str, Any]
    """Plain values, for `run.json`."""
    drawn: dict[str, list[DrawnCaption]] = field(default_factory=dict)
    """By kind of caption."""


def measure_results(folder: RunFolder, seconds: float) -> Results:
    """Choose the sampling settings, then draw and measure, for about some seconds.

    Args:
        folder: holds the model and its pictures. The chosen settings become the model's defaults.
        seconds: that are left; a little is drawn even if none are.

    Raises:
        UserError: the model or its pictures cannot be read.
    """
    start = time.monotonic()
    seconds = max(seconds, LEAST_SECONDS)
    dalle = DalleMini.from_pretrained(folder.model)
    reference = open_reference_pictures(folder.store, dalle.image_tokenizer.config.size)
    prompts = choose_prompts(dalle, reference)
    figures: dict[str, Any] = {"caption": prompts["seen"][0][1], "caption_nats": caption_nats(dalle, reference)}
    measure: tuple[RPrecision, torch.Tensor] | None = None
    try:
        judge = efficientnet_judge(dalle.image_tokenizer.device)
    except UserError as error:  # the extra is missing
        figures["without_judge"] = str(error)
    else:
        choice = choose_sampling(dalle, reference, judge, CHOOSING_SHARE * seconds)
        save_sampling(folder.model, choice.sampling)
        dalle.sampling = choice.sampling
        figures["sampling_text"] = choice_text(choice)
        measure = measure_prompts(reference, judge, prompts, REFERENCE_SHARE * seconds)
    figures["sampling"] = to_dict(dalle.sampling)
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
    if measure is not None:
        figures["r_precision"] = r_precision_of(drawn, reference, *measure)
    return Results(figures=figures, drawn=drawn)


def choose_prompts(dalle: DalleMini, reference: ReferencePictures) -> dict[str, list[tuple[int, str]]]:
    """Captions to draw by kind, evenly spread over the set: index of the picture of each, and text."""
    captions = {split: captions_of(reference, split) for split in SPLITS.values()}
    seen = {int(reference.concept_ids[index]) for index, _ in captions["train"]}
    # A held-out picture whose caption a training picture has as well is no test of what was not seen.
    held_out = [one for one in captions["validation"] if int(reference.concept_ids[one[0]]) not in seen]
    seen_texts, held_out_texts = ([text for _, text in captions[split]] for split in SPLITS.values())
    new = new_combinations(seen_texts, held_out_texts, MOST_PROMPTS)
    length = dalle.stream.config.text_length
    fitting = [text for text in new if len(dalle.text_tokenizer.encode(text)) <= length]
    return {
        "seen": spread(captions["train"], MOST_PROMPTS),
        "held out": spread(held_out, MOST_PROMPTS),
        "new": [(-1, text) for text in fitting[:NEW_PROMPTS]],
    }


def captions_of(reference: ReferencePictures, split: str) -> list[tuple[int, str]]:
    """Index and first caption of each picture of a split."""
    entries = enumerate(reference.store.entries)
    return [(index, first_caption(entry).text) for index, entry in entries if entry.split == split]


def spread(captions: Sequence[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """Some of the captions, each text once, in a random order that is the same each time."""
    first = {text: (index, text) for index, text in reversed(captions)}
    texts = sorted(first)
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return [first[texts[number]] for number in order]


def sample_command(folder: RunFolder, caption: str) -> str:
    """The command that draws a caption."""
    return f"dalle sample {shlex.quote(caption)} --model {shlex.quote(str(folder.model))}"


def measure_prompts(
    reference: ReferencePictures, judge: Judge, prompts: dict[str, list[tuple[int, str]]], seconds: float
) -> tuple[RPrecision, torch.Tensor]:
    """Have the judge look at the pictures of the prompts, and at others for some seconds; see `measure_within`."""
    chosen = [(index, kind == "held out") for kind in SPLITS for index, _ in prompts[kind]]
    captions = Captions(tuple(index for index, _ in chosen), tuple(held_out for _, held_out in chosen))
    return measure_within(reference, judge, captions, seconds, seed=0)


def r_precision_of(
    drawn: dict[str, list[DrawnCaption]], reference: ReferencePictures, measure: RPrecision, concept_ids: torch.Tensor
) -> dict[str, Any]:
    """Shares of captions whose best picture is nearest to the own real one, or among the five nearest, by kind."""
    rows: dict[str, Any] = {"captions": measure.concept_count}
    for kind in SPLITS:
        if drawn[kind]:
            features = measure.features_of(to_pixels([one.pictures[0] for one in drawn[kind]], reference.size))
            ranks = measure.ranks(features, concept_ids[[one.index for one in drawn[kind]]])
            shares = {f"top_{k}": float((ranks < k).double().mean()) for k in (1, 5)}
            rows[kind] = {"captions": len(drawn[kind]), **shares}
    return rows


@torch.inference_mode()
def caption_nats(dalle: DalleMini, reference: ReferencePictures) -> dict[str, float]:
    """By kind, by how many nats a picture is likelier with its own caption than with that of another picture."""
    gains = {}
    for kind, split in SPLITS.items():
        chosen = spread(captions_of(reference, split), COMPARED_CAPTIONS)
        if len(chosen) < 2:
            continue
        tokenizer = dalle.image_tokenizer
        pixels = reference.pixels([index for index, _ in chosen])
        image_ids = tokenizer.encode(pixels.to(tokenizer.device)).cpu()
        differences = []
        for place, (_, caption) in enumerate(chosen):
            _, other = chosen[(place + 1) % len(chosen)]
            own, foreign = (
                float(dalle.log_likelihood(text, image_ids[place : place + 1]).sum()) for text in (caption, other)
            )
            differences.append(own - foreign)
        gains[kind] = sum(differences) / len(differences)
    return gains
