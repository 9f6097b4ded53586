"""Stage 3: encode all pictures into image ids once, so that the transformer trains without pixels.

dalle train encode --config configs/emoji/encode.yaml

Each training picture is encoded in several augmented variants, or once without augmentation: with a single id sequence
per picture a transformer memorises it, which small sets may want (docs/log.md). Validation pictures are not augmented.
Where the config names a picture store, pictures come from there; otherwise they are read straight from their source
(`encode_source.py`).
"""

import contextlib
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes
from dalle_mini_impl.data.entries import write_entries
from dalle_mini_impl.data.picture_store import PictureStore, open_store, store_version
from dalle_mini_impl.data.token_cache import CONTENTS, check_cache_replaceable, check_codebook_size, write_header
from dalle_mini_impl.train.encode_source import encode_source
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.encoding import (
    Encoder,
    describe_cache,
    encode_batch,
    file_shapes,
    file_types,
    is_augmented,
    summary,
)
from dalle_mini_impl.train.shared.launch_settings import check_launch_settings, mixed_precision
from dalle_mini_impl.train.shared.memory import PIXEL_BYTES
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder
from dalle_mini_impl.util.memory import check_memory

NOT_AUGMENTED = -1
"""Variant number of a picture without augmentation."""
ZEROS = bytes(2**20)
"""Written at a time where the operating system cannot reserve space."""


def variant_pixels(
    store: PictureStore, rows: np.ndarray, variant: int, config: EncodeRun, size: tuple[int, int]
) -> Tensor:
    """One variant of some pictures; a picture's variant depends on its row, not on the batch.

    Args:
        store: the pictures.
        rows: (B,) rows of the store.
        variant: number of the variant; `NOT_AUGMENTED` for none.
        config: settings of the stage.
        size: height and width of the result.

    Returns:
        Pixels (B, 3, *size) in [-1, 1].
    """
    rgba = store.take(rows)
    if not is_augmented(variant, config):
        return pixels_on_white(rgba, size)
    changes = [random_changes(1, config.augment, loop.generator_for(config.seed, variant, int(row))) for row in rows]
    may_flip = store.entries.may_flip(rows)
    return augmented_pixels(rgba, may_flip, torch.cat(changes), size, config.augment.keep_inside)


def encode_split(
    accelerator: Accelerator, encoder: Encoder, store: PictureStore, folder: Path, config: EncodeRun
) -> None:
    """Encode this process's pictures of a split into the memory-mapped files, to which all processes write."""
    files = [np.load(folder / name, mmap_mode="r+") for name, _ in file_types(config)]
    own_rows = np.arange(len(store))[accelerator.process_index :: accelerator.num_processes]
    augment = folder.name == "train"
    # A split may have fewer pictures than there are processes; then some have none.
    chunks = np.array_split(own_rows, -(-len(own_rows) // config.batch_size)) if len(own_rows) else []
    for rows in tqdm(chunks, desc=folder.name, disable=not accelerator.is_main_process):
        for variant in range(files[0].shape[1]):
            size = encoder.tokenizer.config.size
            pixels = variant_pixels(store, rows, variant if augment else NOT_AUGMENTED, config, size)
            pixels = pixels.to(accelerator.device)
            with accelerator.autocast():
                encoded = encode_batch(encoder, pixels, config)
            for file, values in zip(files, encoded, strict=True):
                file[rows, variant] = values.cpu().numpy()
    for file in files:
        file.flush()


def create_files(folder: Path, config: EncodeRun, pictures: int, grid: tuple[int, int], embed_dim: int = 0) -> None:
    """Create the files of a split at their full size, to be filled by `encode_split`.

    Their space on the disk is reserved: on a full disk, writing to a memory map would kill the process.

    Raises:
        OSError: there is not enough space.
    """
    folder.mkdir()
    for name, (number_type, of_picture) in file_shapes(config, grid, embed_dim).items():
        shape = (pictures, *(of_picture if folder.name == "train" else (1, *of_picture[1:])))
        with (folder / name).open("wb") as file:
            header = {"descr": np.dtype(number_type).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            reserve_space(file, math.prod(shape) * np.dtype(number_type).itemsize)


def reserve_space(file: BinaryIO, size: int) -> None:
    """Append `size` zero bytes to a file, in space that is reserved on the disk.

    Raises:
        OSError: there is not enough space.
    """
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for start in range(0, size, len(ZEROS)):  # macOS, Windows
        file.write(ZEROS[: size - start])


def encode_store(accelerator: Accelerator, encoder: Encoder, config: EncodeRun) -> None:
    """Encode the pictures of a store, which is built first if it is missing, and write the token cache."""
    picture_size = encoder.tokenizer.config.size
    with accelerator.main_process_first():
        stores = {split: open_store(config.data, split, picture_size=picture_size) for split in ("train", "validation")}
    rows = min(config.batch_size, max(map(len, stores.values())))
    check_memory(rows * math.prod(picture_size) * PIXEL_BYTES, f"a batch of {rows:,} pictures", "lower batch_size")
    with contextlib.ExitStack() as outputs:
        # All processes write into one folder, which only the main process creates and, once it is complete, renames.
        folder_name = [""]
        if accelerator.is_main_process:
            folder_name = [str(outputs.enter_context(replace_folder(config.out, CONTENTS)))]
            for split, store in stores.items():
                create_files(Path(folder_name[0], split), config, len(store), encoder.grid, encoder.embed_dim)
                write_entries(Path(folder_name[0], split), store.entries)
        broadcast_object_list(folder_name)
        folder = Path(folder_name[0])
        for split, store in stores.items():
            encode_split(accelerator, encoder, store, folder / split, config)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            path = os.path.relpath(os.path.realpath(config.data.store), os.path.realpath(config.out))
            version = store_version(Path(config.data.store))
            write_header(folder, describe_cache(folder, config, encoder, path, version))
    if accelerator.is_main_process:
        print(summary({split: len(store) for split, store in stores.items()}, encoder.identity, config))


def check_settings(config: EncodeRun) -> None:
    """Refuse settings that are out of range, and an output that is no cache, before anything is loaded.

    Raises:
        UserError: naming the setting.
    """
    if not config.out:
        raise UserError("out is empty; name the folder of the token cache")
    check_ranges(config)
    if config.first_unchanged and config.variants < 2:
        raise UserError(f"expected variants of 2 or more with first_unchanged, got {config.variants}; raise it")
    if config.ray_workers and not config.ray:
        raise UserError(f"expected ray=ADDRESS with ray_workers, got ray_workers={config.ray_workers} alone; add it")
    check_cache_replaceable(config.out)
    if not config.data.store and not config.data.paths:
        raise UserError("expected data.source, or data.store with decoded pictures, got neither; set one")
    if config.ray and config.data.store:
        raise UserError("expected ray without data.store, got both; leave one out")


def main(config: EncodeRun) -> None:
    """Encode both splits and write the token cache.

    Raises:
        UserError: a setting is wrong, pictures, image tokenizer or scorer cannot be read, or the cache cannot be
            written, or would replace anything but a cache.
    """
    check_settings(config)
    check_launch_settings()
    accelerator = loop.make_accelerator(mixed_precision=mixed_precision("precision", config.precision))
    encoder = Encoder.load(config, str(accelerator.device))
    codebook_size = encoder.tokenizer.codebook_size
    check_codebook_size(codebook_size)
    if not 0 <= config.soft_ids <= codebook_size:
        raise UserError(f"soft_ids is {config.soft_ids}; expected 0 to {codebook_size}, the image tokenizer's ids")
    encode = encode_store if config.data.store else encode_source
    encode(accelerator, encoder, config)


if __name__ == "__main__":
    run_stage("encode", main)
