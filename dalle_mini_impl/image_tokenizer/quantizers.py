"""z <-> image ids, by quantizers from vector-quantize-pytorch behind one small interface.

All work on flat (B, n, D) vectors in fp32, outside autocast: half precision picks other entries, and the
library's image-map mode transposes flat ids.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.errors import UserError


class Quantizer(Protocol):
    """What the image tokenizer needs of a quantizer; `codebook_size` is K."""

    codebook_size: int

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (B, n, D) -> quantized z (B, n, D) with straight-through gradients, ids (B, n), commitment loss."""
        ...

    def lookup(self, image_ids: Tensor) -> Tensor:
        """Ids (B, n) -> vectors (B, n, D)."""
        ...


class VQ(nn.Module):
    """Codebook learned by exponential moving averages, matched by cosine similarity (van den Oord 2017; Yu 2022).

    Entries whose average count falls below `revive` vectors per batch are restarted from the batch.
    """

    def __init__(self, codebook_size: int, embed_dim: int, commitment: float = 0.25, revive: float = 0.5) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codebook_size = codebook_size
        # Stated in full because three library defaults hurt here: no restarts, decay 0.8, rotation trick.
        self.inner = VectorQuantize(
            dim=embed_dim,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            decay=0.99,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=revive,
            commitment_weight=commitment,
            rotation_trick=False,
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            quantized, ids, loss = self.inner(z.float())
        return quantized, ids, loss.sum()

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self.inner.codebook[image_ids]


class TrainedVQ(nn.Module):
    """A `VQ` that learns no more. It needs its table alone, and not the library, whose import takes seconds."""

    def __init__(self, codebook_size: int, embed_dim: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        # The library's names, so that what was trained with it loads.
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

    @property
    def _table(self) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.inner._codebook).embed)[0]


class FiniteScalar(nn.Module):
    """Each of D numbers rounded to a few levels; no codebook to collapse (Mentzer 2023)."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ

        self.inner = FSQ(levels=list(levels))
        self.codebook_size = int(self.inner.codebook_size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            quantized, ids = self.inner(z.float())
        return quantized, ids.long(), z.new_zeros((), dtype=torch.float32)

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self.inner.indices_to_codes(image_ids)


def build_quantizer(
    name: str, codebook_size: int, embed_dim: int, fsq_levels: tuple[int, ...], commitment: float | None
) -> VQ | TrainedVQ | FiniteScalar:
    """Make a quantizer by its config name; with no commitment loss, one that only has to be filled.

    Raises:
        UserError: the name is unknown, or `fsq_levels` does not fit the other numbers.
    """
    if name == "vq":
        return TrainedVQ(codebook_size, embed_dim) if commitment is None else VQ(codebook_size, embed_dim, commitment)
    if name == "fsq":
        quantizer = FiniteScalar(fsq_levels)
        if (quantizer.codebook_size, len(fsq_levels)) != (codebook_size, embed_dim):
            raise UserError(
                f"fsq_levels {list(fsq_levels)} give {quantizer.codebook_size} ids of width {len(fsq_levels)}, "
                f"but codebook_size is {codebook_size} and embed_dim {embed_dim}; make them agree"
            )
        return quantizer
    raise UserError(f"unknown quantizer {name!r}; expected vq or fsq")
