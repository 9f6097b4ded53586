"""Stage 3: turn a set of pictures into image ids once, so that the transformer never sees a pixel.

accelerate launch -m dalle_mini_impl.train.encode --config configs/emoji/encode.yaml

Each training picture is encoded in several augmented variants, or as it is: with one fixed id sequence per
picture a transformer learns to recite, which some sets want (docs/log.md). Validation pictures are encoded plain.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import (
    LIKELY_IDS_FILE,
    PROBABILITIES_FILE,
    CacheHeader,
    write_entries,
    write_header,
)
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_folder


def variant_pixels(store: PictureStore, rows: np.ndarray, variant: int, config: EncodeRun, size: int) -> Tensor:
    """Pixels (B, 3, size, size) of one variant of some pictures; each depends on its own number alone."""
    rgba = store.take(rows)
    if config.variants == 0 or variant < 0:
        return pixels_on_white(rgba, size)
    draws = [random_changes(1, config.augment, loop.generator_for(config.seed, variant, int(row))) for row in rows]
    may_flip = np.array([store.entries[row].may_flip for row in rows])
    return augmented_pixels(rgba, may_flip, torch.cat(draws), size)


def encode_split(
    accelerator: Accelerator, tokenizer: ImageTokenizer, store: PictureStore, folder: Path, config: EncodeRun
) -> None:
    """Encode this process's share of a split into the memory-mapped file all processes write to."""
    files = [np.load(folder / name, mmap_mode="r+") for name, _ in contents(config)]
    mine = np.arange(len(store))[accelerator.process_index :: accelerator.num_processes]
    plain = folder.name != "train"
    chunks = np.array_split(mine, max(1, -(-len(mine) // config.batch_size)))
    for rows in tqdm(chunks, desc=folder.name, disable=not accelerator.is_main_process):
        for variant in range(files[0].shape[1]):
            pixels = variant_pixels(store, rows, -1 if plain else variant, config, tokenizer.config.image_size)
            pixels = pixels.to(accelerator.device)
            with accelerator.autocast():
                found = encoded(tokenizer, pixels, config)
            for file, values in zip(files, found, strict=True):
                file[rows, variant] = values.cpu().numpy()
    for file in files:
        file.flush()


def encoded(tokenizer: ImageTokenizer, pixels: Tensor, config: EncodeRun) -> tuple[Tensor, ...]:
    """What goes into each file of a split."""
    if config.soft_ids:
        return tokenizer.encode_soft(pixels, config.soft_ids, config.soft_temperature)
    return (tokenizer.encode(pixels),)


def contents(config: EncodeRun) -> list[tuple[str, str]]:
    """Name and kind of number of each file of a split."""
    files = [("image_ids.npy", "uint16")]
    return [*files, (LIKELY_IDS_FILE, "uint16"), (PROBABILITIES_FILE, "float16")] if config.soft_ids else files


def make_files(folder: Path, config: EncodeRun, pictures: int, grid: tuple[int, int]) -> None:
    """Make the files of a split, still without contents."""
    folder.mkdir(parents=True)
    variants = max(1, config.variants) if folder.name == "train" else 1
    for name, kind in contents(config):
        shape = (pictures, variants, *grid, *([] if name == "image_ids.npy" else [config.soft_ids]))
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=shape)


def report(folder: Path) -> str:
    """How sure the image tokenizer was of the training pictures' ids."""
    shares = np.load(folder / "train" / PROBABILITIES_FILE, mmap_mode="r")
    first, all_kept = (np.mean(part, dtype=np.float64) * part.shape[-1] for part in (shares[..., :1], shares))
    return (
        f"of {shares.shape[-1]} ids kept for each place, the likeliest has a probability of {first:.3f} "
        f"on average, all together {all_kept:.3f}"
    )


def main(config: EncodeRun) -> None:
    """Encode and save; see `configs/emoji/encode.yaml` for the settings."""
    if not config.out:
        raise UserError("out is empty; name the folder of the token cache")
    accelerator = loop.processes(mixed_precision=loop.mixed_precision("precision", config.precision))
    tokenizer, identity = load_image_tokenizer(config.model_dir, str(accelerator.device))
    if tokenizer.codebook_size > 2**16:
        raise UserError(f"the image tokenizer has {tokenizer.codebook_size} ids; a token cache holds at most {2**16}")
    if not 0 <= config.soft_ids <= tokenizer.codebook_size:
        raise UserError(
            f"soft_ids is {config.soft_ids}; expected 0 to {tokenizer.codebook_size}, the image tokenizer's ids"
        )
    if config.soft_temperature <= 0:
        raise UserError(f"soft_temperature is {config.soft_temperature:g}; expected more than 0")
    with accelerator.main_process_first():
        stores = {split: open_store(config.data, split) for split in ("train", "validation")}
    # All processes write to one place, which only the main one may make and, once all is there, rename.
    working = Path(f"{Path(config.out)}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(working, ignore_errors=True)
        for split, store in stores.items():
            make_files(working / split, config, len(store), tokenizer.config.grid)
            write_entries(working / split, store.entries)
    accelerator.wait_for_everyone()
    for split, store in stores.items():
        encode_split(accelerator, tokenizer, store, working / split, config)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        source = Path(config.data.source or config.data.store).name
        write_header(working, CacheHeader(identity, tokenizer.codebook_size, tokenizer.config.grid, source))
        with replace_folder(config.out) as folder:
            for path in list(working.iterdir()):
                path.rename(folder / path.name)
        working.rmdir()
        counts = ", ".join(f"{len(store)} {split}" for split, store in stores.items())
        print(f"encoded {counts} pictures with image tokenizer {identity} into {config.out}")
        if config.soft_ids:
            print(report(Path(config.out)))


if __name__ == "__main__":
    run_stage("encode", main)
