"""Which captions are drawn to compare sampling settings, and what the pictures are compared with."""

import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.evaluate.judges import Judge
from dalle_mini_impl.evaluate.r_precision import RPrecision, build_r_precision
from dalle_mini_impl.evaluate.reference_pictures import CHUNK, ReferencePictures, has_features, reference_features

ENOUGH_CAPTIONS = 32
"""Captions of the training split make up the number where there are fewer held-out ones than half of this."""
MAX_CAPTIONS = 128
"""Captions of each split that are drawn at most, before they are drawn again from other seeds."""
TIMED_PICTURES = 32
"""Real pictures by which the judge's speed is measured."""
SHORTEST_TIME = 1e-6
"""Shorter times count as this many seconds."""


@dataclass(frozen=True)
class Captions:
    """What is drawn."""

    indices: tuple[int, ...]
    """Of reference pictures, whose captions are the prompts."""
    held_out: tuple[bool, ...]
    """Which of these pictures are held out."""

    @property
    def description(self) -> str:
        """How many captions of each split these are."""
        held_out = sum(self.held_out)
        training = len(self.held_out) - held_out
        if not training:
            return f"{held_out} held-out captions"
        return f"{held_out or 'no'} held-out caption{'s' * (held_out != 1)} and {training} of the training split"


def choose_captions(reference: ReferencePictures, seed: int = 0) -> Captions:
    """Pictures of different captions at random: held-out ones and ones of the training split by turns.

    There are as many of the training split as held-out ones, and more where these are few. A held-out picture whose
    caption a training picture has as well is left out, unless vendors drew the same concepts.
    """
    random = np.random.default_rng(seed)
    entries = reference.store.entries
    seen = set() if reference.has_vendors else set(reference.concept_ids[reference.of_split("train")].tolist())
    taken: set[int] = set()
    chosen: dict[str, list[int]] = {"validation": [], "train": []}
    for split, indices in chosen.items():
        limit = MAX_CAPTIONS if split == "validation" else max(len(taken), ENOUGH_CAPTIONS - len(taken))
        of_split = sorted((i for i, entry in enumerate(entries) if entry.split == split), key=lambda i: entries[i].key)
        for index in random.permutation(of_split).tolist():
            concept = int(reference.concept_ids[index])
            if len(indices) < limit and concept not in taken and (split == "train" or concept not in seen):
                taken.add(concept)
                indices.append(index)
    turns = [
        (index, split == "validation")
        for pair in itertools.zip_longest(chosen["validation"], chosen["train"])
        for split, index in zip(chosen, pair, strict=True)
        if index is not None
    ]
    return Captions(tuple(index for index, _ in turns), tuple(held_out for _, held_out in turns))


def measure_within(
    reference: ReferencePictures, judge: Judge, captions: Captions, seconds: float, seed: int
) -> tuple[RPrecision, Tensor]:
    """Compute the judge's features of all reference pictures, or of as many as there is time for.

    Args:
        reference: the pictures.
        judge: computes the features; all of them are kept for the next time, some are not.
        captions: their pictures are among those used in any case.
        seconds: how long it may take.
        seed: determines which others are used.

    Returns:
        The measure, and the concept (n,) of every reference picture in it, -1 for those that are left out.
    """
    count = len(reference.store)
    start = time.monotonic()
    judge.features(reference.pixels(range(min(TIMED_PICTURES, count))))
    each = max(time.monotonic() - start, SHORTEST_TIME) / min(TIMED_PICTURES, count)
    affordable = int(seconds / each)
    if affordable >= count or has_features(reference, judge):
        indices = torch.arange(count)
        features = reference_features(reference, {judge.name: judge})[judge.name]
    else:
        others = np.setdiff1d(np.arange(count), captions.indices)
        others = np.random.default_rng(seed).permutation(others)[: max(0, affordable - len(captions.indices))]
        indices = torch.tensor([*captions.indices, *others.tolist()])
        features = torch.cat([judge.features(reference.pixels(part.tolist())) for part in indices.split(CHUNK)])
    _, own_ids = reference.concept_ids[indices].unique(return_inverse=True)
    concept_ids = torch.full((count,), -1)
    concept_ids[indices] = own_ids
    return build_r_precision(judge, features, own_ids, reference.vendor_ids[indices]), concept_ids
