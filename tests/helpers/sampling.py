"""A prompt and settings to sample with, and the shortest way to sample."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import GeneratedIds, Prompt, generate
from dalle_mini_impl.sampling.known_ids import KnownIds
from dalle_mini_impl.sampling.requests import IdRequest
from helpers.models import GRID, TEXT_LENGTH, TEXT_VOCAB, make_transformer, randomise

PROMPT = Prompt((5, 300, 17), (41, 2))
SETTINGS = SamplingConfig(temperature=0.9, top_k=31, top_p=0.95, guidance=2.5)


def sample(
    model: tuple[Decoder, Stream],
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


def make_patches(width: int) -> tuple[Transformer, Stream]:
    """A random transformer over patches of 2 × 2 ids."""
    layout = StreamConfig(text_length=7, text_vocab=367, grid=(4, 6), image_vocab=61, patch=2)
    config = TransformerConfig(n_layer=2, n_head=2, n_embd=width, patch=2, depth_layers=1)
    return randomise(build_transformer(config, layout), 3), Stream(layout)


def requests_of_every_kind(stream: Stream) -> list[IdRequest]:
    """With unequally many candidates, guided and not, pruned, and with known ids that all or some begin with."""
    h, w = stream.config.grid
    pictures = torch.randint(61, (2, h, w), generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(h, w, dtype=torch.bool)
    below = torch.arange(h)[:, None].expand(h, w) >= 2
    guided = SamplingConfig(guidance=2.0)
    return [
        IdRequest(PROMPT, [3, 5, 8], SETTINGS),
        IdRequest(Prompt((9, 8)), [1], SamplingConfig(temperature=0.7, guidance=3.0)),
        IdRequest(PROMPT, [3], SamplingConfig(top_k=5, guidance=1.0)),
        IdRequest(Prompt(()), [2, 3], SamplingConfig(temperature=0.0, guidance=4.0)),
        IdRequest(Prompt((5, 300, 17)), [7], SamplingConfig(guidance=1.0)),
        IdRequest(Prompt((41,)), list(range(9)), guided, prune_to=1),
        IdRequest(PROMPT, [11], SETTINGS, known=KnownIds(pictures[0], everywhere, 0.5)),
        IdRequest(PROMPT, [4, 9], SETTINGS, known=KnownIds(pictures, everywhere, 0.5)),
        IdRequest(PROMPT, [3, 4], SETTINGS, known=KnownIds(pictures[0], below)),
        IdRequest(Prompt((6,)), [4], SETTINGS, known=KnownIds(pictures[1], below)),
        IdRequest(Prompt((6,)), list(range(100, 113)), guided, prune_to=2),
    ]


def alone(model: tuple[Decoder, Stream], request: IdRequest, chunk: int) -> GeneratedIds:
    """What a request gets by itself."""
    options: dict[str, Any] = {"prune_to": request.prune_to, "known": request.known, "chunk": chunk}
    return sample(model, request.seeds, request.prompt, request.sampling, **options)
