"""Stage 2: train the image tokenizer.

dalle train image-tokenizer --config configs/emoji/image_tokenizer.yaml
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.parts import check_not_needed, save_part
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import ImageTokenizerRun, RunConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import (
    ChangedPictures,
    change_pictures,
    changed_pixels,
    pixels_on,
    pixels_on_white,
    random_changes,
)
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.scenes.composer import Scene
from dalle_mini_impl.data.token_cache import check_codebook_size
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, psnr, usage
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, Reconstruction
from dalle_mini_impl.train.codebook_usage import CodebookUsage
from dalle_mini_impl.train.decoder_tuning import IdChanges, open_tuning
from dalle_mini_impl.train.divergence_guard import DivergenceGuard
from dalle_mini_impl.train.dvae_schedule import set_relaxation
from dalle_mini_impl.train.losses.adversary import Adversary, build_adversary
from dalle_mini_impl.train.losses.pictures import PictureLoss, build_picture_loss
from dalle_mini_impl.train.shared import loader, loop, memory
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.figures import Figures
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import batch_indices, continue_order
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.scene_rows import SceneRows, open_scenes, with_scenes
from dalle_mini_impl.train.shared.start import load_image_tokenizer_weights, open_start
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import contact_sheet, to_images
from dalle_mini_impl.util.save_picture import save_picture

VALIDATION_PICTURES = 512
"""Largest number of held-out pictures in a validation."""
VALIDATION_BATCH = 64
SHEET_PICTURES = 32
"""Pictures on the before/after sheet."""


def batch_pictures(
    store: PictureStore,
    scenes: SceneRows,
    step: int,
    rows: slice,
    config: ImageTokenizerRun,
    composed: Sequence[Scene] | None = None,
) -> ChangedPictures:
    """Some rows of a step's global batch, scenes last, and how they are augmented; `composed` are these scenes."""
    run = config.run
    scene_rows, pictures = scenes.split(rows)
    numbers = list(pictures.values())
    indices = batch_indices(step, scenes.pictures, len(store), run)[numbers]
    changes = random_changes(scenes.pictures, config.augment, loop.generator_for(run.seed, step))[numbers]
    parts = (store.take(indices), store.entries.may_flip(indices), changes)
    composed = [scenes.compose(step, row) for row in scene_rows] if composed is None else composed
    parts = with_scenes(*parts, composed)
    return change_pictures(*parts, config.augment.keep_inside)


def batch_pixels(
    store: PictureStore,
    scenes: SceneRows,
    step: int,
    rows: slice,
    config: ImageTokenizerRun,
    composed: Sequence[Scene] | None = None,
) -> Tensor:
    """Augmented pixels (rows, 3, height, width) of some rows of a step's global batch; see `batch_pictures`."""
    pictures = batch_pictures(store, scenes, step, rows, config, composed)
    return changed_pixels(pictures, config.model.size, config.augment.keep_inside)


def validate(
    accelerator: Accelerator, model: ImageTokenizer, store: PictureStore, sheet: Path | None
) -> dict[str, float]:
    """PSNR, codebook usage and perplexity on held-out pictures.

    Args:
        accelerator: the processes of the run.
        model: the image tokenizer.
        store: held-out pictures.
        sheet: file for a sheet of pictures before and after; None writes none.
    """
    pixels: list[Tensor] = []
    decoded: list[Tensor] = []
    counts = torch.zeros(model.codebook_size, dtype=torch.int64)
    rows = np.arange(len(store))[:VALIDATION_PICTURES]
    for chunk in np.array_split(rows, max(1, len(rows) // VALIDATION_BATCH)):
        target = pixels_on_white(store.take(chunk), model.config.size)
        ids = model.encode(target.to(accelerator.device))
        counts += count_ids(ids, model.codebook_size).cpu()
        pixels.append(target)
        decoded.append(model.decode(ids).cpu())
    before = torch.cat(pixels)
    after = torch.cat(decoded)
    if sheet is not None:
        pairs = torch.stack([before[:SHEET_PICTURES], after[:SHEET_PICTURES]], 1).flatten(0, 1)
        save_picture(contact_sheet(to_images(pairs), columns=16), sheet)
    return {
        "psnr": float(psnr(after, before).mean()),
        "usage": usage(counts),
        "perplexity": perplexity(counts),
    }


def pass_loss(
    result: Reconstruction, target: Tensor, picture_loss: PictureLoss, adversary: Adversary | None, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one pass, and figures for the log; adds the gradients of the discriminator, if there is one."""
    terms = picture_loss(result, target)
    loss = torch.stack(list(terms.values())).sum()
    error = result.pixels.detach() - target
    figures = {
        "loss": loss + result.auxiliary,
        **terms,
        "auxiliary": result.auxiliary,
        "error": error.abs().mean(),
        "psnr": psnr(result.pixels.detach(), target).mean(),
    }
    if adversary and step >= adversary.first_step:
        figures |= adversary.accumulate_gradients(target, result.pixels)
    if adversary and step >= adversary.generator_start:
        loss, figures["gan_weight"] = adversary.combined_loss(loss, result)
    return loss + result.auxiliary, figures


def sheet_path(step: int, run: RunConfig) -> Path | None:
    """File for the before/after sheet of a step; None if no sheet is due."""
    if not loop.is_due(step, run.sample_every, run):
        return None
    return Path(run.state_dir) / f"samples-{step + 1:06d}.png"


def mean_figures(accelerator: Accelerator, sums: dict[str, Tensor], passes: int) -> dict[str, Tensor]:
    """Means over all passes of all processes, from sums over the passes of each process; all must call this."""
    means = accelerator.reduce(torch.stack([value.float() for value in sums.values()]) / passes, "mean")
    return dict(zip(sums, means, strict=True))


def accepted_figures(guard: DivergenceGuard, figures: Figures, log: loop.TrainingLog) -> dict[str, float]:
    """The figures of the latest step; none if a step since the last look diverged, which is then rolled back."""
    means: dict[str, float] = {}
    for step, values in figures.look():
        means = {name: value for name, value in values.items() if name not in ("error", "norms")}
        if not guard.accepts(values["error"], means["loss"], *values["norms"]):
            log.message(guard.roll_back(step, means["loss"]))
            return {}
    return means


def main(config: ImageTokenizerRun, resume: bool = False) -> None:
    """Train, validate and save the image tokenizer.

    Args:
        config: settings; `configs/emoji/image_tokenizer.yaml` is an example.
        resume: continue from the last saved state.

    Raises:
        UserError: a setting is wrong, data or state cannot be read, or the training keeps diverging.
    """
    config = continue_order(config) if resume else config
    run = config.run
    check_ranges(config)
    check_codebook_size(config.model.codebook_size)
    accelerator = loop.start_run(run)
    if config.model.grid == (1, 1) and run.batch_size == accelerator.num_processes * run.accumulation:
        raise UserError(
            f"expected passes of two or more cells, whose spread norms divide by, got one picture of one cell; "
            f"raise run.batch_size, or model.image_size above model.factor {config.model.factor}"
        )
    with accelerator.main_process_first():
        start = open_start(config, resume)
        size = config.model.size
        train = open_store(config.data, "train", captions="optional", picture_size=size)
        validation = open_store(config.data, "validation", captions="optional", picture_size=size)
        scenes = open_scenes(config.scenes, run, train.frame)
    # Built after the Accelerator, because codebooks decide at construction whether to synchronise over processes.
    with memory.bounded_networks():
        tokenizer = ImageTokenizer(config.model, config.commitment, config.entropy)
    pass_bytes = memory.rows_in_pass(accelerator, run) * math.prod(size) * memory.PIXEL_BYTES
    memory.check_training_memory(accelerator, tokenizer, pass_bytes)
    load_image_tokenizer_weights(tokenizer, start)
    tokenizer.to(accelerator.device)
    tuning = open_tuning(config, start, tokenizer, train, str(accelerator.device))
    if not resume:
        check_not_needed(run.model_dir, "image_tokenizer", start.image_ids)
    ema = Ema(tokenizer, run.ema)
    model = accelerator.prepare(tokenizer)
    optimizers = build_optimizers(tokenizer, config.optimizer)
    forward = torch.compile(model) if run.compile else model
    picture_loss = build_picture_loss(config, accelerator.device)
    codebook_usage = CodebookUsage(accelerator, config.model)
    networks = [model]
    process_tensors = {"counts": codebook_usage.counts}
    if adversary := build_adversary(accelerator, config, tokenizer):
        networks = [model, adversary.network]
        optimizers = [*optimizers, adversary.optimizer]
        process_tensors["lecam"] = adversary.mean_logits
    everything = nn.ModuleList(map(accelerator.unwrap_model, networks))
    guard = DivergenceGuard(everything, optimizers, ema)
    process_tensors["guard"] = guard.state
    identities = start.identities | (tuning.identities if tuning else {})
    record = make_record(config, identities, train.version + scenes.version)
    first = load_state(accelerator, run, everything, optimizers, ema, record, **process_tensors) if resume else 0
    guard.save_good_state(first)
    log = loop.TrainingLog(accelerator, run, config, first)
    figures = Figures()
    # A GPU resamples the pictures itself; on a CPU that is work for those who make batches.
    make = batch_pictures if accelerator.device.type == "cuda" else batch_pixels
    slices = loop.pass_rows(accelerator, run)

    def make_batch(step: int, rows: slice) -> tuple[Any, IdChanges | None]:
        composed = [scenes.compose(step, row) for row in scenes.split(rows)[0]]
        pictures = make(train, scenes, step, rows, config, composed)
        return pictures, tuning.make_changes(step, rows, scenes, composed) if tuning else None

    batches = loader.passes(make_batch, slices, first, run, accelerator.device)

    for step, run in log.steps():
        config = replace(config, run=run)
        model.train()
        if adversary:
            adversary.set_schedule(run)
        set_learning_rate(optimizers, step, run.steps, config.optimizer, guard.rate_factor)
        sums: dict[str, Tensor] = {}
        for rows in loop.exchanging_in_last(slices, *networks):
            pictures, changes = next(batches)
            target = pixels_on(accelerator.device, pictures, config.model.size, config.augment.keep_inside)
            set_relaxation(tokenizer.quantizer, config, step, rows)
            with accelerator.autocast():
                result = forward(target, tuning.changed_ids(target, changes)) if tuning and changes else forward(target)
            loss, terms = pass_loss(result, target, picture_loss, adversary, step)
            accelerator.backward(loss / run.accumulation)
            codebook_usage.add(result.image_ids)
            sums = {name: value.detach() + sums.get(name, 0) for name, value in terms.items()}
        means = mean_figures(accelerator, sums, run.accumulation)
        norms = apply_gradients(accelerator, networks, optimizers, config.optimizer.clip)
        figures.add(step, {**means, "norms": torch.stack(norms)})
        ema.update(tokenizer, step)

        latest = accepted_figures(guard, figures, log) if loop.is_looked_at(step, run) else {}
        if latest and loop.is_due(step, run.log_every, run):
            log.record(step, **latest, **codebook_usage.figures())
        if (step + 1) * scenes.pictures // len(train) > step * scenes.pictures // len(train):
            codebook_usage.end_epoch(log)
        if loop.is_due(step, run.validate_every, run):
            sheet = sheet_path(step, run) if accelerator.is_main_process else None
            with ema.swapped_into(tokenizer):
                values = validate(accelerator, tokenizer, validation, sheet)
            log.record(step, **{f"validation_{name}": value for name, value in values.items()})
            log.message(f"step {step + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if loop.is_due(step, run.save_every, run):
            if latest:
                guard.save_good_state(step + 1)
            save_state(accelerator, run, step, everything, optimizers, ema, record, **process_tensors)

    if accelerator.is_main_process:
        with ema.swapped_into(tokenizer):
            identity = save_part(run.model_dir, "image_tokenizer", tokenizer, to_dict(config.model), start.identities)
        print(f"image tokenizer {identity} written to {Path(run.model_dir) / 'image_tokenizer.safetensors'}")
    log.close()


if __name__ == "__main__":
    run_stage("image-tokenizer", main)
