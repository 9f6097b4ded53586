"""What encoding pictures to a token cache is made of, whether they come from a store or straight from their source."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.data.entries import ENTRY_FILES
from dalle_mini_impl.data.token_cache import IMAGE_IDS_FILE, LIKELY_IDS_FILE, PROBABILITIES_FILE, CacheHeader
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.util.files import file_digest


def encode_batch(tokenizer: ImageTokenizer, pixels: Tensor, config: EncodeRun) -> tuple[Tensor, ...]:
    """Encode pixels (B, 3, H, W) into one tensor for each of `file_types`."""
    if config.soft_ids:
        return tokenizer.encode_soft(pixels, config.soft_ids, config.soft_temperature)
    return (tokenizer.encode(pixels),)


def file_types(config: EncodeRun) -> list[tuple[str, str]]:
    """Name and number type of each file of a split."""
    files = [(IMAGE_IDS_FILE, "uint16")]
    return [*files, (LIKELY_IDS_FILE, "uint16"), (PROBABILITIES_FILE, "float16")] if config.soft_ids else files


def file_shapes(config: EncodeRun, grid: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Number type of each file of a split, and shape (variants, h, w, …) of what it holds of a training picture."""
    variants = max(1, config.variants)
    return {
        name: (number_type, (variants, *grid, *([] if name == IMAGE_IDS_FILE else [config.soft_ids])))
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
    folder: Path, config: EncodeRun, tokenizer: ImageTokenizer, identity: str, store: str = "", store_version: str = ""
) -> CacheHeader:
    """Header of a cache whose other files are complete in `folder`; see `CacheHeader` for the store."""
    names = [*ENTRY_FILES, *(name for name, _ in file_types(config))]
    paths = [f"{split}/{name}" for split in ("train", "validation") for name in names]
    return CacheHeader(
        image_tokenizer=identity,
        codebook_size=tokenizer.codebook_size,
        grid=tokenizer.config.grid,
        source=", ".join(Path(path).name for path in config.data.paths or (config.data.store,)),
        store=store,
        store_version=store_version,
        checksums={path: file_digest(folder / path) for path in paths},
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
