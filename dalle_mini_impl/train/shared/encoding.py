"""What encoding pictures to a token cache is made of, whether they come from a store or straight from their source."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import read_part
from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.data.entries import ENTRY_FILES
from dalle_mini_impl.data.token_cache import (
    IMAGE_EMBED_FILE,
    IMAGE_IDS_FILE,
    LIKELY_IDS_FILE,
    PROBABILITIES_FILE,
    CacheHeader,
)
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.train.shared.picture_embed import load_scorer
from dalle_mini_impl.util.files import file_digest


@dataclass(frozen=True)
class Encoder:
    """What pictures are encoded with."""

    tokenizer: ImageTokenizer
    identity: str
    """Of the image tokenizer, as `Part.image_ids`."""
    scorer: Scorer | None = None
    """With `image_embed`, what embeds them."""
    scorer_identity: str = ""

    @classmethod
    def load(cls, config: EncodeRun, device: str) -> "Encoder":
        """Load what a config asks for from its checkpoint folder.

        Raises:
            UserError: a part is missing or damaged.
        """
        tokenizer, _ = load_image_tokenizer(config.model_dir, device)
        identity = read_part(Path(config.model_dir), "image_tokenizer", weights=False).image_ids
        return cls(tokenizer, identity, *(load_scorer(config.model_dir, device) if config.image_embed else ()))

    @property
    def grid(self) -> tuple[int, int]:
        """Token grid (h, w)."""
        return self.tokenizer.config.grid

    @property
    def embed_dim(self) -> int:
        """D, width of the embeddings; 0 without scorer."""
        return self.scorer.model.embed_dim if self.scorer else 0


@torch.no_grad()
def encode_batch(encoder: Encoder, pixels: Tensor, config: EncodeRun) -> tuple[Tensor, ...]:
    """Encode pixels (B, 3, H, W) into one tensor for each of `file_types`."""
    encoded: tuple[Tensor, ...]
    if config.soft_ids:
        encoded = encoder.tokenizer.encode_soft(pixels, config.soft_ids, config.soft_temperature)
    else:
        encoded = (encoder.tokenizer.encode(pixels),)
    return encoded if encoder.scorer is None else (*encoded, encoder.scorer.embed_pixels(pixels))


def is_augmented(variant: int, config: EncodeRun) -> bool:
    """Whether a variant of a training picture is augmented."""
    return config.variants > 0 and variant >= (1 if config.first_unchanged else 0)


def file_types(config: EncodeRun) -> list[tuple[str, str]]:
    """Name and number type of each file of a split."""
    files = [(IMAGE_IDS_FILE, "uint16")]
    files += [(LIKELY_IDS_FILE, "uint16"), (PROBABILITIES_FILE, "float16")] if config.soft_ids else []
    return [*files, (IMAGE_EMBED_FILE, "float16")] if config.image_embed else files


def file_shapes(config: EncodeRun, grid: tuple[int, int], embed_dim: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number type of each file of a split, and shape (variants, …) of what it holds of a training picture.

    Args:
        config: settings of the stage.
        grid: (h, w).
        embed_dim: D; used with `image_embed`.
    """
    shapes = {IMAGE_IDS_FILE: grid, IMAGE_EMBED_FILE: (embed_dim,)}
    variants = max(1, config.variants)
    return {
        name: (number_type, (variants, *shapes.get(name, (*grid, config.soft_ids))))
        for name, number_type in file_types(config)
    }


def describe_certainty(folder: Path) -> str:
    """One line on the probabilities of the training pictures' ids."""
    probabilities = np.load(folder / "train" / PROBABILITIES_FILE, mmap_mode="r")
    ids = probabilities.shape[-1]
    likeliest = np.mean(probabilities[..., :1], dtype=np.float64)
    total = np.mean(probabilities, dtype=np.float64) * ids
    return (
        f"of {ids} ids stored for each cell, the likeliest has a probability of {likeliest:.3f} "
        f"on average, all together {total:.3f}"
    )


def describe_cache(
    folder: Path, config: EncodeRun, encoder: Encoder, store: str = "", store_version: str = ""
) -> CacheHeader:
    """Header of a cache whose other files are complete in `folder`; see `CacheHeader` for the store."""
    names = [*ENTRY_FILES, *(name for name, _ in file_types(config))]
    paths = [f"{split}/{name}" for split in ("train", "validation") for name in names]
    return CacheHeader(
        image_tokenizer=encoder.identity,
        codebook_size=encoder.tokenizer.codebook_size,
        grid=encoder.grid,
        source=", ".join(Path(path).name for path in config.data.paths or (config.data.store,)),
        store=store,
        store_version=store_version,
        checksums={path: file_digest(folder / path) for path in paths},
        scorer=encoder.scorer_identity,
        first_unchanged=config.first_unchanged,
    )


def summary(counts: Mapping[str, int], identity: str, config: EncodeRun) -> str:
    """What was encoded, when the cache is in its place.

    Args:
        counts: split -> number of pictures.
        identity: of the image tokenizer.
        config: settings of the stage.
    """
    shown = ", ".join(f"{count} {split}" for split, count in counts.items())
    lines = [f"encoded {shown} pictures with image tokenizer {identity} into {config.out}"]
    return "\n".join([*lines, describe_certainty(Path(config.out))] if config.soft_ids else lines)
