"""Stage 1: train the image tokenizer.

accelerate launch -m dalle_mini_impl.train.image_tokenizer --config configs/emoji/image_tokenizer.yaml
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.config.training import ImageTokenizerRun, RunConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.evaluate.metrics import count_ids, perplexity, psnr, usage
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, Reconstruction
from dalle_mini_impl.train.codebook_usage import CodebookUse
from dalle_mini_impl.train.divergence_guard import DivergenceGuard
from dalle_mini_impl.train.dvae_schedule import set_relaxation
from dalle_mini_impl.train.losses.adversary import Adversary, build_adversary
from dalle_mini_impl.train.losses.pictures import PictureLoss, build_picture_loss
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_rate
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.images import contact_sheet, save_png, to_images

VALIDATION_PICTURES = 512


def batch_pixels(store: PictureStore, step: int, rows: slice, config: ImageTokenizerRun) -> Tensor:
    """Augmented pixels (rows, 3, size, size) of one process's share of a step."""
    run = config.run
    indices = loop.batch_indices(step, run.batch_size, len(store), run.seed)[rows]
    changes = random_changes(run.batch_size, config.augment, loop.generator_for(run.seed, step))[rows]
    may_flip = np.array([store.entries[index].may_flip for index in indices])
    return augmented_pixels(store.take(indices), may_flip, changes, config.model.image_size)


def validate(
    accelerator: Accelerator, model: ImageTokenizer, store: PictureStore, sheet: Path | None
) -> dict[str, float]:
    """PSNR, codebook usage and perplexity on held-out pictures; writes a before/after sheet."""
    pixels, decoded, counts = [], [], torch.zeros(model.codebook_size, dtype=torch.int64)
    chosen = np.arange(len(store))[:VALIDATION_PICTURES]
    for chunk in np.array_split(chosen, max(1, len(chosen) // 64)):
        target = pixels_on_white(store.take(chunk), model.config.image_size)
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


def pass_loss(
    result: Reconstruction, target: Tensor, picture_loss: PictureLoss, adversary: Adversary | None, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one pass, and figures for the log. Where there is an adversary, it gathers its own gradients here."""
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
    if adversary and step >= adversary.first:
        figures |= adversary.learn(target, result.pixels)
    if adversary and step >= adversary.acts_from:
        loss, figures["gan_weight"] = adversary.joined(loss, result)
    return loss + result.auxiliary, figures


def main(config: ImageTokenizerRun, resume: bool = False) -> None:
    """Train, validate, save; see `configs/emoji/image_tokenizer.yaml` for the settings."""
    run = config.run
    accelerator = loop.start(run)
    with accelerator.main_process_first():
        train, validation = open_store(config.data, "train"), open_store(config.data, "validation")
    # Built after the Accelerator: the codebook decides at construction whether to sync between processes.
    tokenizer = ImageTokenizer(config.model, config.commitment, config.entropy).to(accelerator.device)
    average = Ema(tokenizer, run.ema)
    model, *optimizers = accelerator.prepare(tokenizer, *build_optimizers(tokenizer, config.optimizer))
    forward = torch.compile(model) if run.compile else model
    picture_loss = build_picture_loss(config, accelerator.device)
    use, networks = CodebookUse(accelerator, config.model), [model]
    own = {"counts": use.counts}
    if adversary := build_adversary(accelerator, config, tokenizer):
        networks, optimizers = [model, adversary.network], [*optimizers, adversary.optimizer]
        own["lecam"] = adversary.usual
    everything = nn.ModuleList(map(accelerator.unwrap_model, networks))
    guard = DivergenceGuard(everything, optimizers, average)
    own["guard"] = guard.watch
    first = load_state(accelerator, run, everything, optimizers, average, **own) if resume else 0
    guard.keep(first)
    log = loop.TrainingLog(accelerator, run, config, first)

    for step, run in log.steps():
        config = replace(config, run=run)
        model.train()
        if adversary:
            adversary.follow(run)
        set_rate(optimizers, step, run.steps, config.optimizer, guard.rate)
        sums: dict[str, Tensor] = {}
        for rows in loop.passes(accelerator, run):
            target = batch_pixels(train, step, rows, config).to(accelerator.device)
            set_relaxation(tokenizer.quantizer, config, step, rows)
            with accelerator.autocast():
                result = forward(target)
            loss, figures = pass_loss(result, target, picture_loss, adversary, step)
            accelerator.backward(loss / run.accumulation)
            use.add(result.image_ids)
            sums = {name: value.detach() + sums.get(name, 0) for name, value in figures.items()}
        means = mean_figures(accelerator, sums, run.accumulation)
        norms = [accelerator.clip_grad_norm_(network.parameters(), config.optimizer.clip) for network in networks]
        if accepted := guard.accepts(means.pop("error"), means["loss"], *map(float, norms)):
            for optimizer in optimizers:
                optimizer.step()
            average.update(tokenizer, step)
        else:
            log.say(guard.roll_back(step, means["loss"]))
        for optimizer in optimizers:
            optimizer.zero_grad()

        if accepted and loop.due(step, run.log_every, run):
            log.log(step, **means, **use.figures())
        if (step + 1) * run.batch_size // len(train) > step * run.batch_size // len(train):
            use.end_epoch(log)
        if loop.due(step, run.validate_every, run):
            sheet = due_sheet(step, run) if accelerator.is_main_process else None
            with average.swapped_into(tokenizer):
                values = validate(accelerator, tokenizer, validation, sheet)
            log.log(step, **{f"validation_{name}": value for name, value in values.items()})
            log.say(f"step {step + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if loop.due(step, run.save_every, run):
            if accepted:
                guard.keep(step + 1)
            save_state(accelerator, run, step, everything, optimizers, average, **own)

    if accelerator.is_main_process:
        with average.swapped_into(tokenizer):
            identity = save_part(run.model_dir, "image_tokenizer", tokenizer, to_dict(config.model), {})
        print(f"image tokenizer {identity} written to {Path(run.model_dir) / 'image_tokenizer.safetensors'}")
    log.close()


def due_sheet(step: int, run: RunConfig) -> Path | None:
    """Where the before/after sheet of a step goes, when one is due."""
    due = loop.due(step, run.sample_every, run)
    return Path(run.state_dir) / f"samples-{step + 1:06d}.png" if due else None


def mean_figures(accelerator: Accelerator, sums: dict[str, Tensor], passes: int) -> dict[str, float]:
    """Figures summed over the passes of this process -> their means over all passes of all processes."""
    means = accelerator.reduce(torch.stack([value.float() for value in sums.values()]) / passes, "mean")
    return dict(zip(sums, means.tolist(), strict=True))


if __name__ == "__main__":
    run_stage("image-tokenizer", main)
