"""Image ids <-> the uniform numbers that draw them: the noise of a picture, from which an edited one can be drawn.

It is what x_T is to a diffusion decoder (Ramesh et al. 2022, section 3). Ids are drawn as in `next_ids`, by the inverse
of the cumulative distribution, but in double precision, from all ids, and with a smallest probability for each: so
every id of every picture has an interval of numbers that draw it, and the number in its middle is its noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream, check_ids
from dalle_mini_impl.sampling.decoding import GuidedContinuations, run_prompts
from dalle_mini_impl.sampling.generate import Progress, no_progress
from dalle_mini_impl.sampling.requests import Prompt
from dalle_mini_impl.util.errors import UserError

LEAST_PROBABILITY = 2.0**-20
"""Of each id. In a thousand ids they add up to one in a thousand, and rounding of logits moves no limit so far."""


def invert(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    image_ids: Tensor,
    guidance: float = 1.0,
    progress: Progress = no_progress,
) -> Tensor:
    """Find the uniform numbers from which `redraw` draws a picture.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        prompt: what the picture shows.
        image_ids: (h, w) in [0, K).
        guidance: classifier-free guidance scale with which it is drawn.
        progress: called with 1 for each id.

    Returns:
        (h * w,) float64 in (0, 1), in the order of the stream, on the CPU.

    Raises:
        UserError: the ids or the prompt do not fit the stream.
    """
    if tuple(image_ids.shape) != tuple(stream.config.grid):
        raise UserError(f"expected image ids of shape {stream.config.grid}, got {tuple(image_ids.shape)}; encode again")
    image_ids = check_ids(image_ids, stream.config.image_vocab, "image")
    known = stream.to_order(image_ids.cpu()).tolist()
    uniforms: list[float] = []

    def choose(cumulative: Tensor) -> int:
        chosen = known[len(uniforms)]
        start = float(cumulative[chosen - 1]) if chosen else 0.0
        uniforms.append((start + float(cumulative[chosen])) / 2)
        progress(1)
        return chosen

    _walk(transformer, stream, prompt, guidance, choose)
    return torch.tensor(uniforms, dtype=torch.float64)


def redraw(
    transformer: Decoder,
    stream: Stream,
    prompt: Prompt,
    uniforms: Tensor,
    guidance: float = 1.0,
    progress: Progress = no_progress,
) -> Tensor:
    """Draw a picture from given uniform numbers.

    Args:
        transformer: the model, in evaluation mode.
        stream: the layout it was trained on.
        prompt: what to draw.
        uniforms: (h * w,) float64 in [0, 1), in the order of the stream, as from `invert`.
        guidance: classifier-free guidance scale.
        progress: called with 1 for each id.

    Returns:
        (h, w) int64 in [0, K), on the CPU. With the prompt and guidance of `invert`, on the same machine, the ids that
        were inverted.

    Raises:
        UserError: there are not as many numbers as ids, or the prompt does not fit the stream.
    """
    if uniforms.shape != (stream.image_length,):
        raise UserError(f"expected {stream.image_length} uniform numbers, got {tuple(uniforms.shape)}; invert again")
    numbers = iter(uniforms.double())
    ids: list[int] = []

    def choose(cumulative: Tensor) -> int:
        ids.append(int(torch.searchsorted(cumulative, next(numbers), right=True).clamp(max=len(cumulative) - 1)))
        progress(1)
        return ids[-1]

    _walk(transformer, stream, prompt, guidance, choose)
    return stream.to_grid(torch.tensor(ids))


@torch.inference_mode()
def _walk(
    transformer: Decoder, stream: Stream, prompt: Prompt, guidance: float, choose: Callable[[Tensor], int]
) -> None:
    """Choose the ids of one picture one after another, each given the cumulative distribution (K,) over all ids."""
    rows = slice(1 + (guidance != 1))
    prefix = stream.prefix([prompt.text_ids, prompt.negative_ids][rows]).to(transformer.device)
    image_embed = stream.embeddings([prompt.image_embed, ()][rows])
    continuations = GuidedContinuations(
        transformer,
        run_prompts(transformer, prefix, image_embed),
        captions=[0],
        negatives=[1 if guidance != 1 else None],
        scales=[guidance],
        capacity=stream.length,
    )
    for cell in range(stream.image_length):
        _, logits = continuations.next_logits(stream.image_range)
        probabilities = logits[0].double().cpu().softmax(-1)
        least = min(LEAST_PROBABILITY, 0.5 / len(probabilities))
        cumulative = (probabilities * (1 - least * len(probabilities)) + least).cumsum(-1)
        chosen = choose(cumulative)
        if cell + 1 < stream.image_length:
            continuations.append(torch.tensor([chosen + stream.image_offset], device=transformer.device))
