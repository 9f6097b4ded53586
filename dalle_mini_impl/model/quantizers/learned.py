"""Trainable quantizers, z <-> image ids, with one interface; most wrap vector-quantize-pytorch.

All work on flat (B, n, D) vectors in fp32, outside autocast: half precision selects other entries, and the library's
mode for image maps transposes flat ids.
"""

from math import prod
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from dalle_mini_impl.config.model import ImageTokenizerConfig
from dalle_mini_impl.model.quantizers.frozen import FrozenFiniteScalar, FrozenSimVQ, FrozenVQ
from dalle_mini_impl.model.quantizers.gumbel import Gumbel
from dalle_mini_impl.model.quantizers.lfq import LookupFree
from dalle_mini_impl.util.errors import UserError

QUANTIZERS = ("vq", "fsq", "lfq", "simvq", "gumbel")


class Quantizer(Protocol):
    """The interface of a quantizer; `codebook_size` is K."""

    codebook_size: int

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (B, n, D) -> quantized z (B, n, D) with straight-through gradients, ids (B, n), auxiliary loss."""
        ...

    def lookup(self, image_ids: Tensor) -> Tensor:
        """Ids (B, n) -> vectors (B, n, D)."""
        ...


class VQ(nn.Module):
    """Codebook of exponential moving averages, matched by cosine similarity (van den Oord 2017; Yu 2022).

    Args:
        codebook_size: K.
        embed_dim: D.
        commitment: weight of the commitment loss.
        min_usage: entries used less often than so many times per batch, on average, are replaced by vectors of the
            batch.
    """

    def __init__(self, codebook_size: int, embed_dim: int, commitment: float = 0.25, min_usage: float = 0.5) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codebook_size = codebook_size
        # All settings are explicit. Three defaults of the library are bad here: no replaced entries, decay 0.8, and the
        # rotation trick.
        self.inner = VectorQuantize(
            dim=embed_dim,
            codebook_size=codebook_size,
            use_cosine_sim=True,
            decay=0.99,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=min_usage,
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
    """A fixed random codebook times one learned matrix, so that all entries move together (Zhu et al. 2024)."""

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
    """Finite scalar quantization: each of D channels rounded to a few levels, without a codebook (Mentzer 2023)."""

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
    """Output channels of the encoder: D, or with `gumbel` the K logits."""
    return config.codebook_size if config.quantizer == "gumbel" else config.embed_dim


AnyQuantizer: TypeAlias = VQ | FrozenVQ | SimVQ | FrozenSimVQ | FiniteScalar | FrozenFiniteScalar | LookupFree | Gumbel


def build_quantizer(
    config: ImageTokenizerConfig, commitment: float | None, entropy: tuple[float, float]
) -> AnyQuantizer:
    """Build the quantizer of a config: a trainable one, or with commitment None one for trained weights.

    Raises:
        UserError: its name is unknown, or other values of the config do not fit it.
    """
    name, shape = config.quantizer, (config.codebook_size, config.embed_dim)
    if name == "vq":
        return VQ(*shape, commitment) if commitment is not None else FrozenVQ(*shape)
    if name == "simvq":
        return SimVQ(*shape, commitment) if commitment is not None else FrozenSimVQ(*shape)
    if name == "gumbel":
        return Gumbel(*shape)
    if name == "lfq":
        if config.codebook_size != 2**config.embed_dim:
            raise UserError(
                f"expected codebook_size 2**embed_dim with lfq, got codebook_size {config.codebook_size} and "
                f"embed_dim {config.embed_dim}; make them agree, such as 1024 and 10"
            )
        return LookupFree(config.embed_dim, commitment or 0.0, entropy)
    if name == "fsq":
        levels = config.fsq_levels
        if (prod(levels), len(levels)) != shape:
            raise UserError(
                f"expected codebook_size {prod(levels)} and embed_dim {len(levels)} with fsq_levels {list(levels)}, "
                f"got {shape[0]} and {shape[1]}; make them agree"
            )
        if min(levels) < 3:
            raise UserError(f"expected fsq_levels of at least 3, got {list(levels)}; change them")
        return FiniteScalar(levels) if commitment is not None else FrozenFiniteScalar(levels)
    raise UserError(f"expected quantizer {', '.join(QUANTIZERS)}, got {name!r}; change it")
