"""A prompt and settings to sample with, and the shortest way to sample."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import GeneratedIds, Prompt, generate
from helpers.models import GRID, TEXT_LENGTH, TEXT_VOCAB, make_transformer, randomise

PROMPT = Prompt((5, 300, 17), (41, 2))
SETTINGS = SamplingConfig(temperature=0.9, top_k=31, top_p=0.95, guidance=2.5)


def sample(
    model: tuple[Transformer, Stream],
    seeds: Sequence[int],
    prompt: Prompt = PROMPT,
    settings: SamplingConfig = SETTINGS,
    **options: Any,
) -> GeneratedIds:
    """`generate` with defaults for everything but the model and the seeds."""
    transformer, stream = model
    return generate(transformer, stream, prompt, seeds, settings, **options)


def random_image_ids(seed: int = 1, count: int | None = None) -> Tensor:
    """Image ids (h, w) of one picture, or (count, h, w) of several."""
    shape = GRID if count is None else (count, *GRID)
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


def make_text_model(position: str = "rope", bos_id: int = 2) -> tuple[Transformer, Stream]:
    """A small random transformer that ends some captions early and others late; `bos_id` -1 is a stream without BOS."""
    transformer, stream = make_transformer(position, bos_id=bos_id)
    with torch.no_grad():  # padding ids, which end captions, get greater logits
        transformer.head.weight[TEXT_VOCAB : TEXT_VOCAB + TEXT_LENGTH] *= 6
    return transformer, stream


def make_packable_text_model() -> tuple[Transformer, Stream]:
    """A random transformer of a width that compiled code supports, whose final norm has unequal gains."""
    layout = StreamConfig(text_length=TEXT_LENGTH, text_vocab=TEXT_VOCAB, grid=GRID, image_vocab=61)
    transformer = randomise(build_transformer(TransformerConfig(n_layer=3, n_head=2, n_embd=64), layout), 3)
    transformer.norm.weight.data *= torch.linspace(0.2, 3, 64)  # packing folds them into the head
    return transformer, Stream(layout)
