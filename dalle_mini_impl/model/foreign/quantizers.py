"""Quantizers of imported image tokenizers: z -> ids with the arithmetic of the originals, ids -> vectors.

None can be trained. All work on flat (B, n, D) vectors in fp32, outside autocast, and on a limited number of vectors at
a time: distances of a large batch to a large codebook would fill the memory.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VECTORS_AT_A_TIME = 4096
"""Number of vectors that are compared with the codebook at a time."""


class Nearest(nn.Module):
    """The nearest codebook vector by squared distance (VQGAN), or by angle if both are normalised (LlamaGen)."""

    def __init__(self, codebook_size: int, embed_dim: int, cosine: bool) -> None:
        super().__init__()
        self.codebook_size, self.cosine = codebook_size, cosine
        self.embedding = nn.Embedding(codebook_size, embed_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (B, n, D) -> vectors (B, n, D), ids (B, n), no commitment loss."""
        return _quantize(self, z, self._nearest)

    def lookup(self, image_ids: Tensor) -> Tensor:
        """Ids (B, n) -> vectors (B, n, D)."""
        return self._table[image_ids]

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, D) -> (N, K), minus the squared distance."""
        return -self._distances(z)

    @property
    def _table(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1) if self.cosine else self.embedding.weight

    def _nearest(self, z: Tensor) -> Tensor:
        return self._distances(z).argmin(-1)

    def _distances(self, z: Tensor) -> Tensor:
        table = self._table
        z = F.normalize(z, dim=-1) if self.cosine else z
        # The originals add these terms in this order; another order rounds differently, and changes ids at near ties.
        return z.square().sum(-1, keepdim=True) + table.square().sum(-1) - 2 * (z @ table.T)


class Logits(nn.Module):
    """The largest of K logits, computed by the encoder's last 1×1 convolution, not sampled (Gumbel VQGAN, dVAE).

    Args:
        inputs: C, width of the encoder's output; independent of D, the width of the ids' vectors.
        codebook_size: K.
        embed: ids (B, n) -> vectors (B, n, D).
    """

    def __init__(self, inputs: int, codebook_size: int, embed: nn.Module) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.proj = nn.Conv2d(inputs, codebook_size, 1)
        self.embed = embed

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (B, n, C) -> vectors (B, n, D), ids (B, n), no commitment loss."""
        return _quantize(self, z, self._likeliest)

    def lookup(self, image_ids: Tensor) -> Tensor:
        """Ids (B, n) -> vectors (B, n, D)."""
        return self.embed(image_ids)

    def scores(self, z: Tensor) -> Tensor:
        """Z (N, C) -> logits (N, K)."""
        return F.linear(z, self.proj.weight.flatten(1), self.proj.bias)

    def _likeliest(self, z: Tensor) -> Tensor:
        return self.scores(z).argmax(-1)


class OneHotConvolution(nn.Conv2d):
    """A 1×1 convolution of one-hot encoded ids: ids (B, n) -> vectors (B, n, D)."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__(codebook_size, embed_dim, 1)

    def forward(self, image_ids: Tensor) -> Tensor:
        return F.embedding(image_ids, self.weight.flatten(1).T) + cast(Tensor, self.bias)


def _quantize(
    quantizer: Nearest | Logits, z: Tensor, choose: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(z.device.type, enabled=False):
        ids = torch.cat([choose(rows) for rows in z.flatten(0, 1).split(VECTORS_AT_A_TIME)]).view(z.shape[:2])
    return quantizer.lookup(ids), ids, z.new_zeros((), dtype=torch.float32)
