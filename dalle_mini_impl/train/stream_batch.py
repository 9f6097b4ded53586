"""Batches of the transformer: streams of captions and image ids, with some of the ids corrupted or hidden.

Some rows have an embedding of their picture as well, if the model has positions for one.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.data.scenes.composer import Scene
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.losses.image_targets import sample_ids
from dalle_mini_impl.train.replay import Replay, batch_pictures
from dalle_mini_impl.train.shared.row_random import row_generators
from dalle_mini_impl.train.shared.scene_rows import SceneRows
from dalle_mini_impl.util.errors import UserError

NO_ID = -1
"""Stands for the image ids of a scene until it is encoded."""
SCENE = 2
"""Last number of the seed of a scene's row, which keeps what is changed in it apart from what the scene shows."""
EMBED = 3
"""Last number of the seed of a row's image embedding: all else in the row is the same with and without it."""
VARIANT = 5
"""Last number of the seed of a row's variant, where augmented ones are told: all else is the same again."""
ORDER = 6
"""Last number of the seed of the order in which a step has the places of pictures."""


class StreamBatch(NamedTuple):
    """Some rows of a step's global batch."""

    inputs: Tensor
    """(B, T - 1) stream without its last id, possibly with corrupted or hidden image ids."""
    targets: Tensor
    """(B, T - 1) stream without its first id."""
    likely_ids: Tensor | None
    """(B, h × w, k) with `image_targets: soft`, else None."""
    probabilities: Tensor | None
    """(B, h × w, k) with `image_targets: soft`, else None."""
    scene_rows: Tensor
    """(n,) int64: rows that are scenes, in which `fill_scenes` replaces `NO_ID`."""
    scene_pixels: Tensor
    """(n, S, S, 3) uint8."""
    image_embed: Tensor | None
    """(B, D) of length 1, or zeros for no embedding; None if the model has no positions for one."""
    embed_rows: Tensor
    """(m,) int64: rows that are scenes, whose embeddings `fill_embeddings` puts in."""
    embed_pixels: Tensor
    """(m, S, S, 3) uint8: what these are of."""
    is_augmented: Tensor | None = None
    """(B,) bool, whether the picture is an augmented variant; None with `augmented_share: 0`."""
    order: Tensor | None = None
    """(places,) places of the picture in the order in which inputs, targets and those of scenes have them, the same in
    all rows of a step; None without `random_order`."""


def check_order(config: TransformerRun) -> None:
    """Refuse `random_order` where it cannot be.

    Raises:
        UserError: its shares fall, the number of steps is not known beforehand, or parts of the model read the places
            of a picture in one order.
    """
    first, last = config.random_order
    if first > last:
        raise UserError(f"expected random_order of two shares that do not fall, got {first:g} and {last:g}; swap them")
    if last and config.run.minutes:
        raise UserError(
            f"expected run.steps with random_order, got run.minutes={config.run.minutes:g}; set run.steps instead"
        )
    model = config.model
    masks = {*model.attention_masks, *filter(None, [model.last_attention_mask])} - {"full"}
    if last and (masks or model.block.token_shift):
        got = f"attention masks {', '.join(sorted(masks))}" if masks else "block.token_shift"
        raise UserError(
            f"expected full attention without token_shift for random_order, got {got}; set model.attention_masks to "
            f"full, or leave random_order out"
        )


def make_batch(
    cache: TokenCache,
    captions: CaptionSampler,
    tokenizer: TextTokenizer,
    stream: Stream,
    config: TransformerRun,
    step: int,
    rows: slice,
    scenes: SceneRows,
    replay: Replay | None = None,
) -> StreamBatch:
    """Some rows of a step's global batch.

    Args:
        cache: image ids of the training pictures.
        captions: samples their captions.
        tokenizer: encodes the captions.
        stream: layout of the stream.
        config: settings of the stage.
        step: optimizer step, from 0.
        rows: B rows of the batch.
        scenes: which rows are scenes.
        replay: pictures of an earlier training, for the last rows of each batch that are no scenes.
    """
    run = config.run
    scene_rows, numbers = scenes.split(rows)
    composed = {row: scenes.compose(step, row) for row in scene_rows}
    pictures = batch_pictures(cache, captions, replay, step, scenes.pictures, run)
    texts: list[list[int]] = []
    target_ids: list[np.ndarray] = []
    input_ids: list[np.ndarray] = []
    hidden: list[np.ndarray] = []
    is_augmented: list[bool] = []
    drawn: dict[int, tuple[TokenCache, int, int]] = {}
    distributions: list[tuple[np.ndarray, np.ndarray]] = []
    every = range(*rows.indices(run.batch_size))
    for row, of_row in zip(every, row_generators(run.seed, step, every), strict=True):
        random = np.random.default_rng([run.seed, step, row, SCENE]) if row in composed else of_row
        source, sampler, index = pictures[numbers[row]] if row in numbers else (cache, captions, 0)
        variant = int(random.integers(source.image_ids.shape[1]))
        if config.augmented_share:
            variant = told_variant(source.image_ids.shape[1], config, step, row)
            is_augmented.append(variant > 0 and row not in composed)
        ids = source.image_ids[index, variant].astype(np.int64)
        if row in composed:
            ids = np.full_like(ids, NO_ID)
        elif config.image_targets != "argmax":
            distributions.append(source.distribution(index, variant))
            # From a separate generator, so that all other random numbers are the same for all kinds of targets.
            ids = sample_ids(*distributions[-1], np.random.default_rng([run.seed, step, row, 1]))
        drawn[row] = (source, index, variant)
        target_ids.append(ids)
        input_ids.append(corrupt(ids, source, config.id_corruption, random))
        hidden.append(hide_patches(stream, config.id_dropout, random))
        if random.random() < config.caption_dropout:
            texts.append([])
        else:
            text = composed[row].caption if row in composed else sampler.sample(index, random).text
            texts.append(tokenizer.encode_with_dropout(text, config.bpe_dropout, random, config.text_length))
    prefix = stream.prefix(texts)
    targets = stream.join(prefix, torch.from_numpy(np.stack(target_ids)))
    inputs = stream.join(prefix, torch.from_numpy(np.stack(input_ids)))
    inputs[:, prefix.shape[1] :][torch.from_numpy(np.stack(hidden))] = stream.config.bos_id
    order = order_of(stream.places, config, step)
    if order is not None:
        for image_ids in (inputs[:, prefix.shape[1] :], targets[:, prefix.shape[1] :]):
            image_ids[:] = stream.reorder(image_ids, order)
    likely_ids, probabilities = _soft_targets(distributions) if config.image_targets == "soft" else (None, None)
    pixels = [torch.from_numpy(np.array(scene.image)) for scene in composed.values()]
    return StreamBatch(
        inputs[:, :-1],
        targets[:, 1:],
        likely_ids,
        probabilities,
        torch.tensor([row - (rows.start or 0) for row in scene_rows], dtype=torch.int64),
        torch.stack(pixels) if pixels else torch.empty(0),
        *_embeddings(drawn, composed, stream, config, step, scenes),
        torch.tensor(is_augmented) if config.augmented_share else None,
        order,
    )


def _soft_targets(distributions: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Likely ids and their probabilities, each (B, n, k), of all rows."""
    likely_ids, probabilities = (
        torch.from_numpy(np.stack(part)).flatten(1, 2) for part in zip(*distributions, strict=True)
    )
    return likely_ids, probabilities


def hide_patches(stream: Stream, dropout: float, random: np.random.Generator) -> np.ndarray:
    """Which image ids of a picture are hidden in the input (see `TransformerRun.id_dropout`).

    Whole patches are: a hidden id can be predicted from the visible ids of its own patch, without the caption.

    Returns:
        (n,) bool, in the order of the stream.
    """
    share = random.random() * (random.random() < dropout)
    return np.repeat(random.random(stream.places) < share, stream.patch_length)


def told_variant(variants: int, config: TransformerRun, step: int, row: int) -> int:
    """The variant of a row's picture, where the model is told which are augmented: 0, or one of the others."""
    random = np.random.default_rng([config.run.seed, step, row, VARIANT])
    return int(random.integers(1, variants)) if random.random() < config.augmented_share else 0


def order_of(places: int, config: TransformerRun, step: int) -> Tensor | None:
    """In which order a step has the places of pictures, (places,): a random one, or the stream's.

    It is the same in all rows, so that batches do not depend on the number of processes. None without `random_order`.
    """
    until, last = config.random_order
    if not last:
        return None
    random = np.random.default_rng([config.run.seed, step, 0, ORDER])
    done = step / config.run.steps
    share = 1.0 if done < until else (last - done) / (last - until) if done < last else 0.0
    is_random = random.random() < share
    return torch.from_numpy(random.permutation(places)) if is_random else torch.arange(places)


def _embeddings(
    drawn: dict[int, tuple[TokenCache, int, int]],
    composed: dict[int, Scene],
    stream: Stream,
    config: TransformerRun,
    step: int,
    scenes: SceneRows,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Embeddings of a batch, its rows that are scenes to be embedded, and what these are of.

    Args:
        drawn: of each row the cache, the index and the variant of its picture, whatever these are of a scene.
        composed: the rows that are scenes.
        stream: layout of the stream.
        config: settings of the stage.
        step: optimizer step, from 0.
        scenes: composes the scenes.
    """
    rows: list[int] = []
    pixels: list[Tensor] = []
    if not stream.config.embed_positions:
        return None, torch.tensor(rows, dtype=torch.int64), torch.empty(0)
    embed = np.zeros((len(drawn), stream.config.embed_dim), np.float32)
    for place, (row, (cache, index, variant)) in enumerate(drawn.items()):
        random = np.random.default_rng([config.run.seed, step, row, EMBED])
        if random.random() < config.image_embed.dropout:
            continue
        is_other = random.random() < config.image_embed.other_share
        if row in composed:
            image = scenes.drawn_by_another(composed[row], random) if is_other else composed[row].image
            rows.append(place)
            pixels.append(torch.from_numpy(np.array(image)))
        elif is_other and len(others := cache.same_concept(index)) > 1:
            other = random.choice(others[others != index])
            embed[place] = cache.embed(int(other), int(random.integers(cache.image_ids.shape[1])))
        else:
            embed[place] = cache.embed(index, variant)
    embed_pixels = torch.stack(pixels) if pixels else torch.empty(0)
    return torch.from_numpy(embed), torch.tensor(rows, dtype=torch.int64), embed_pixels


def corrupt(image_ids: np.ndarray, cache: TokenCache, share: float, random: np.random.Generator) -> np.ndarray:
    """Replace a share of the ids (h, w) by those of another picture, which resemble a model's own sampling errors."""
    other_ids = cache.image_ids[random.integers(len(cache)), random.integers(cache.image_ids.shape[1])]
    return np.where(random.random(image_ids.shape) < share, other_ids, image_ids)


def to_device(batch: StreamBatch, device: torch.device) -> StreamBatch:
    """The batch on a device; copies from pinned memory are not waited for."""
    return StreamBatch._make(part if part is None else part.to(device, non_blocking=True) for part in batch)


@torch.no_grad()
def fill_scenes(batch: StreamBatch, image_tokenizer: ImageTokenizer, stream: Stream) -> StreamBatch:
    """Encode the scenes of a batch, whose tensors are on the device of the image tokenizer, and put in their ids."""
    if not len(batch.scene_rows):
        return batch
    pixels = batch.scene_pixels.permute(0, 3, 1, 2)
    ids = stream.to_order(image_tokenizer.encode(pixels)) + stream.image_offset
    ids = ids if batch.order is None else stream.reorder(ids, batch.order)
    missing = stream.image_offset + NO_ID
    first = stream.prefix_length - 1
    for part, own in ((batch.inputs[:, first + 1 :], ids[:, :-1]), (batch.targets[:, first:], ids)):
        part[batch.scene_rows] = torch.where(part[batch.scene_rows] == missing, own, part[batch.scene_rows])
    return batch


@torch.no_grad()
def fill_embeddings(batch: StreamBatch, scorer: Scorer | None) -> StreamBatch:
    """Embed the scenes of a batch, whose tensors are on the device of the scorer, and put in their embeddings."""
    if scorer is not None and batch.image_embed is not None and len(batch.embed_rows):
        pixels = batch.embed_pixels.permute(0, 3, 1, 2) / 127.5 - 1
        batch.image_embed[batch.embed_rows] = scorer.embed_pixels(pixels)
    return batch
