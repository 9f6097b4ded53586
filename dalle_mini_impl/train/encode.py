"""Stage 3: turn a set of pictures into image ids once, so that the transformer never sees a pixel.

accelerate launch -m dalle_mini_impl.train.encode --config configs/emoji/encode.yaml

Each training picture is encoded in several augmented variants, or as it is: with one fixed id sequence per
picture a transformer learns to recite, which some sets want (docs/log.md). Validation pictures are encoded plain.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dalle_mini_impl.checkpoint import load_image_tokenizer
from dalle_mini_impl.data.augment import augmented_pixels, plain_pixels, random_changes
from dalle_mini_impl.data.store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import CacheHeader, write_entries, write_header
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.files import replace_folder
from dalle_mini_impl.image_tokenizer import ImageTokenizer
from dalle_mini_impl.train import common
from dalle_mini_impl.train.runs import EncodeRun


def variant_pixels(store: PictureStore, rows: np.ndarray, variant: int, config: EncodeRun, size: int) -> Tensor:
    """Pixels (B, 3, size, size) of one variant of some pictures; each depends on its own number alone."""
    rgba = store.take(rows)
    if config.variants == 0 or variant < 0:
        return plain_pixels(rgba, size)
    draws = [random_changes(1, config.augment, common.generator_for(config.seed, variant, int(row))) for row in rows]
    may_flip = np.array([store.entries[row].may_flip for row in rows])
    return augmented_pixels(rgba, may_flip, torch.cat(draws), size)


def encode_split(
    accelerator: Accelerator, tokenizer: ImageTokenizer, store: PictureStore, folder: Path, config: EncodeRun
) -> None:
    """Encode this process's share of a split into the memory-mapped file all processes write to."""
    ids = np.load(folder / "image_ids.npy", mmap_mode="r+")
    mine = np.arange(len(store))[accelerator.process_index :: accelerator.num_processes]
    plain = folder.name != "train"
    chunks = np.array_split(mine, max(1, -(-len(mine) // config.batch_size)))
    for rows in tqdm(chunks, desc=folder.name, disable=not accelerator.is_main_process):
        for variant in range(ids.shape[1]):
            pixels = variant_pixels(store, rows, -1 if plain else variant, config, tokenizer.config.image_size)
            with accelerator.autocast():
                ids[rows, variant] = tokenizer.encode(pixels.to(accelerator.device)).cpu().numpy()
    ids.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Encode and save; see `configs/emoji/encode.yaml` for the settings."""
    config, _ = common.parse(EncodeRun, "Turn pictures into image ids.", argv)
    if not config.out:
        raise UserError("out is empty; name the folder of the token cache")
    accelerator = common.processes(mixed_precision=common.mixed_precision("precision", config.precision))
    tokenizer, identity = load_image_tokenizer(config.model_dir, str(accelerator.device))
    if tokenizer.codebook_size > 2**16:
        raise UserError(f"the image tokenizer has {tokenizer.codebook_size} ids; a token cache holds at most {2**16}")
    with accelerator.main_process_first():
        stores = {split: open_store(config.data, split) for split in ("train", "validation")}
    # All processes write to one place, which only the main one may make and, once all is there, rename.
    working = Path(f"{Path(config.out)}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(working, ignore_errors=True)
        for split, store in stores.items():
            variants = max(1, config.variants) if split == "train" else 1
            (working / split).mkdir(parents=True)
            shape = (len(store), variants, *tokenizer.config.grid)
            np.lib.format.open_memmap(working / split / "image_ids.npy", mode="w+", dtype=np.uint16, shape=shape)
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


if __name__ == "__main__":
    common.command(main)
