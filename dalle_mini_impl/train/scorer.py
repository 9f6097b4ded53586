"""Stage 5: train the CLIP scorer on captioned pictures.

accelerate launch -m dalle_mini_impl.train.scorer --config configs/emoji/scorer.yaml

A share of the pictures is seen through the image tokenizer, because those the scorer will rank come out of
its decoder too.
"""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import save_part
from dalle_mini_impl.checkpoint.text_tokenizer import add_text_tokenizer
from dalle_mini_impl.config.training import ScorerRun
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import augmented_pixels, pixels_on_white, random_changes
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore, concept_indices, open_store
from dalle_mini_impl.data.token_cache import CaptionSampler, describe_cut_captions
from dalle_mini_impl.evaluate.recall import recalls
from dalle_mini_impl.model.build import build_clip
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.losses import grad_cache
from dalle_mini_impl.train.losses.contrastive import at_chance, chance_level
from dalle_mini_impl.train.shared import loop
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.optimizers import build_optimizers, set_rate
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.util.errors import UserError

VALIDATION_PICTURES = 512
CHANCE_STEPS = 300
"""Steps after which a loss still at chance level is worth a warning."""


def load_through(config: ScorerRun, device: str) -> tuple[ImageTokenizer, str]:
    """The image tokenizer through which some pictures are seen, and its identity.

    Raises:
        UserError: there is none, or its pictures have another size than the scorer's.
    """
    through, identity = load_image_tokenizer(config.run.model_dir, device)
    if through.config.image_size != config.model.image_size:
        raise UserError(
            f"model.image_size is {config.model.image_size}, but the image tokenizer's pictures have "
            f"{through.config.image_size} pixels; make them equal, or set reconstructed_share to 0"
        )
    return through, identity


def draw_batch(
    store: PictureStore,
    captions: CaptionSampler,
    tokenizer: TextTokenizer,
    through: ImageTokenizer | None,
    config: ScorerRun,
    step: int,
    rows: slice,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Pixels (rows, 3, S, S), text ids (rows × captions, L) and picture numbers of one process's share of a step."""
    run = config.run
    indices = loop.batch_indices(step, run.batch_size, len(store), run.seed)[rows]
    changes = random_changes(run.batch_size, config.augment, loop.generator_for(run.seed, step))[rows]
    may_flip = np.array([store.entries[index].may_flip for index in indices])
    pixels = augmented_pixels(store.take(indices), may_flip, changes, config.model.image_size)
    text_ids, seen_through = [], []
    for place, index in zip(range(*rows.indices(run.batch_size)), indices, strict=True):
        random = np.random.default_rng([run.seed, step, place])
        seen_through.append(random.random() < config.reconstructed_share)
        for _ in range(config.captions):
            ids = tokenizer.encode_with_dropout(captions.sample(int(index), random).text, config.bpe_dropout, random)
            text_ids.append(tokenizer.cut_or_pad(ids, config.model.text_length, add_eos=True))
    if through is not None and any(seen_through):
        chosen = torch.tensor(seen_through)
        device = through.device
        with torch.autocast(device.type, torch.bfloat16):
            pixels[chosen] = through.decode(through.encode(pixels[chosen].to(device))).cpu()
    return pixels, torch.tensor(text_ids), indices


@torch.inference_mode()
def validate(
    accelerator: Accelerator, model: CLIP, store: PictureStore, tokenizer: TextTokenizer, language: str
) -> dict[str, float]:
    """What held-out pictures and their plain names find among each other.

    Returns:
        Recall@1, @5 and @10 both ways, where whatever shows the same concept counts as found; and the share of pictures
        whose concept has the nearest name of all concepts' (zero-shot classification).
    """
    count = min(len(store), VALIDATION_PICTURES)
    numbers = torch.from_numpy(concept_indices(store)[:count])
    texts = [caption_in_language(entry.captions, language).text for entry in store.entries[:count]]
    images, names = [], []
    for start in range(0, count, 64):
        chunk = slice(start, min(start + 64, count))
        pixels = pixels_on_white(store.take(np.arange(chunk.start, chunk.stop)), model.image_size)
        text_ids = tokenizer.encode_batch(texts[chunk], model.text_length, add_eos=True, warn=False)
        with accelerator.autocast():
            images.append(model.encode_image(pixels.to(accelerator.device)).float())
            names.append(model.encode_text(text_ids.to(accelerator.device)).float())
    image_embed = torch.nn.functional.normalize(torch.cat(images), dim=-1)
    text_embed = torch.nn.functional.normalize(torch.cat(names), dim=-1)
    return recalls((image_embed @ text_embed.T).cpu(), numbers)


def main(config: ScorerRun, resume: bool = False) -> None:
    """Train, validate, save; see `configs/emoji/scorer.yaml` for the settings."""
    if config.captions < 1:
        raise UserError(f"captions is {config.captions}; expected at least 1 caption for each picture and step")
    run = config.run
    accelerator = loop.start(run)
    with accelerator.main_process_first():
        tokenizer = add_text_tokenizer(run.model_dir, config.text_tokenizer)
        train, validation = open_store(config.data, "train"), open_store(config.data, "validation")
    identities = {"text_tokenizer": tokenizer.identity}
    through = None
    if config.reconstructed_share:
        through, identities["image_tokenizer"] = load_through(config, str(accelerator.device))
    captions, concepts = CaptionSampler(train.entries, config.language_weights), concept_indices(train)
    clip = build_clip(config.model, tokenizer.vocab_size, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
    average = Ema(clip.to(accelerator.device), run.ema)
    model, *optimizers = accelerator.prepare(clip, *build_optimizers(clip, config.optimizer))
    first = load_state(accelerator, run, model, optimizers, average) if resume else 0
    log = loop.TrainingLog(accelerator, run, config, first)
    if cut := describe_cut_captions(train.entries, tokenizer, config.model.text_length - 1):
        log.say(f"warning: {cut}")
    forward = torch.compile(model) if run.compile else model
    running = 0.0

    for step, run in log.steps():
        model.train()
        set_rate(optimizers, step, run.steps, config.optimizer)
        drawn = [
            draw_batch(train, captions, tokenizer, through, config, step, rows)
            for rows in loop.passes(accelerator, run)
        ]
        groups = torch.from_numpy(concepts[np.concatenate([indices for *_, indices in drawn])])
        parts = [(pixels, text_ids) for pixels, text_ids, _ in drawn]
        loss, scale = grad_cache.backward(accelerator, forward, parts, groups)
        accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        clip.clamp_logit_scale()
        average.update(clip, step)

        running = float(loss) if step == first else 0.98 * running + 0.02 * float(loss)
        sigmoid = config.model.sigmoid
        if step == CHANCE_STEPS and at_chance(running, run.batch_size, sigmoid):
            log.say(
                f"warning: the loss is {running:.3f}, which is chance level for {run.batch_size} pairs "
                f"({chance_level(run.batch_size, sigmoid):.3f}); check captions and learning rate"
            )
        if loop.due(step, run.log_every, run):
            log.log(step, loss=float(loss), scale=float(scale.exp()))
        if loop.due(step, run.validate_every, run):
            with average.swapped_into(clip):
                values = validate(accelerator, clip, validation, tokenizer, config.validation_language)
            log.log(step, **values)
            log.say(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if loop.due(step, run.save_every, run):
            save_state(accelerator, run, step, model, optimizers, average)

    if accelerator.is_main_process:
        with average.swapped_into(clip):
            name = save_part(run.model_dir, "scorer", clip, to_dict(config.model), identities)
        print(f"scorer {name} written to {Path(run.model_dir) / 'scorer.safetensors'}")
    log.close()


if __name__ == "__main__":
    run_stage("scorer", main)
