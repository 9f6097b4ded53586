"""Trained quantizers without training code, and without vector-quantize-pytorch, whose import takes seconds.

Their tensors have the names of that library, so that weights trained with it load. Their methods `scores` return minus
the squared distance to the vector of each id, up to a constant that is the same for all ids.
"""

from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenVQ(nn.Module):
    """A trained `learned.VQ`."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.inner = nn.Module()
        self.inner._codebook = nn.Module()
        for name, value in {
            "embed": torch.zeros(1, codebook_size, embed_dim),
            "embed_avg": torch.zeros(1, codebook_size, embed_dim),
            "cluster_size": torch.zeros(1, codebook_size),
            "initted": torch.tensor(False),
        }.items():
            self.inner._codebook.register_buffer(name, value)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            ids = (F.normalize(z.float(), dim=-1) @ self._table.T).argmax(-1)
        return self.lookup(ids), ids, z.new_zeros((), dtype=torch.float32)

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self._table[image_ids]

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, D) -> (N, K), with z scaled to length 1 like all entries."""
        return 2 * F.normalize(z.float(), dim=-1) @ self._table.T

    @property
    def _table(self) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.inner._codebook).embed)[0]


class FrozenSimVQ(nn.Module):
    """A trained `learned.SimVQ`."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.inner = nn.Module()
        self.inner.register_buffer("frozen_codebook", torch.zeros(codebook_size, embed_dim))
        self.inner.code_transform = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            table = self._table
            ids = torch.cdist(z.float(), table).argmin(-1)
        return table[ids], ids, z.new_zeros((), dtype=torch.float32)

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self._table[image_ids]

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, D) -> (N, K)."""
        return -torch.cdist(z.float(), self._table).square()

    @property
    def _table(self) -> Tensor:
        return cast(nn.Linear, self.inner.code_transform)(self.inner.frozen_codebook)


class FrozenFiniteScalar(nn.Module):
    """A `learned.FiniteScalar` without gradients; it has no weights."""

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.codebook_size = prod(levels)
        strides = [prod(levels[:dimension]) for dimension in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids = ((self._bounded(z).round().long() + self.levels // 2) * self.strides).sum(-1)
        return self.lookup(ids), ids, z.new_zeros((), dtype=torch.float32)

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self._rounded(image_ids) / (self.levels // 2)

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, D) -> (N, K), with neighbouring levels at distance 1."""
        all_ids = torch.arange(self.codebook_size, device=z.device)
        return -torch.cdist(self._bounded(z), self._rounded(all_ids).float()).square()

    def _bounded(self, z: Tensor) -> Tensor:
        """Z squashed to the range of the levels, before rounding."""
        # An even number of levels has none in the middle, so they are shifted by half a level.
        limit = (self.levels - 1) * 1.001 / 2
        offset = (1 - self.levels % 2) / 2
        return torch.tanh(z.float() + torch.atanh(offset / limit)) * limit - offset

    def _rounded(self, image_ids: Tensor) -> Tensor:
        """The levels of ids as integers around 0."""
        return image_ids[..., None] // self.strides % self.levels - self.levels // 2
