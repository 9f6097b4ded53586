"""Attention masks as `attention.c` wants them: which runs of places in the cache each position looks at."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.sampling.native.library import MaskParts

LANES = 16
"""The most there are in `vectors.h`."""


class MaskTable(NamedTuple):
    """The masks of all layers for one cache."""

    address: int
    """Of the pointers to each layer's."""
    kept: tuple[object, ...]
    """What these point to."""


class NativeMasks:
    """The masks of all layers, for whatever part of the stream a cache holds.

    A cache holds keys and values in an order in which those that a position sees lie side by side.

    Args:
        attention_masks: of each layer; None for one that looks at all before.
    """

    def __init__(self, attention_masks: Sequence[AttentionMask | None]) -> None:
        self._attention_masks = attention_masks
        self.table = functools.lru_cache(8)(self._table)

    def _table(self, begin: int, end: int, prompt: int) -> MaskTable | None:
        """For a cache of positions `begin` … `end` - 1 that continues one of positions 0 … `prompt` - 1.

        Returns:
            The masks, or None if all layers look at all before.
        """
        made = {
            attention_mask: _runs(attention_mask, begin, end, prompt)
            for attention_mask in set(self._attention_masks)
            if attention_mask is not None
        }
        if not made:
            return None
        pointers = (ctypes.c_void_p * len(self._attention_masks))()
        for layer, attention_mask in enumerate(self._attention_masks):
            pointers[layer] = ctypes.addressof(made[attention_mask][0]) if attention_mask is not None else None
        return MaskTable(ctypes.addressof(pointers), (pointers, made))


def _runs(attention_mask: AttentionMask, begin: int, end: int, prompt: int) -> tuple[MaskParts, tuple[Tensor, ...]]:
    """One mask, and what it points to."""
    own, earlier = (
        attention_mask.order[(attention_mask.order >= a) & (attention_mask.order < b)]
        for a, b in ((begin, end), (0, prompt))
    )
    places = torch.empty(end - begin, dtype=torch.int32)
    places[own - begin] = torch.arange(end - begin, dtype=torch.int32)
    allowed = attention_mask.allowed[begin:end]
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
    return MaskParts(places.data_ptr(), runs.data_ptr(), starts.data_ptr(), most), (places, runs, starts)
