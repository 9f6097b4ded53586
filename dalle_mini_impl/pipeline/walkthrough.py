"""How a picture was sampled, id by id: what could have been chosen at each cell, and how likely what was chosen was."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.model.decoder import Decoder
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.captions import CaptionModel
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.sampling.likelihood import image_logits
from dalle_mini_impl.sampling.next_ids import RowSettings, guide, id_probabilities


@dataclass(frozen=True, eq=False)
class Walkthrough:
    """The n = h * w steps in which a picture was sampled."""

    pieces: list[tuple[int, str]]
    """Text ids of the caption, each with the text that it stands for."""
    cells: list[tuple[int, int]]
    """Row and column of the cell of each step."""
    image_ids: Tensor
    """(n,) int64, the image id that was sampled in each step."""
    probability: Tensor
    """(n,), of that id in the distribution that it was sampled from."""
    likeliest: Tensor
    """(n, k) int64, the likeliest ids of each step, the likeliest first."""
    probabilities: Tensor
    """(n, k), theirs."""


@torch.inference_mode()
def walk_through(
    captions: CaptionModel,
    transformer: Decoder,
    stream: Stream,
    request: GenerationRequest,
    image_ids: Tensor,
    keep: int,
) -> Walkthrough:
    """Find out what each image id of a picture was sampled from, in one pass over its stream.

    Args:
        captions: tells the pieces of the caption.
        transformer: the model that sampled the picture.
        stream: its layout.
        request: what it was sampled for: caption, image embedding, guidance, temperature, top-k and top-p. Where a
            prior draws the embedding, the picture's seed is the only one.
        image_ids: (h, w), of the picture.
        keep: how many of the likeliest ids to return for each step.

    Returns:
        All steps, in the order in which the ids were sampled.
    """
    h, w = stream.config.grid
    prompt, sampling = request.prompt_ids, request.sampling
    (image_embed, *_) = request.draw_embeds() or [prompt.image_embed]
    logits = image_logits(transformer, stream, prompt.text_ids, image_ids[None], image_embed)[0]
    if sampling.guidance != 1:
        unconditional = image_logits(transformer, stream, prompt.negative_ids, image_ids[None])[0]
        logits = guide(logits, unconditional, sampling.guidance)
    order = stream.to_order(torch.arange(h * w).view(h, w))
    settings = RowSettings.of([sampling] * (h * w), logits.device)
    distribution = id_probabilities(logits, settings).cpu()[order]
    sampled = image_ids.cpu().flatten()[order]
    best = distribution.topk(min(keep, distribution.shape[-1]))
    return Walkthrough(
        pieces=[(text_id, captions.text_tokenizer.piece(text_id)) for text_id in prompt.text_ids],
        cells=[(cell // w, cell % w) for cell in order.tolist()],
        image_ids=sampled,
        probability=distribution.gather(1, sampled[:, None])[:, 0],
        likeliest=best.indices,
        probabilities=best.values,
    )
