"""Stage 4: train the transformer on captions and image ids.

dalle train transformer --config configs/emoji/transformer.yaml
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.checkpoint.settings import save_settings
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer
from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache, describe_cut_captions, open_cache
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.card import describe_run
from dalle_mini_impl.train.lora import add_adapters, with_merged_adapters
from dalle_mini_impl.train.losses.image_targets import check_targets
from dalle_mini_impl.train.losses.stream import StreamLoss, weighted_loss
from dalle_mini_impl.train.replay import open_replay
from dalle_mini_impl.train.shared import fsdp, loader, loop, memory
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.figures import Figures
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import continue_order
from dalle_mini_impl.train.shared.picture_embed import open_scorer
from dalle_mini_impl.train.shared.plateau import Plateau
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.sample_prompts import SamplePrompt, choose_prompts, describe_prompts, save_sheet
from dalle_mini_impl.train.shared.scene_rows import open_scenes
from dalle_mini_impl.train.shared.sharded_state import Writer
from dalle_mini_impl.train.shared.start import (
    add_image_tokenizer,
    load_transformer_weights,
    open_start,
    text_tokenizer_file,
)
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.train.stream_batch import check_order, fill_embeddings, fill_scenes, make_batch, to_device
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images

T = TypeVar("T")

VALIDATION_PICTURES = 512
"""Largest number of held-out pictures in a validation."""
VALIDATION_BATCH = 64
SAMPLES_PER_PROMPT = 4


@torch.inference_mode()
def validate(
    accelerator: Accelerator,
    model: StreamLoss,
    cache: TokenCache,
    tokenizer: TextTokenizer,
    config: TransformerRun,
) -> dict[str, float]:
    """Mean nats per text id and per image id on held-out pictures with their first captions, without corruption.

    For a model with image embeddings also per image id given the picture's embedding as well.
    """
    totals = np.zeros(3)
    count = min(len(cache), VALIDATION_PICTURES)
    for start in range(0, count, VALIDATION_BATCH):
        rows = range(start, min(start + VALIDATION_BATCH, count))
        texts = [tokenizer.encode(cache.entries[row].captions[0].text)[: config.text_length] for row in rows]
        ids = torch.from_numpy(np.asarray(cache.image_ids[rows.start : rows.stop, 0]).astype(np.int64))
        stream_ids = model.stream.join(model.stream.prefix(texts), ids).to(accelerator.device)
        embed = None
        if model.stream.config.embed_positions:
            embeds = np.stack([cache.embed(row, 0) for row in rows])
            embed = torch.from_numpy(embeds).to(accelerator.device)
        inputs, targets = stream_ids[:, :-1], stream_ids[:, 1:]
        with accelerator.autocast():
            losses = model(inputs, targets, image_embed=None if embed is None else torch.zeros_like(embed))
            given = losses if embed is None else model(inputs, targets, image_embed=embed)
        totals += np.array([float(loss) for loss in (*losses, given[1])]) * len(rows)
    names = ["validation_text", "validation_image", "validation_embed"]
    return dict(zip(names if model.stream.config.embed_positions else names[:2], totals / count, strict=False))


def write_samples(
    image_tokenizer: ImageTokenizer,
    tokenizer: TextTokenizer,
    config: TransformerRun,
    prompts: Sequence[SamplePrompt],
    path: Path,
    model: StreamLoss,
) -> None:
    """Write a sheet with a few unranked samples for each prompt."""
    device = image_tokenizer.device
    pictures = []
    model = model.to(device)
    for prompt in prompts:
        text_ids = tokenizer.encode(prompt.text)[: config.text_length]
        seeds = list(range(SAMPLES_PER_PROMPT))
        ids = generate(model.transformer, model.stream, Prompt(text_ids), seeds, config.sampling).image_ids
        pictures += to_images(image_tokenizer.decode(ids.to(device)))
    save_sheet(pictures, prompts, path)


def main(config: TransformerRun, resume: bool = False) -> None:
    """Train, validate, sample from and save the transformer.

    Args:
        config: settings; `configs/emoji/transformer.yaml` is an example.
        resume: continue from the last saved state.

    Raises:
        UserError: a setting is wrong, or token cache, tokenizers or state cannot be read.
    """
    config = continue_order(config) if resume else config
    run = config.run
    check_ranges(config)
    accelerator = loop.start_run(run, can_shard=True)
    with accelerator.main_process_first():
        start = open_start(config, resume)
        add_image_tokenizer(run.model_dir, start)
        tokenizer = add_text_tokenizer(run.model_dir, text_tokenizer_file(config, start))
    image_tokenizer, _ = load_image_tokenizer(run.model_dir, str(accelerator.device))
    identity = read_part(Path(run.model_dir), "image_tokenizer", weights=False).image_ids
    train = open_cache(config.cache, "train", identity)
    validation = open_cache(config.cache, "validation", identity)
    check_targets(config.image_targets, train)
    check_order(config)
    with accelerator.main_process_first():
        scenes = open_scenes(config.scenes, run, image_tokenizer.config.size, config.language_weights)
    if scenes.count and config.image_targets != "argmax":
        raise UserError(
            f"expected image_targets argmax beside scenes, got {config.image_targets}; "
            f"set it, or leave scenes.store out"
        )
    captions = CaptionSampler(train.entries, config.language_weights)
    replay = open_replay(config, train, scenes.pictures)
    caches = [train, validation, *([replay.cache] if replay else [])]
    scorer, scorer_identity = open_scorer(config, caches, str(accelerator.device))
    for cache in [train, *([replay.cache] if replay else [])] if config.augmented_share else []:
        cache.check_first_unchanged()
    about = describe_run(config, [train, *([replay.cache] if replay else [])], start.data)
    layout = StreamConfig(
        text_length=config.text_length,
        text_vocab=tokenizer.vocab_size,
        grid=train.header.grid,
        image_vocab=train.header.codebook_size,
        bos_id=tokenizer.bos_id,
        patch=config.model.patch,
        embed_positions=config.image_embed.positions,
        embed_dim=scorer.model.embed_dim if scorer else 0,
    )
    stream = Stream(layout)
    memory.check_mask_memory(config.model, stream)

    def build() -> StreamLoss:
        network = build_transformer(config.model, layout, recompute=config.recompute)
        return StreamLoss(network, stream, config.augmented_share > 0, config.random_order[1] > 0)

    with memory.bounded_networks():
        losses = build()
    pictures_at_once = memory.rows_in_pass(accelerator, run)
    pass_bytes = memory.transformer_pass_bytes(config.model, stream, pictures_at_once, config.recompute)
    memory.check_training_memory(accelerator, losses, pass_bytes)
    origin = load_transformer_weights(losses.transformer, stream, tokenizer, config, start)
    add_adapters(losses, config)
    model = fsdp.wrap_model(accelerator, losses, losses.transformer.blocks, run.compile)
    losses.transformer.make_mask_blocks(stream.positions - 1)
    ema = Ema(losses, run.ema)
    optimizers = build_optimizers(losses, config.optimizer)
    plateau = Plateau(config.plateau)
    # With halvings the cosine decay is switched off: it ends at the peak rate.
    schedule = replace(config.optimizer, final_rate=1.0) if config.plateau.halvings else config.optimizer
    identities = {"text_tokenizer": tokenizer.identity, "image_tokenizer": identity, **scorer_identity}
    identities |= start.identities
    record = make_record(config, identities, train.version + (replay.cache.version if replay else "") + scenes.version)
    first = load_state(accelerator, run, losses, optimizers, ema, record, plateau=plateau.state) if resume else 0
    log = loop.TrainingLog(accelerator, run, config, first)
    if origin:
        log.message(origin)
    prompts = choose_prompts(config.prompts, train.entries, validation.entries, config.language_weights, run.seed)
    if run.sample_every:
        log.message(describe_prompts(prompts))
    if cut := describe_cut_captions(train.entries, tokenizer, config.text_length):
        log.message(f"warning: {cut}")
    figures = Figures()
    batches = loader.passes(
        lambda step, rows: make_batch(train, captions, tokenizer, stream, config, step, rows, scenes, replay),
        loop.pass_rows(accelerator, run),
        first,
        run,
        accelerator.device,
    )

    def save(trained: StreamLoss) -> str:
        settings = {"stream": to_dict(layout), "transformer": to_dict(config.model)}
        save_settings(run.model_dir, config.sampling, about)
        return save_part(run.model_dir, "transformer", trained.transformer, settings, identities)

    def with_ema(action: Callable[[StreamLoss], T]) -> T | None:
        """Call the action in the main process with the full EMA weights; all processes must call this."""
        with ema.swapped_into(losses):
            full = fsdp.gather_full(accelerator, losses, build)
            return action(with_merged_adapters(full, build)) if accelerator.is_main_process else None

    with Writer(accelerator) as writer:
        for step, run in log.steps():
            model.train()
            rate = set_learning_rate(optimizers, step, run.steps, schedule, plateau.rate_factor)
            passes: list[Tensor] = []
            for _ in loop.exchanging_in_last(range(run.accumulation), model):
                with accelerator.autocast():
                    batch = fill_scenes(to_device(next(batches), accelerator.device), image_tokenizer, stream)
                    batch = fill_embeddings(batch, scorer)
                    soft = (batch.likely_ids, batch.probabilities)
                    told = (batch.image_embed, batch.is_augmented, batch.order)
                    text, image = model(batch.inputs, batch.targets, *soft, *told)
                loss = weighted_loss(text, image, config.image_weight)
                accelerator.backward(loss / run.accumulation)
                passes.append(torch.stack([text.detach(), image.detach()]))
            figures.add(step, {"losses": torch.cat(passes)})
            (norm,) = apply_gradients(accelerator, [losses], optimizers, config.optimizer.clip)
            ema.update(losses, step)
            if not loop.is_looked_at(step, run):
                continue

            for number, values in figures.look():
                totals = (np.reshape(values["losses"], (-1, 2)) / run.accumulation).sum(0)
                log.check_finite(number, text=totals[0], image=totals[1])
                plateau.add(weighted_loss(float(totals[0]), float(totals[1]), config.image_weight))
            if loop.is_due(step, run.log_every, run):
                latest = torch.tensor(totals, dtype=torch.float32, device=accelerator.device)
                means = accelerator.reduce(latest, "mean").tolist()
                log.record(step, text=means[0], image=means[1], gradient=float(fsdp.full_tensor(norm)), rate=rate)
            if loop.is_due(step, run.validate_every, run):
                with ema.swapped_into(losses):
                    values = validate(accelerator, losses, validation, tokenizer, config)
                log.record(step, **values)
                log.message(f"step {step + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
                held_out = weighted_loss(values["validation_text"], values["validation_image"], config.image_weight)
                if announcement := plateau.after_validation(accelerator, held_out):
                    log.message(f"step {step + 1}: {announcement}")
            if loop.is_due(step, run.sample_every, run):
                path = Path(run.state_dir) / f"samples-{step + 1:06d}.png"
                with_ema(partial(write_samples, image_tokenizer, tokenizer, config, prompts, path))
            if loop.is_due(step, run.save_every, run):
                save_state(accelerator, run, step, losses, optimizers, ema, record, writer, plateau=plateau.state)
                with_ema(save)

    if saved := with_ema(save):
        print(f"transformer {saved} written to {Path(run.model_dir) / 'transformer.safetensors'}")
    log.close()


if __name__ == "__main__":
    run_stage("transformer", main)
