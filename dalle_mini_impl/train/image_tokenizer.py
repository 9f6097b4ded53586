"""Stage 1: train the image tokenizer.

accelerate launch -m dalle_mini_impl.train.image_tokenizer --config configs/emoji/image_tokenizer.yaml
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.checkpoint import save_part
from dalle_mini_impl.config_io import to_dict
from dalle_mini_impl.data.augment import augmented_pixels, plain_pixels, random_changes
from dalle_mini_impl.data.store import PictureStore, open_store
from dalle_mini_impl.image_tokenizer import ImageTokenizer
from dalle_mini_impl.images import contact_sheet, save_png, to_images
from dalle_mini_impl.metrics import count_ids, perplexity, psnr, usage
from dalle_mini_impl.train import common
from dalle_mini_impl.train.average import Average
from dalle_mini_impl.train.optimizers import build_optimizers, set_rate
from dalle_mini_impl.train.runs import ImageTokenizerRun
from dalle_mini_impl.train.state import load_state, save_state

VALIDATION_PICTURES = 512


def reconstruction_loss(pixels: Tensor, target: Tensor, edge: float) -> Tensor:
    """L1 + L2 on pixels, plus `edge` × L1 on differences between neighbours.

    Args:
        pixels: (B, 3, H, W) decoded.
        target: (B, 3, H, W) wanted.
        edge: weight of the neighbour differences, in both directions.
    """
    error = pixels.float() - target
    sideways, downwards = error.diff(dim=-1), error.diff(dim=-2)
    return error.abs().mean() + error.square().mean() + edge * (sideways.abs().mean() + downwards.abs().mean())


def batch_pixels(store: PictureStore, step: int, rows: slice, config: ImageTokenizerRun) -> Tensor:
    """Augmented pixels (rows, 3, size, size) of one process's share of a step."""
    run = config.run
    indices = common.batch_indices(step, run.batch_size, len(store), run.seed)[rows]
    changes = random_changes(run.batch_size, config.augment, common.generator_for(run.seed, step))[rows]
    may_flip = np.array([store.entries[index].may_flip for index in indices])
    return augmented_pixels(store.take(indices), may_flip, changes, config.model.image_size)


def validate(
    accelerator: Accelerator, model: ImageTokenizer, store: PictureStore, sheet: Path | None
) -> dict[str, float]:
    """PSNR, codebook usage and perplexity on held-out pictures; writes a before/after sheet."""
    pixels, decoded, counts = [], [], torch.zeros(model.codebook_size, dtype=torch.int64)
    chosen = np.arange(len(store))[:VALIDATION_PICTURES]
    for chunk in np.array_split(chosen, max(1, len(chosen) // 64)):
        target = plain_pixels(store.take(chunk), model.config.image_size)
        ids = model.encode(target.to(accelerator.device))
        counts += count_ids(ids, model.codebook_size)
        pixels.append(target)
        decoded.append(model.decode(ids).cpu())
    before, after = torch.cat(pixels), torch.cat(decoded)
    if sheet is not None:
        pairs = torch.stack([before[:32], after[:32]], 1).flatten(0, 1)
        save_png(contact_sheet(to_images(pairs), columns=16), sheet)
    return {
        "psnr": float(psnr(after, before).mean()),
        "usage": usage(counts),
        "perplexity": perplexity(counts),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, validate, save; see `configs/emoji/image_tokenizer.yaml` for the settings."""
    config, resume = common.parse(ImageTokenizerRun, "Train the image tokenizer.", argv)
    run = config.run
    accelerator = common.start(run)
    with accelerator.main_process_first():
        train, validation = open_store(config.data, "train"), open_store(config.data, "validation")
    # Built after the Accelerator: the codebook decides at construction whether to sync between processes.
    tokenizer = ImageTokenizer(config.model, config.commitment).to(accelerator.device)
    average = Average(tokenizer, run.ema)
    model, *optimizers = accelerator.prepare(tokenizer, *build_optimizers(tokenizer, config.optimizer))
    counts = torch.zeros(config.model.codebook_size, dtype=torch.int64)
    first = load_state(accelerator, run, model, optimizers, average, counts=counts) if resume else 0
    journal = common.Journal(accelerator, run, config, first)
    forward = torch.compile(model) if run.compile else model

    for step in journal.steps():
        model.train()
        set_rate(optimizers, step, run.steps, config.optimizer)
        total = 0.0
        for rows in common.passes(accelerator, run):
            target = batch_pixels(train, step, rows, config).to(accelerator.device)
            with accelerator.autocast():
                result = forward(target)
            loss = reconstruction_loss(result.pixels, target, config.edge) + result.commitment
            accelerator.backward(loss / run.accumulation)
            total += float(loss.detach()) / run.accumulation
            counts += count_ids(result.image_ids, config.model.codebook_size)
        accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update(tokenizer, step)

        if common.due(step, run.log_every, run):
            figures = torch.tensor([total, float(psnr(result.pixels.detach(), target).mean())])
            means = accelerator.reduce(figures.to(accelerator.device), "mean").tolist()
            seen = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
            journal.log(step, loss=means[0], psnr=means[1], usage=usage(seen), perplexity=perplexity(seen))
        if (step + 1) * run.batch_size // len(train) > step * run.batch_size // len(train):
            counts.zero_()  # a new epoch: usage and perplexity are counted over one at a time
        if common.due(step, run.validate_every, run):
            sheet = due_sheet(step, config) if accelerator.is_main_process else None
            with average.standing_in(tokenizer):
                values = validate(accelerator, tokenizer, validation, sheet)
            journal.log(step, **{f"validation_{name}": value for name, value in values.items()})
            journal.say(f"step {step + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if common.due(step, run.save_every, run):
            save_state(accelerator, run, step, model, optimizers, average, counts=counts)

    if accelerator.is_main_process:
        with average.standing_in(tokenizer):
            identity = save_part(run.model_dir, "image_tokenizer", tokenizer, to_dict(config.model), {})
        print(f"image tokenizer {identity} written to {Path(run.model_dir) / 'image_tokenizer.safetensors'}")
    accelerator.end_training()


def due_sheet(step: int, config: ImageTokenizerRun) -> Path | None:
    """Where the before/after sheet of a step goes, when one is due."""
    due = common.due(step, config.run.sample_every, config.run)
    return Path(config.run.state_dir) / f"samples-{step + 1:06d}.png" if due else None


if __name__ == "__main__":
    common.command(main)
