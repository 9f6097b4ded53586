"""Pictures of an earlier training in the transformer's batches, so that it forgets less of them."""

from dataclasses import dataclass

from dalle_mini_impl.config.training import RunConfig, TransformerRun
from dalle_mini_impl.data.token_cache import CaptionSampler, TokenCache, open_cache
from dalle_mini_impl.train.shared.order import batch_indices
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True)
class Replay:
    """The earlier pictures."""

    cache: TokenCache
    captions: CaptionSampler
    rows: int
    """How many rows of each batch are theirs: the last ones."""


def open_replay(config: TransformerRun, train: TokenCache, pictures: int) -> Replay | None:
    """Open the token cache that `replay` names.

    Args:
        config: settings of the stage.
        train: image ids of the training pictures.
        pictures: rows of each batch that are no scenes.

    Returns:
        The earlier pictures; None if `replay` names no cache.

    Raises:
        UserError: the cache cannot be read, or was made with another image tokenizer or with other `soft_ids`; or
            `replay.share` leaves a batch no pictures of one kind.
    """
    if not config.replay.cache:
        return None
    cache = open_cache(config.replay.cache, "train", train.header.image_tokenizer)
    rows = round(config.replay.share * pictures)
    if not 0 < rows < pictures:
        raise UserError(
            f"expected replay.share of which a batch of {pictures} has pictures of both kinds, got "
            f"{config.replay.share:g}; change it, or leave replay.cache out"
        )
    counts = [0 if part.likely_ids is None else part.likely_ids.shape[-1] for part in (train, cache)]
    if config.image_targets != "argmax" and counts[0] != counts[1]:
        raise UserError(
            f"expected {config.replay.cache} to be encoded with soft_ids={counts[0]} like {config.cache}, got "
            f"{counts[1]}; encode again, or set image_targets=argmax"
        )
    return Replay(cache, CaptionSampler(cache.entries, config.language_weights), rows)


def own_pictures(config: TransformerRun) -> int:
    """How many pictures of each batch are of the cache itself: neither scenes nor of an earlier training."""
    batch = config.run.batch_size
    pictures = batch - (round(config.scenes.share * batch) if config.scenes.store else 0)
    return pictures - (round(config.replay.share * pictures) if config.replay.cache else 0)


def batch_pictures(
    cache: TokenCache, captions: CaptionSampler, replay: Replay | None, step: int, pictures: int, run: RunConfig
) -> list[tuple[TokenCache, CaptionSampler, int]]:
    """The `pictures` of a step's global batch: the token cache of each, its captions and its index there."""
    own = pictures - (replay.rows if replay else 0)
    sources = [(cache, captions, own)] + ([(replay.cache, replay.captions, replay.rows)] if replay else [])
    return [
        (part, sampler, index) for part, sampler, rows in sources for index in batch_indices(step, rows, len(part), run)
    ]
