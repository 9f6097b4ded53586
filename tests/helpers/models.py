"""Small models with random weights."""

import dataclasses
from typing import TypeVar

import torch
from torch import nn

from dalle_mini_impl.config.model import ImageTokenizerConfig, ScorerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer

CAPTIONS = (
    "a red heart", "a green apple", "a yellow star", "two cats", "a cat with a red hat", "ein rotes Herz",
    "ein gelber Stern", "eine grüne Katze", "et rødt hjerte", "rdeče srce", "punane süda", "een rood hart",
    "красное сердце", "зелёное яблоко", "قلب أحمر", "تفاحة خضراء", "心形", "红苹果", "赤いハート", "黄色い星",
    "빨간 하트", "สีแดง", "लाल दिल", "κόκκινη καρδιά", "a house", "a tree", "a green tree", "a red house",
    "a yellow house", "trees and houses", "hearts and stars", "the heart of a star",
)  # fmt: skip


IMAGE_TOKENIZER = ImageTokenizerConfig(
    image_size=24, factor=8, channels=(13, 17), decoder_blocks=1, codebook_size=61, embed_dim=5
)


TRANSFORMER = TransformerConfig(n_layer=3, n_head=2, n_embd=24)


SCORER = ScorerConfig(
    image_size=14, patch_size=7, n_embd=22, n_head=2, image_layers=1, text_layers=1, text_length=11, embed_dim=19
)


SAMPLING = SamplingConfig(temperature=0.9, top_k=53, top_p=0.98, guidance=2.5, rank="likelihood")


TEXT_VOCAB, TEXT_LENGTH, GRID = 367, 7, (3, 5)


M = TypeVar("M", bound=nn.Module)


def randomise(module: M, seed: int, scale: float = 1.0) -> M:
    """Give all parameters random values, as many are zero in a fresh model and would have no effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            std = scale * value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
            mean = 1.0 if value.ndim == 1 else 0.0
            value.copy_(mean + std * torch.randn(value.shape, generator=generator))
    return module.eval()


def make_transformer(
    position: str = "rope",
    seed: int = 3,
    bos_id: int = 2,
    recompute: bool = False,
    embed_dim: int = 0,
    **changes: object,
) -> tuple[Transformer, Stream]:
    """A random transformer over a stream of 1 + 7 text and 3 × 5 image positions; `changes` are to its config.

    With `embed_dim` there are 3 positions more, for an image embedding of that width.
    """
    embed = {"embed_positions": 3, "embed_dim": embed_dim} if embed_dim else {}
    stream = StreamConfig(
        text_length=TEXT_LENGTH, text_vocab=TEXT_VOCAB, grid=GRID, image_vocab=61, bos_id=bos_id, **embed
    )
    config = dataclasses.replace(TRANSFORMER, position=position, **changes)
    transformer = randomise(build_transformer(config, stream, recompute=recompute), seed, scale=2.0)
    with torch.no_grad():  # logits with a standard deviation of about 1: no id is impossible, none is certain
        transformer.head_rows()[0].mul_(0.5)
    return transformer, Stream(stream)


def make_image_tokenizer(config: ImageTokenizerConfig = IMAGE_TOKENIZER, seed: int = 5) -> ImageTokenizer:
    """A random image tokenizer whose codebook was initialised with one batch of noise."""
    tokenizer = randomise(ImageTokenizer(config), seed)
    torch.manual_seed(seed)
    side = config.factor * 3
    tokenizer.train()(torch.rand(11, 3, side, side) * 2 - 1)
    return tokenizer.eval()


def check_rows_and_threads(native, ids, threads):
    """Hidden states of a row do not depend on how many threads there are, or on the other rows."""
    results = []
    with torch.inference_mode():
        for count in (2, 1, 3):
            threads(count)
            results.append(native(ids))
        alone = native(ids[17:18])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(alone[0], results[0][17])
