"""Embeddings and image ids of all pictures of a set, computed once and kept in files beside its store."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.data.augment import pixels_on_white
from dalle_mini_impl.data.picture_store import PictureStore
from dalle_mini_impl.evaluate.feature_cache import (
    cache_key,
    cache_path,
    read_features,
    store_fingerprint,
    write_features,
)
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.scorer.identity import scorer_identity
from dalle_mini_impl.scorer.scorer import Scorer

EMBED_BATCH = 64
"""Pictures embedded or encoded at a time."""


def embed_set(scorer: Scorer, store: PictureStore, folder: Path) -> Tensor:
    """Embeddings (n, D) of the pictures of a split; those of the whole store are kept in a file beside it.

    Args:
        scorer: embeds them.
        store: the split.
        folder: of the store.
    """
    return _kept(store, folder, "scorer", scorer_identity(scorer), store.frame, scorer.embed_images)


def encode_set(tokenizer: ImageTokenizer, identity: str, store: PictureStore, folder: Path) -> Tensor:
    """Image ids (n, h, w) of the pictures of a split; those of the whole store are kept in a file beside it.

    Args:
        tokenizer: encodes them at its training size.
        identity: of the tokenizer.
        store: the split.
        folder: of the store.
    """

    def encode(pixels: Tensor) -> Tensor:
        return tokenizer.encode(pixels).flatten(1).float().cpu()  # ids are far below 2**24, so fp32 is exact

    ids = _kept(store, folder, "image-tokenizer", identity, tokenizer.config.size, encode)
    return ids.long().unflatten(1, tokenizer.config.grid)


def _kept(
    store: PictureStore,
    folder: Path,
    name: str,
    identity: str,
    size: tuple[int, int],
    compute: Callable[[Tensor], Tensor],
) -> Tensor:
    path = cache_path(folder, name, size)
    key = cache_key(identity, store_fingerprint(folder), size)
    found = read_features(path, key, len(store.pixels))
    if found is None:
        parts = torch.arange(len(store.pixels)).split(EMBED_BATCH)
        found = torch.cat([compute(pixels_on_white(store.pixels[part.numpy()], size)) for part in parts])
        write_features(path, key, found)
    return found[torch.from_numpy(store.rows)]
