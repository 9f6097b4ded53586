"""Attention masks in the layout of `attention.c`: the runs of cache slots that each position attends to."""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.sampling.native.library import MAX_LANES, MaskStruct


class SlotRuns(NamedTuple):
    """One mask for one cache; fields as in `blocks.h`."""

    slots: Tensor
    """(positions,) int32: the slot of each position."""
    runs: Tensor
    """(runs, 2) int32: first slot and the one after the last."""
    starts: Tensor
    """(2 · positions + 1,) int32: of each position the first of its runs in the prompt, and in this cache."""
    most_scores: int
    """Largest number of scores that a position needs, in whole vectors."""


class MaskTable(NamedTuple):
    """The masks of all layers for one cache."""

    address: int
    """Address of the array of pointers to each layer's mask."""
    pointers: ctypes.Array[ctypes.c_void_p]
    """That array; null for full attention."""
    runs: dict[AttentionMask, SlotRuns]
    """Memory that the structures point to."""
    structs: dict[AttentionMask, MaskStruct]
    """Memory that the pointers point to."""


class NativeMasks:
    """The masks of all layers, for any part of the stream that a cache holds.

    A cache orders keys and values such that the positions that one attends to lie in few runs of neighbouring slots.

    Args:
        attention_masks: the mask of each layer; None for full attention.
    """

    def __init__(self, attention_masks: Sequence[AttentionMask | None]) -> None:
        self._attention_masks = attention_masks
        self.table = functools.lru_cache(8)(self._table)

    def _table(self, begin: int, end: int, prompt: int) -> MaskTable | None:
        """The masks for a cache of positions `begin` … `end` - 1 that continues one of positions 0 … `prompt` - 1.

        Returns:
            The masks, or None if all layers have full attention.
        """
        distinct = {mask for mask in self._attention_masks if mask is not None}
        if not distinct:
            return None
        runs = {mask: slot_runs(mask, begin, end, prompt) for mask in distinct}
        structs = {
            mask: MaskStruct(own.slots.data_ptr(), own.runs.data_ptr(), own.starts.data_ptr(), own.most_scores)
            for mask, own in runs.items()
        }
        pointers = (ctypes.c_void_p * len(self._attention_masks))()
        for layer, mask in enumerate(self._attention_masks):
            pointers[layer] = ctypes.addressof(structs[mask]) if mask is not None else None
        return MaskTable(ctypes.addressof(pointers), pointers, runs, structs)


def slot_runs(mask: AttentionMask, begin: int, end: int, prompt: int) -> SlotRuns:
    """One mask for a cache; arguments as `NativeMasks.table`."""
    own = mask.order[(mask.order >= begin) & (mask.order < end)]
    earlier = mask.order[mask.order < prompt]
    slots = torch.empty(end - begin, dtype=torch.int32)
    slots[own - begin] = torch.arange(end - begin, dtype=torch.int32)
    # Both caches side by side with a gap between them, so that no run crosses from one to the other.
    allowed = mask.allowed[begin:end]
    in_prompt = F.pad(allowed[:, earlier] & (earlier < begin), (1, 1))
    attended = torch.cat([in_prompt, F.pad(allowed[:, own], (0, 1))], 1)
    edges = attended.to(torch.int8).diff(dim=1)
    rows, firsts = (edges == 1).nonzero().unbind(1)
    ends = (edges == -1).nonzero()[:, 1]
    in_own = firsts > len(earlier)
    runs = torch.stack([firsts, ends], 1) - in_own[:, None] * (len(earlier) + 1)
    counts = torch.bincount(2 * rows + in_own, minlength=2 * (end - begin))
    starts = F.pad(counts.cumsum(0), (1, 0)).int()
    scores = -(-runs[:, 1] // MAX_LANES) * MAX_LANES - runs[:, 0] // MAX_LANES * MAX_LANES
    most_scores = int(torch.zeros(end - begin, dtype=torch.int64).index_add(0, rows, scores).max())
    return SlotRuns(slots, runs.int().contiguous(), starts, most_scores)
