"""z <-> image ids, by quantizers behind one small interface; most are from vector-quantize-pytorch.

All work on flat (B, n, D) vectors in fp32, outside autocast: half precision picks other entries, and the
library's image-map mode transposes flat ids.
"""

from math import prod
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.model.quantizers.frozen import TrainedFiniteScalar, TrainedSimVQ, TrainedVQ
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.model.quantizers.lfq import LookupFree
from dalle_mini_impl.util.errors import UserError

QUANTIZERS = ("vq", "fsq", "lfq", "simvq", "gumbel")


class Quantizer(Protocol):
    """What the image tokenizer needs of a quantizer; `codebook_size` is K."""

    codebook_size: int

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (B, n, D) -> quantized z (B, n, D) with straight-through gradients, ids (B, n), auxiliary loss."""
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


class SimVQ(nn.Module):
    """A fixed random codebook seen through one learned matrix, which moves all entries at once (Zhu et al. 2024)."""

    def __init__(self, codebook_size: int, embed_dim: int, commitment: float) -> None:
        super().__init__()
        from vector_quantize_pytorch import SimVQ as Library

        self.codebook_size = codebook_size
        self.inner = Library(
            dim=embed_dim,
            codebook_size=codebook_size,
            rotation_trick=False,
            input_to_quantize_commit_loss_weight=commitment,
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            return self.inner(z.float())

    def lookup(self, image_ids: Tensor) -> Tensor:
        return self.inner.codebook[image_ids]


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


def encoder_width(config: ImageTokenizerConfig) -> int:
    """What the encoder gives for each id: the D numbers of a vector, or with `gumbel` the logits of all K."""
    return config.codebook_size if config.quantizer == "gumbel" else config.embed_dim


AnyQuantizer: TypeAlias = (
    VQ | TrainedVQ | SimVQ | TrainedSimVQ | FiniteScalar | TrainedFiniteScalar | LookupFree | Gumbel
)


def build_quantizer(
    config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]
) -> AnyQuantizer:
    """Make the quantizer that a config names; with no commitment loss, one that only has to be filled.

    Raises:
        UserError: its name is unknown, or the config's other numbers do not fit it.
    """
    name, shape = config.quantizer, (config.codebook_size, config.embed_dim)
    if name == "vq":
        return VQ(*shape, commitment) if commitment is not None else TrainedVQ(*shape)
    if name == "simvq":
        return SimVQ(*shape, commitment) if commitment is not None else TrainedSimVQ(*shape)
    if name == "gumbel":
        return Gumbel(*shape)
    if name == "lfq":
        if config.codebook_size != 2**config.embed_dim:
            raise UserError(
                f"lfq has 2**embed_dim ids, but codebook_size is {config.codebook_size} and embed_dim "
                f"{config.embed_dim}; make them agree, such as 1024 and 10"
            )
        return LookupFree(config.embed_dim, commitment or 0.0, entropy)
    if name == "fsq":
        levels = config.fsq_levels
        if (prod(levels), len(levels)) != shape:
            raise UserError(
                f"fsq_levels {list(levels)} give {prod(levels)} ids of width {len(levels)}, but "
                f"codebook_size is {shape[0]} and embed_dim {shape[1]}; make them agree"
            )
        if min(levels) < 3:
            raise UserError(f"fsq_levels {list(levels)} were given; each must be at least 3")
        return FiniteScalar(levels) if commitment is not None else TrainedFiniteScalar(levels)
    raise UserError(f"unknown quantizer {name!r}; expected {', '.join(QUANTIZERS)}")
