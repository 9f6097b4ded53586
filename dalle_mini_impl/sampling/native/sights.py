"""Attention masks as `attention.c` wants them: which runs of places in the cache each position looks at."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.masks import Sight
from dalle_mini_impl.sampling.native.library import SightParts

LANES = 16
"""The most there are in `vectors.h`."""


class SightTable(NamedTuple):
    """The masks of all layers for one cache."""

    address: int
    """Of the pointers to each layer's."""
    kept: tuple[object, ...]
    """What these point to."""


class NativeSights:
    """The masks of all layers, for whatever part of the stream a cache holds.

    A cache holds keys and values in an order in which those that a position sees lie side by side.

    Args:
        sights: of each layer; None for one that looks at all before.
    """

    def __init__(self, sights: Sequence[Sight | None]) -> None:
        self._sights = sights
        self.table = functools.lru_cache(8)(self._table)

    def _table(self, begin: int, end: int, prompt: int) -> SightTable | None:
        """For a cache of positions `begin` … `end` - 1 that continues one of positions 0 … `prompt` - 1.

        Returns:
            The masks, or None if all layers look at all before.
        """
        made = {sight: _runs(sight, begin, end, prompt) for sight in set(self._sights) if sight is not None}
        if not made:
            return None
        pointers = (ctypes.c_void_p * len(self._sights))()
        for layer, sight in enumerate(self._sights):
            pointers[layer] = ctypes.addressof(made[sight][0]) if sight is not None else None
        return SightTable(ctypes.addressof(pointers), (pointers, made))


def _runs(sight: Sight, begin: int, end: int, prompt: int) -> tuple[SightParts, tuple[Tensor, ...]]:
    """One mask, and what it points to."""
    own, earlier = (sight.order[(sight.order >= a) & (sight.order < b)] for a, b in ((begin, end), (0, prompt)))
    places = torch.empty(end - begin, dtype=torch.int32)
    places[own - begin] = torch.arange(end - begin, dtype=torch.int32)
    allowed = sight.allowed[begin:end]
    seen = torch.cat([F.pad(allowed[:, earlier] & (earlier < begin), (1, 1)), F.pad(allowed[:, own], (0, 1))], 1)
    edges = seen.to(torch.int8).diff(dim=1)
    rows, firsts = (edges == 1).nonzero().unbind(1)
    ends = (edges == -1).nonzero()[:, 1]
    here = firsts > len(earlier)  # behind the gap between both caches
    runs = torch.stack([firsts, ends], 1) - here[:, None] * (len(earlier) + 1)
    counts = torch.bincount(2 * rows + here, minlength=2 * (end - begin))
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    scores = -(-runs[:, 1] // LANES) * LANES - runs[:, 0] // LANES * LANES
    most = int(torch.zeros(end - begin, dtype=torch.int64).index_add(0, rows, scores).max())
    runs = runs.int().contiguous()
    return SightParts(places.data_ptr(), runs.data_ptr(), starts.data_ptr(), most), (places, runs, starts)
