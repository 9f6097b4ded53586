"""Batches of the transformer: streams of captions and image ids, with some of the ids corrupted or hidden."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.losses.image_targets import sample_ids
from dalle_mini_impl.train.replay import Replay, batch_pictures
from dalle_mini_impl.train.shared.row_random import row_generators
from dalle_mini_impl.train.shared.scene_rows import SceneRows

NO_ID = -1
"""Stands for the image ids of a scene until it is encoded."""
SCENE = 2
"""Last number of the seed of a scene's row, which keeps what is changed in it apart from what the scene shows."""


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
    distributions: list[tuple[np.ndarray, np.ndarray]] = []
    every = range(*rows.indices(run.batch_size))
    for row, of_row in zip(every, row_generators(run.seed, step, every), strict=True):
        random = np.random.default_rng([run.seed, step, row, SCENE]) if row in composed else of_row
        source, sampler, index = pictures[numbers[row]] if row in numbers else (cache, captions, 0)
        variant = int(random.integers(source.image_ids.shape[1]))
        ids = source.image_ids[index, variant].astype(np.int64)
        if row in composed:
            ids = np.full_like(ids, NO_ID)
        elif config.image_targets != "argmax":
            distributions.append(source.distribution(index, variant))
            # From a separate generator, so that all other random numbers are the same for all kinds of targets.
            ids = sample_ids(*distributions[-1], np.random.default_rng([run.seed, step, row, 1]))
        target_ids.append(ids)
        input_ids.append(corrupt(ids, source, config.id_corruption, random))
        hidden_share = random.random() * (random.random() < config.id_dropout)
        hidden.append(random.random(ids.size) < hidden_share)
        if random.random() < config.caption_dropout:
            texts.append([])
        else:
            text = composed[row].caption if row in composed else sampler.sample(index, random).text
            texts.append(tokenizer.encode_with_dropout(text, config.bpe_dropout, random, config.text_length))
    prefix = stream.prefix(texts)
    targets = stream.join(prefix, torch.from_numpy(np.stack(target_ids)))
    inputs = stream.join(prefix, torch.from_numpy(np.stack(input_ids)))
    inputs[:, prefix.shape[1] :][torch.from_numpy(np.stack(hidden))] = stream.config.bos_id
    likely_ids = probabilities = None
    if config.image_targets == "soft":
        soft = zip(*distributions, strict=True)
        likely_ids, probabilities = (torch.from_numpy(np.stack(part)).flatten(1, 2) for part in soft)
    pixels = [torch.from_numpy(np.array(scene.image)) for scene in composed.values()]
    return StreamBatch(
        inputs[:, :-1],
        targets[:, 1:],
        likely_ids,
        probabilities,
        torch.tensor([row - (rows.start or 0) for row in scene_rows], dtype=torch.int64),
        torch.stack(pixels) if pixels else torch.empty(0),
    )


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
    missing = stream.image_offset + NO_ID
    first = stream.prefix_length - 1
    for part, own in ((batch.inputs[:, first + 1 :], ids[:, :-1]), (batch.targets[:, first:], ids)):
        part[batch.scene_rows] = torch.where(part[batch.scene_rows] == missing, own, part[batch.scene_rows])
    return batch
