"""Stage 5: train the CLIP scorer on captioned pictures.

dalle train scorer --config configs/emoji/scorer.yaml

Some training pictures are first encoded and decoded by the image tokenizer, because the pictures to be ranked come out
of its decoder, too.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import read_part, save_part
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import ScorerRun
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes
from dalle_mini_impl.data.entries import concept_hashes, concept_indices, concept_of
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import CaptionSampler, describe_cut_captions
from dalle_mini_impl.evaluate.recall import recalls
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.guiding import Guiding, Pairs, resized
from dalle_mini_impl.train.losses import grad_cache
from dalle_mini_impl.train.losses.contrastive import at_chance, chance_level
from dalle_mini_impl.train.shared import loader, loop, memory
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.figures import Figures
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import batch_indices, continue_order
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.scene_rows import SceneRows, open_scenes, with_scenes
from dalle_mini_impl.train.shared.start import (
    add_image_tokenizer,
    load_scorer_weights,
    open_start,
    text_tokenizer_file,
)
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError

VALIDATION_PICTURES = 512
"""Largest number of held-out pictures in a validation."""
VALIDATION_BATCH = 64
CHANCE_STEPS = 300
"""Step after which a loss still at chance level causes a warning."""
ID_BYTES = 40
"""Bytes of a text id in the lists that a batch is made of."""
LATEST_LOSS_WEIGHT = 0.02
"""Weight of a step's loss in the running mean that is compared with chance level."""


def load_reconstructor(config: ScorerRun, frame: tuple[int, int], device: str) -> tuple[ImageTokenizer, str]:
    """The image tokenizer that reconstructs some training pictures and decodes paintings, and its `Part.image_ids`.

    Pictures are decoded in its own size, and resized to the scorer's square afterwards, as candidates are.

    Raises:
        UserError: there is none, or its pictures are larger than the stored ones, whose height and width `frame` is.
    """
    image_tokenizer, _ = load_image_tokenizer(config.run.model_dir, device)
    size = image_tokenizer.config.size
    if config.reconstructed_share and (frame[0] < size[0] or frame[1] < size[1]):
        raise UserError(
            f"expected stored pictures as large as the image tokenizer's, {size[0]} × {size[1]} pixels, got "
            f"{frame[0]} × {frame[1]}; raise data.store_size, or set reconstructed_share to 0"
        )
    return image_tokenizer, read_part(Path(config.run.model_dir), "image_tokenizer", weights=False).image_ids


class ScorerBatch(NamedTuple):
    """Some rows of a step's global batch."""

    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    text_ids: Tensor
    """(B × captions, L), with the captions of a picture in a row."""
    concepts: Tensor
    """(B,) int64, equal for pictures of one concept."""
    is_reconstructed: Tensor
    """(B,) bool: whether a picture is to be encoded and decoded by the image tokenizer."""
    originals: Tensor
    """(n, 3, height, width) in [-1, 1]: the pictures that are, in the image tokenizer's size."""
    cut_rows: Tensor
    """(B,) int64: the row in the global batch of a picture of which only a random cut is to be seen, else -1. Scenes
    are seen whole: numbers and places may not survive a cut."""


def make_batch(
    store: PictureStore,
    scenes: SceneRows,
    captions: CaptionSampler,
    tokenizer: TextTokenizer,
    decoded_size: tuple[int, int] | None,
    config: ScorerRun,
    step: int,
    rows: slice,
) -> ScorerBatch:
    """Some rows of a step's global batch, scenes last, before any picture is reconstructed.

    Every second scene is the one before it with one thing changed, such as a colour: without these the scorer need only
    look at what is shown.

    Args:
        store: the training pictures.
        scenes: which rows are scenes.
        captions: samples the captions of the pictures.
        tokenizer: encodes the captions.
        decoded_size: height and width of the image tokenizer's pictures; None if none is reconstructed.
        config: settings of the stage.
        step: optimizer step, from 0.
        rows: B rows of the batch.
    """
    run = config.run
    size = (config.model.image_size,) * 2
    scene_rows, pictures = scenes.split(rows)
    numbers = list(pictures.values())
    indices = batch_indices(step, scenes.pictures, len(store), run)[numbers]
    changes = random_changes(scenes.pictures, config.augment, loop.generator_for(run.seed, step))[numbers]
    composed = [scenes.compose_pair(step, row) for row in scene_rows]
    rgba, may_flip, changes = with_scenes(store.take(indices), store.entries.may_flip(indices), changes, composed)
    pixels = augmented_pixels(rgba, may_flip, changes, size, config.augment.keep_inside)
    text_ids: list[list[int]] = []
    is_reconstructed: list[bool] = []
    cut_rows: list[int] = []
    for place, row in enumerate([*pictures, *scene_rows]):
        random = np.random.default_rng([run.seed, step, row])
        is_reconstructed.append(random.random() < config.reconstructed_share)
        for number in range(config.captions):
            if place < len(indices):
                text = captions.sample(int(indices[place]), random).text
            else:
                text = scenes.caption(composed[place - len(indices)], step, row, number)
            ids = tokenizer.encode_with_dropout(text, config.bpe_dropout, random, config.model.text_length)
            text_ids.append(tokenizer.cut_or_pad(ids, config.model.text_length, add_eos=True))
        is_cut = place < len(indices) and random.random() < config.guiding.cut_share
        cut_rows.append(row if is_cut else -1)
    chosen = np.array(is_reconstructed) & (decoded_size is not None)
    originals = pixels[chosen]
    if decoded_size not in (None, size) and chosen.any():  # squashed only after decoding, as candidates are
        originals = augmented_pixels(
            rgba[chosen], may_flip[chosen], changes[chosen], decoded_size, config.augment.keep_inside
        )
    shown = [*(concept_of(store.entries[int(index)]) for index in indices), *(scene.plan.name for scene in composed)]
    concepts = torch.from_numpy(concept_hashes(shown))
    ids_of_all = torch.tensor(text_ids)
    return ScorerBatch(pixels, ids_of_all, concepts, torch.from_numpy(chosen), originals, torch.tensor(cut_rows))


def reconstruct(batch: ScorerBatch, image_tokenizer: ImageTokenizer | None) -> Tensor:
    """The pixels (B, 3, S, S) of a batch, some of them encoded and decoded by the image tokenizer."""
    if image_tokenizer is None or not len(batch.originals):
        return batch.pixels
    device = image_tokenizer.device
    with torch.autocast(device.type, torch.bfloat16):
        decoded = image_tokenizer.decode(image_tokenizer.encode(batch.originals.to(device))).cpu()
    pixels = batch.pixels.clone()
    pixels[batch.is_reconstructed] = resized(decoded, pixels.shape[3]).clamp(-1, 1)
    return pixels


@torch.inference_mode()
def validate(
    accelerator: Accelerator, model: CLIP, store: PictureStore, tokenizer: TextTokenizer, language: str
) -> dict[str, float]:
    """Retrieval between held-out pictures and their plain captions in one language.

    Returns:
        Recall@1, @5 and @10 in both directions, where every picture or caption of the same concept is a hit; and the
        zero-shot accuracy, the share of pictures whose nearest caption is one of their own concept.
    """
    count = min(len(store), VALIDATION_PICTURES)
    concepts = torch.from_numpy(concept_indices(store.entries[:count]))
    texts = [caption_in_language(entry.captions, language).text for entry in store.entries[:count]]
    image_parts: list[Tensor] = []
    text_parts: list[Tensor] = []
    for start in range(0, count, VALIDATION_BATCH):
        chunk = slice(start, min(start + VALIDATION_BATCH, count))
        pixels = pixels_on_white(store.take(np.arange(chunk.start, chunk.stop)), model.image_size)
        text_ids = tokenizer.encode_batch(texts[chunk], model.text_length, add_eos=True, warn=False)
        with accelerator.autocast():
            image_parts.append(model.encode_image(pixels.to(accelerator.device)).float())
            text_parts.append(model.encode_text(text_ids.to(accelerator.device)).float())
    image_embed = torch.nn.functional.normalize(torch.cat(image_parts), dim=-1)
    text_embed = torch.nn.functional.normalize(torch.cat(text_parts), dim=-1)
    return recalls((image_embed @ text_embed.T).cpu(), concepts)


def chance_warning(config: ScorerRun, loss: float) -> str:
    """A warning if a loss in nats is no better than guessing; else empty."""
    batch = config.run.batch_size + config.guiding.paintings, config.model.sigmoid
    unmatched = config.guiding.spoiled + config.guiding.paintings
    if not at_chance(loss, *batch, unmatched):
        return ""
    others = f" and {unmatched} pictures without captions" if unmatched else ""
    return (
        f"warning: the loss is {loss:.3f}, which is chance level for {batch[0]} pairs{others} "
        f"({chance_level(*batch, unmatched):.3f}); check captions and learning rate"
    )


def main(config: ScorerRun, resume: bool = False) -> None:
    """Train, validate and save the scorer.

    Args:
        config: settings; `configs/emoji/scorer.yaml` is an example.
        resume: continue from the last saved state.

    Raises:
        UserError: a setting is wrong, or data, tokenizers or state cannot be read.
    """
    config = continue_order(config) if resume else config
    check_ranges(config)
    run = config.run
    uses_image_tokenizer = config.reconstructed_share > 0 or config.guiding.paintings > 0
    accelerator = loop.start_run(run)
    with accelerator.main_process_first():
        start = open_start(config, resume)
        if uses_image_tokenizer:
            add_image_tokenizer(run.model_dir, start)
        tokenizer = add_text_tokenizer(run.model_dir, text_tokenizer_file(config, start))
        size = (config.model.image_size,) * 2
        train = open_store(config.data, "train", picture_size=size, any_proportions=True)
        validation = open_store(config.data, "validation", picture_size=size, any_proportions=True)
        scenes = open_scenes(config.scenes, run, train.frame, config.language_weights)
    if train.frame[0] != train.frame[1]:
        config = replace(config, model=replace(config.model, fit="squash"))
    identities = {"text_tokenizer": tokenizer.identity, **start.identities}
    image_tokenizer = None
    if uses_image_tokenizer:
        image_tokenizer, identities["image_tokenizer"] = load_reconstructor(
            config, train.frame, str(accelerator.device)
        )
    captions = CaptionSampler(train.entries, config.language_weights)
    with memory.bounded_networks():
        clip = build_clip(config.model, tokenizer.vocab_size, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
    # The pixels and texts of all passes are made first.
    row_bytes = config.model.image_size**2 * memory.PIXEL_BYTES + config.captions * config.model.text_length * ID_BYTES
    rows = (run.batch_size + config.guiding.extra) // accelerator.num_processes
    memory.check_training_memory(accelerator, clip, rows * row_bytes)
    origin = load_scorer_weights(clip, tokenizer, config.model, start)
    ema = Ema(clip.to(accelerator.device), run.ema)
    model = accelerator.prepare(clip)
    optimizers = build_optimizers(clip, config.optimizer)
    guiding = Guiding(accelerator, config, clip, ema, image_tokenizer)
    record = make_record(config, identities, train.version + scenes.version)
    first = load_state(accelerator, run, model, optimizers, ema, record, **guiding.tensors()) if resume else 0
    log = loop.TrainingLog(accelerator, run, config, first)
    if origin:
        log.message(origin)
    if cut := describe_cut_captions(train.entries, tokenizer, config.model.text_length - 1):
        log.message(f"warning: {cut}")
    forward = torch.compile(model) if run.compile else model
    figures = Figures()
    mean_loss = 0.0
    decoded_size = image_tokenizer.config.size if image_tokenizer else None
    batches = loader.passes(
        lambda step, rows: make_batch(train, scenes, captions, tokenizer, decoded_size, config, step, rows),
        loop.pass_rows(accelerator, run),
        first,
        run,
        accelerator.device,
    )

    for step, run in log.steps():
        model.train()
        set_learning_rate(optimizers, step, run.steps, config.optimizer)
        parts = [next(batches) for _ in range(run.accumulation)]
        pairs = [
            guiding.extend(step, number, Pairs(reconstruct(part, image_tokenizer), *part[1:3]), part.cut_rows)
            for number, part in enumerate(parts)
        ]
        chunks, groups = [(part.pixels, part.text_ids) for part in pairs], torch.cat([part.groups for part in pairs])
        loss, scale = grad_cache.backward(accelerator, forward, chunks, groups, guiding.unmatched)
        figures.add(step, {"loss": loss})
        apply_gradients(accelerator, [clip], optimizers, config.optimizer.clip)
        clip.clamp_logit_scale()
        ema.update(clip, step)

        if not loop.is_looked_at(step, run):
            continue
        for number, values in figures.look():
            log.check_finite(number, **values)
            latest_weight = 1.0 if number == first else LATEST_LOSS_WEIGHT
            mean_loss = (1 - latest_weight) * mean_loss + latest_weight * values["loss"]
            if number == CHANCE_STEPS and (warning := chance_warning(config, mean_loss)):
                log.message(warning)
        if loop.is_due(step, run.log_every, run):
            log.record(step, **values, scale=float(scale.exp()))
        if loop.is_due(step, run.validate_every, run):
            with ema.swapped_into(clip):
                values = validate(accelerator, clip, validation, tokenizer, config.validation_language)
            log.record(step, **values)
            log.message(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if loop.is_due(step, run.save_every, run):
            save_state(accelerator, run, step, model, optimizers, ema, record, **guiding.tensors())

    if accelerator.is_main_process:
        with ema.swapped_into(clip):
            identity = save_part(run.model_dir, "scorer", clip, to_dict(config.model), identities)
        print(f"scorer {identity} written to {Path(run.model_dir) / 'scorer.safetensors'}")
    log.close()


if __name__ == "__main__":
    run_stage("scorer", main)
