"""What generation needs of a transformer: two protocols, met by `Transformer` and by what `sampling.packing` makes."""

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """Keys and values of the positions decoded so far. Only the decoder that made a cache knows its layout."""

    length: int
    """Positions filled so far."""

    def branch(self, rows: Tensor, capacity: int) -> "Cache":
        """A new cache whose row i continues row `rows[i]` of this one.

        So a prompt is run once, however many candidates continue it.

        Args:
            rows: (n,) row indices of this cache, on the CPU.
            capacity: positions of the longest stream, those of this cache included.
        """
        ...

    def branch_bytes(self, count: int, capacity: int) -> int:
        """Bytes that `branch` would allocate for `count` rows."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of a branched cache but these.

        Args:
            rows: (n,) row indices in their new order.
        """
        ...


class Decoder(Protocol):
    """A causal model over ids."""

    @property
    def device(self) -> torch.device:
        """The device that ids must be on."""
        ...

    def __call__(self, ids: Tensor, cache: Cache | None = None, image_embed: Tensor | None = None) -> Tensor:
        """Ids (B, T) -> hidden states (B, T, C).

        Args:
            ids: they continue the positions in `cache`, if there is one.
            cache: earlier positions; the new ones are added in place.
            image_embed: (B, D) image embeddings of length 1, or zeros for none, as `Stream.embeddings` makes them; only
                with the first ids of a stream, and None where no row has one.
        """
        ...

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """Hidden states (…, C) -> logits (…, end - first) of the ids `allowed` = (first, end), by default of all."""
        ...

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` positions, by default the longest stream."""
        ...
