"""Stage 7: train the diffusion decoder, which draws pictures of image embeddings (DALL-E 2), or its upsampler.

dalle train diffusion-decoder --config configs/emoji/diffusion_decoder.yaml

The pictures of the set are embedded and, for latents, encoded once, before the first step.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.config.diffusion import KINDS, DiffusionDecoderRun
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.picture_store import open_store
from dalle_mini_impl.model.diffusion import PictureDenoiser, PictureUpsampler
from dalle_mini_impl.train.diffusion_batch import (
    BatchMaker,
    DiffusionBatch,
    DiffusionLoss,
    Encoded,
    Fixed,
    loss_inputs,
    measure_channels,
    to_device,
)
from dalle_mini_impl.train.shared import loader, loop, memory
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.figures import Figures
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import continue_order
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.unclip.diffusion_decoder import PART, DiffusionDecoder, Wanted, check_decoder
from dalle_mini_impl.unclip.schedule import check_steps
from dalle_mini_impl.unclip.upsampler import UPSAMPLER, Upsampler
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import contact_sheet, to_images
from dalle_mini_impl.util.save_picture import save_picture

VALIDATION_PICTURES = 64
"""Largest number of held-out pictures in a validation."""
SHEET_PICTURES = 8
"""Held-out pictures on a sheet of samples."""
MEASURED_PICTURES = 1000
"""Pictures over which the size of latents is measured."""
ACTIVATION_BYTES = 32
"""Bytes that a pass takes for each channel of each pixel or cell in each block, at the least."""


def check_config(config: DiffusionDecoderRun) -> None:
    """Refuse settings that nothing can be trained or drawn with.

    Raises:
        UserError: naming one.
    """
    check_ranges(config)
    if config.model.kind not in KINDS:
        raise UserError(f"expected model.kind {' or '.join(KINDS)}, got {config.model.kind!r}; change it")
    check_decoder(config.model, config.model.kind)
    if config.model.kind == "upsampler" and config.model.space != "pixels":
        raise UserError(
            f"expected model.space pixels for an upsampler, got {config.model.space}: latents are decoded; leave it out"
        )
    check_steps(config.sampling.sampler, config.sampling.steps, "sampling.")


@torch.no_grad()
def validate(losses: DiffusionLoss, maker: BatchMaker, fixed: Fixed, encoded: Encoded, device: torch.device) -> float:
    """The loss over held-out pictures, whose noise and times are the same in each validation.

    Args:
        losses: with the weights to be validated.
        maker: of held-out batches.
        fixed: the other parts.
        encoded: the held-out pictures, on the device.
        device: of the run.
    """
    batch = maker.held_out(min(VALIDATION_PICTURES, len(maker.store)))
    parts = [part.split(maker.config.run.batch_size) for part in batch]
    total = torch.zeros((), device=device)
    for number in range(len(parts[0])):
        part = DiffusionBatch(*(one[min(number, len(one) - 1)].to(device) for one in parts))
        total += losses(*loss_inputs(fixed, encoded, part), part) * len(part.indices)
    return float(total / len(batch.indices))


@torch.no_grad()
def write_samples(
    config: DiffusionDecoderRun,
    network: PictureDenoiser | PictureUpsampler,
    fixed: Fixed,
    pictures: Tensor,
    embed: Tensor,
    path: Path,
) -> float | None:
    """Write a sheet of held-out pictures, and below each what is drawn of its embedding, or of it reduced.

    Args:
        config: settings of the stage.
        network: with the weights to be used.
        fixed: the other parts.
        pictures: (n, C, H, W), pixels or codebook vectors.
        embed: (n, D) of these.
        path: of the sheet.

    Returns:
        The mean cosine of the embeddings of what is drawn with those that it is drawn of; None for an upsampler.
    """
    seeds, cosine = range(len(pictures)), None
    if isinstance(network, PictureUpsampler):
        low = F.interpolate(pictures, (network.low_side,) * 2, mode="bilinear", antialias=True)
        upsampler = Upsampler(network, config.model.prediction, config.sampling)
        pixels = upsampler.enlarge(low, [loop.generator_for(seed) for seed in seeds])
    else:
        assert fixed.scorer is not None
        parts = (fixed.scorer, fixed.text_tokenizer, fixed.image_tokenizer)
        decoder = DiffusionDecoder(network, config.model.prediction, *parts, config.sampling)
        sampling = SamplingConfig(**to_dict(config.sampling))
        pixels = decoder.draw(Wanted(embed.tolist()), seeds, sampling).pixels
        cosine = float((fixed.scorer.embed_images(pixels) * embed.cpu()).sum(1).mean())
        pictures = decoder.finish(network.scale(pictures), seeds).pixels
    save_picture(contact_sheet(to_images(torch.cat([pictures, pixels])), columns=len(pictures)), path)
    return cosine


def save_network(
    config: DiffusionDecoderRun, network: PictureDenoiser | PictureUpsampler, identities: dict[str, str]
) -> str:
    """Write the network into the checkpoint: weights in bfloat16, what was measured on pictures as it is."""
    measured = [name for name, _ in network.named_buffers()]
    part = UPSAMPLER if config.model.kind == "upsampler" else PART
    settings = {"decoder": to_dict(config.model), "sampling": to_dict(config.sampling)}
    return save_part(config.run.model_dir, part, network, settings, identities, measured=measured)


def main(config: DiffusionDecoderRun, resume: bool = False) -> None:
    """Train, validate and save the diffusion decoder, or its upsampler.

    Args:
        config: settings; `configs/emoji/diffusion_decoder.yaml` is an example.
        resume: continue from the last saved state.

    Raises:
        UserError: a setting is wrong, or data, a part of the checkpoint or the state cannot be read.
    """
    config = continue_order(config) if resume else config
    check_config(config)
    run = config.run
    accelerator = loop.start_run(run)
    device = accelerator.device
    folder = Path(config.data.store)
    with accelerator.main_process_first():
        fixed, identities = Fixed.of(config, str(device))
        with memory.bounded_networks():
            losses = DiffusionLoss(fixed.build(config), config.model.prediction)
        network = losses.network
        size = fixed.image_tokenizer.config.size if fixed.image_tokenizer else (network.side,) * 2
        needs: Literal["needed", "optional"] = "needed" if fixed.text_tokenizer else "optional"
        train, held_out = (
            open_store(config.data, split, captions=needs, picture_size=size) for split in ("train", "validation")
        )
        encoded, held_encoded = (fixed.read(store, folder, identities) for store in (train, held_out))
    channels = network.channels if isinstance(network, PictureDenoiser) else 3
    cells = sum(width * network.side**2 / 4**stage for stage, width in enumerate(config.model.channels))
    pass_bytes = int(memory.rows_in_pass(accelerator, run) * cells * config.model.blocks * ACTIVATION_BYTES)
    memory.check_training_memory(accelerator, losses, pass_bytes)
    if isinstance(network, PictureDenoiser):
        measure_channels(network, fixed, encoded, MEASURED_PICTURES)
    encoded, held_encoded = (Encoded(*(part.to(device) for part in one)) for one in (encoded, held_encoded))
    ema = Ema(losses.to(device), run.ema)
    model = accelerator.prepare(losses)
    optimizers = build_optimizers(losses, config.optimizer)
    record = make_record(config, identities, train.version)
    first = load_state(accelerator, run, model, optimizers, ema, record) if resume else 0
    log = loop.TrainingLog(accelerator, run, config, first)
    forward = torch.compile(model) if run.compile else model
    maker, held_maker = (BatchMaker(store, fixed, config, channels, network.side) for store in (train, held_out))
    figures = Figures()
    batches = loader.passes(maker.make, loop.pass_rows(accelerator, run), first, run, device)

    for step, run in log.steps():
        model.train()
        rate = set_learning_rate(optimizers, step, run.steps, config.optimizer)
        passes: list[Tensor] = []
        for _ in loop.exchanging_in_last(range(run.accumulation), model):
            batch = to_device(next(batches), accelerator)
            inputs = loss_inputs(fixed, encoded, batch)
            with accelerator.autocast():
                loss = forward(*inputs, batch)
            accelerator.backward(loss / run.accumulation)
            passes.append(loss.detach())
        figures.add(step, {"loss": torch.stack(passes).mean()})
        (norm,) = apply_gradients(accelerator, [losses], optimizers, config.optimizer.clip)
        ema.update(losses, step)
        if not loop.is_looked_at(step, run):
            continue

        for number, values in figures.look():
            log.check_finite(number, **values)
        if loop.is_due(step, run.log_every, run):
            mean = accelerator.reduce(torch.tensor(values["loss"], device=device), "mean")
            log.record(step, loss=float(mean), gradient=float(norm), rate=rate)
        if loop.is_due(step, run.validate_every, run):
            with ema.swapped_into(losses):
                validation = validate(losses, held_maker, fixed, held_encoded, device)
            log.record(step, validation=validation)
            log.message(f"step {step + 1}: validation loss {validation:.4f}")
        if loop.is_due(step, run.sample_every, run) and accelerator.is_main_process:
            shown = held_maker.held_out(min(SHEET_PICTURES, len(held_out)))
            pictures, embed, _ = loss_inputs(fixed, held_encoded, to_device(shown, accelerator))
            path = Path(run.state_dir) / f"samples-{step + 1:06d}.png"
            with ema.swapped_into(losses):
                cosine = write_samples(config, network, fixed, pictures, embed, path)
            if cosine is not None:
                log.record(step, cosine=cosine)
        if loop.is_due(step, run.save_every, run):
            save_state(accelerator, run, step, model, optimizers, ema, record)

    if accelerator.is_main_process:
        with ema.swapped_into(losses):
            identity = save_network(config, network, identities)
        part = UPSAMPLER if config.model.kind == "upsampler" else PART
        print(f"{part.replace('_', ' ')} {identity} written to {Path(run.model_dir) / f'{part}.safetensors'}")
    log.close()


if __name__ == "__main__":
    run_stage("diffusion-decoder", main)
