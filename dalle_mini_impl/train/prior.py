"""Stage 6: train the prior, which draws image embeddings of a scorer for captions (DALL-E 2).

dalle train prior --config configs/emoji/prior.yaml

The pictures of the set are embedded once, before the first step; composed scenes, which are new in every step, in it.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.checkpoint.parts import read_part, save_tensors
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE, add_text_tokenizer
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.sampling import DIFFUSION_STEPS
from dalle_mini_impl.config.training import PriorRun
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.pair import caption_in_language
from dalle_mini_impl.data.picture_store import PictureStore, open_store
from dalle_mini_impl.data.token_cache import CaptionSampler, describe_cut_captions
from dalle_mini_impl.model.build import build_prior
from dalle_mini_impl.model.prior import AnyPrior, ARPrior
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.shared import loader, loop, memory
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.encoded_set import embed_set
from dalle_mini_impl.train.shared.figures import Figures
from dalle_mini_impl.train.shared.optimizers import apply_gradients, build_optimizers, set_learning_rate
from dalle_mini_impl.train.shared.order import batch_indices, continue_order
from dalle_mini_impl.train.shared.run_record import make_record
from dalle_mini_impl.train.shared.scene_rows import SceneRows, open_scenes
from dalle_mini_impl.train.shared.state import load_state, save_state
from dalle_mini_impl.train.stages import run_stage
from dalle_mini_impl.unclip.prior import SPACE, Prior
from dalle_mini_impl.unclip.schedule import add_noise, check_steps, make_scheduler

VALIDATION_PICTURES = 128
"""Largest number of held-out pictures in a validation, for each of which embeddings are drawn."""
ACTIVATION_BYTES = 64
"""Bytes that a pass takes for each channel of each text position in each block, at the least."""


class PriorBatch(NamedTuple):
    """Some rows of a step's global batch, scenes last."""

    pictures: Tensor
    """(n,) int64, the rows that are pictures of the set."""
    scenes: Tensor
    """(m, 3, S, S) in [-1, 1], those that are not."""
    text_ids: Tensor
    """(n + m, L), with BPE dropout; all padding where the caption is dropped."""
    scorer_ids: Tensor
    """The captions as the scorer's text ids."""
    is_dropped: Tensor
    """(n + m,) bool: trained without caption."""
    times: Tensor
    """(n + m,) int64 in [0, `DIFFUSION_STEPS`)."""
    noise: Tensor
    """(n + m, D)."""


def make_batch(
    store: PictureStore,
    scenes: SceneRows,
    captions: CaptionSampler,
    tokenizer: TextTokenizer,
    scorer: Scorer,
    config: PriorRun,
    step: int,
    rows: slice,
) -> PriorBatch:
    """Some rows of a step's global batch.

    Args:
        store: the training pictures.
        scenes: which rows are scenes.
        captions: samples the captions of the pictures.
        tokenizer: encodes the captions for the prior.
        scorer: encodes them for itself.
        config: settings of the stage.
        step: optimizer step, from 0.
        rows: B rows of the batch.
    """
    run, length = config.run, config.model.text_length
    scene_rows, pictures = scenes.split(rows)
    order = [*pictures, *scene_rows]
    indices = batch_indices(step, scenes.pictures, len(store), run)[list(pictures.values())]
    composed = [scenes.compose(step, row) for row in scene_rows]
    texts, text_ids, is_dropped = [], [], []
    for place, row in enumerate(order):
        random = np.random.default_rng([run.seed, step, row])
        is_dropped.append(random.random() < config.condition_dropout)
        if place < len(indices):
            texts.append(captions.sample(int(indices[place]), random).text)
        else:
            texts.append(composed[place - len(indices)].caption)
        ids = tokenizer.encode_with_dropout(texts[-1], config.bpe_dropout, random, length)
        text_ids.append(tokenizer.cut_or_pad([] if is_dropped[-1] else ids, length, add_eos=not is_dropped[-1]))
    with warnings.catch_warnings():  # of captions that are cut, which is said at the beginning
        warnings.simplefilter("ignore")
        scorer_ids = scorer.text_tokenizer.encode_batch(texts, scorer.text_length, add_eos=True)
    generator = loop.generator_for(run.seed, step)
    times = torch.randint(DIFFUSION_STEPS, (run.batch_size,), generator=generator)[order]
    noise = torch.randn(run.batch_size, scorer.model.embed_dim, generator=generator)[order]
    side = scorer.image_size
    drawn = [np.asarray(scene.image.convert("RGBA")) for scene in composed]
    pixels = pixels_on_white(np.stack(drawn), side) if drawn else torch.empty(0, 3, side, side)
    return PriorBatch(
        torch.from_numpy(indices), pixels, torch.tensor(text_ids), scorer_ids, torch.tensor(is_dropped), times, noise
    )


class PriorLoss(nn.Module):
    """The loss of a prior: squared error of the predicted embedding, or nats per principal component.

    Args:
        network: the prior.
    """

    def __init__(self, network: AnyPrior) -> None:
        super().__init__()
        self.network = network

    def forward(self, embed: Tensor, text_embed: Tensor, batch: PriorBatch) -> Tensor:
        """The mean loss of a batch, given image and text embeddings (B, D)."""
        text_given = text_embed.masked_fill(batch.is_dropped[:, None], 0)
        if isinstance(self.network, ARPrior):
            ids = self.network.quantise(embed)
            dots = self.network.dot_ids(embed, text_embed).masked_fill(batch.is_dropped, self.network.buckets)
            logits = self.network(ids[:, :-1], dots, batch.text_ids, text_given)
            return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        scaled = self.network.scale(embed)
        noised = add_noise(scaled, batch.noise, batch.times)
        return F.mse_loss(self.network(noised, batch.times, batch.text_ids, text_given).float(), scaled)


def embed_captions(scorer: Scorer, store: PictureStore, language: str) -> tuple[list[str], Tensor]:
    """A caption of each picture, in a language where there is one, and their embeddings (n, D)."""
    texts = [caption_in_language(entry.captions, language).text for entry in store.entries]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return texts, scorer.embed_texts(texts)


def validate(prior: Prior, texts: list[str], text_embed: Tensor, embed: Tensor) -> dict[str, float]:
    """Draw an embedding for each held-out picture's caption, and compare it with the picture's own.

    Args:
        prior: with the weights to be validated.
        texts: n captions.
        text_embed: (n, D) of these.
        embed: (n, D) of the pictures.

    Returns:
        `cosine`: mean cosine of drawn and true embeddings; `found`: share of drawn embeddings that are nearest to their
        own picture's. `text_cosine` and `text_found` are those of the text embeddings, which a prior has to exceed.
    """
    some = slice(VALIDATION_PICTURES)
    texts, text_embed, embed = texts[some], text_embed[some], embed[some]
    own = torch.arange(len(embed))
    values: dict[str, float] = {}
    for name, found in (("", prior.draw(texts, range(len(texts)))), ("text_", text_embed)):
        cosines = found @ embed.T
        values[f"{name}cosine"] = float(cosines.diagonal().mean())
        values[f"{name}found"] = float((cosines.argmax(1) == own).float().mean())
    return values


def save_prior(config: PriorRun, network: AnyPrior, identities: dict[str, str]) -> str:
    """Write the prior into the checkpoint: weights in bfloat16, what was measured on embeddings as it is."""
    measured = {name for name, _ in network.named_buffers()}
    tensors = {
        name: value.detach().cpu().to(value.dtype if name in measured else torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
    }
    settings = {"prior": to_dict(config.model), "sampling": to_dict(config.sampling)}
    return save_tensors(config.run.model_dir, "prior", tensors, settings, identities)


def check_sampling(config: PriorRun) -> None:
    """Refuse before the first step what validation could not draw with.

    Raises:
        UserError: sampler or steps are wrong, or the sampler needs `diffusers`, which is not installed.
    """
    check_steps(config.sampling.sampler, config.sampling.steps, "sampling.")
    if config.model.kind == "diffusion" and config.sampling.sampler != "ddim":
        make_scheduler(config.sampling.sampler)


def build_losses(config: PriorRun, accelerator: Accelerator, scorer: Scorer, tokenizer: TextTokenizer) -> PriorLoss:
    """A prior with new weights over a scorer's embeddings, in its loss.

    Raises:
        UserError: a pass of the training does not fit into memory.
    """
    model = config.model
    shape = {"embed_dim": scorer.model.embed_dim, "text_vocab": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
    with memory.bounded_networks():
        losses = PriorLoss(build_prior(model, **shape))
    numbers = (model.text_length + model.components) * model.n_embd * model.n_layer
    rows = memory.rows_in_pass(accelerator, config.run)
    memory.check_training_memory(accelerator, losses, rows * numbers * ACTIVATION_BYTES)
    return losses


def main(config: PriorRun, resume: bool = False) -> None:
    """Train, validate and save the prior.

    Args:
        config: settings; `configs/emoji/prior.yaml` is an example.
        resume: continue from the last saved state.

    Raises:
        UserError: a setting is wrong, or data, scorer, text tokenizer or state cannot be read.
    """
    config = continue_order(config) if resume else config
    check_ranges(config)
    check_sampling(config)
    run = config.run
    accelerator = loop.start_run(run)
    scorer = Scorer.from_pretrained(config.scorer or run.model_dir, str(accelerator.device))
    with accelerator.main_process_first():
        own = Path(run.model_dir) / TEXT_TOKENIZER_FILE
        tokenizer = add_text_tokenizer(run.model_dir, config.text_tokenizer or own)
        train, validation = (open_store(config.data, split) for split in ("train", "validation"))
        embeds, validation_embed = (embed_set(scorer, one, Path(config.data.store)) for one in (train, validation))
        scenes = open_scenes(config.scenes, run, (scorer.image_size,) * 2, config.language_weights)
    identities = {"text_tokenizer": tokenizer.identity, SPACE: scorer_identity(scorer)}
    if not config.scorer:
        identities["scorer"] = read_part(Path(run.model_dir), "scorer", weights=False).identity
    losses = build_losses(config, accelerator, scorer, tokenizer)
    if isinstance(losses.network, ARPrior):
        losses.network.fit(embeds, embed_captions(scorer, train, config.validation_language)[1])
    embeds = embeds.to(accelerator.device)
    ema = Ema(losses.to(accelerator.device), run.ema)
    model = accelerator.prepare(losses)
    optimizers = build_optimizers(losses, config.optimizer)
    record = make_record(config, identities, train.version + scenes.version)
    first = load_state(accelerator, run, model, optimizers, ema, record) if resume else 0
    log = loop.TrainingLog(accelerator, run, config, first)
    if cut := describe_cut_captions(train.entries, tokenizer, config.model.text_length - 1):
        log.message(f"warning: {cut}")
    forward = torch.compile(model) if run.compile else model
    prior = Prior(losses.network, scorer, tokenizer, config.sampling)
    held_out = embed_captions(scorer, validation, config.validation_language)
    captions = CaptionSampler(train.entries, config.language_weights)
    figures = Figures()
    batches = loader.passes(
        lambda step, rows: make_batch(train, scenes, captions, tokenizer, scorer, config, step, rows),
        loop.pass_rows(accelerator, run),
        first,
        run,
        accelerator.device,
    )

    for step, run in log.steps():
        model.train()
        rate = set_learning_rate(optimizers, step, run.steps, config.optimizer)
        passes: list[Tensor] = []
        for _ in loop.exchanging_in_last(range(run.accumulation), model):
            batch = PriorBatch(*(part.to(accelerator.device, non_blocking=True) for part in next(batches)))
            embed, text_embed = embed_batch(scorer, embeds, batch)
            with accelerator.autocast():
                loss = forward(embed, text_embed, batch)
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
            mean = accelerator.reduce(torch.tensor(values["loss"], device=accelerator.device), "mean")
            log.record(step, loss=float(mean), gradient=float(norm), rate=rate)
        if loop.is_due(step, run.validate_every, run):
            with ema.swapped_into(losses):
                values = validate(prior, *held_out, validation_embed)
            log.record(step, **values)
            log.message(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
        if loop.is_due(step, run.save_every, run):
            save_state(accelerator, run, step, model, optimizers, ema, record)

    if accelerator.is_main_process:
        with ema.swapped_into(losses):
            identity = save_prior(config, losses.network, identities)
        print(f"prior {identity} written to {Path(run.model_dir) / 'prior.safetensors'}")
    log.close()


@torch.no_grad()
def embed_batch(scorer: Scorer, embeds: Tensor, batch: PriorBatch) -> tuple[Tensor, Tensor]:
    """Image and text embeddings (B, D) of a batch, normalised, on its device.

    Args:
        scorer: embeds scenes and captions.
        embeds: (pictures, D) of the set.
        batch: like `embeds` on the device of the scorer.
    """
    embed = embeds[batch.pictures]
    if len(batch.scenes):
        embed = torch.cat([embed, scorer.embed_images(batch.scenes).to(embed)])
    return embed, F.normalize(scorer.model.encode_text(batch.scorer_ids).float(), dim=-1)


if __name__ == "__main__":
    run_stage("prior", main)
