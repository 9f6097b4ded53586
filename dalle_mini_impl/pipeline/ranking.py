"""The best of what was drawn, as pictures."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.pipeline.results import Candidate
from dalle_mini_impl.sampling.generate import GeneratedIds


def best(
    request: GenerationRequest, drawn: GeneratedIds, decode: Callable[[Tensor], list[Image.Image]]
) -> tuple[Candidate, ...]:
    """The candidates to keep, best first.

    Args:
        request: what was asked for.
        drawn: all candidates.
        decode: image ids (n, h, w) -> RGB pictures.
    """

    def pictures(image_ids: Tensor) -> list[Image.Image]:
        images = [image for part in image_ids.split(request.chunk) for image in decode(part)]
        return [request.canvas.finish(image) for image in images] if request.canvas else images

    images = pictures(drawn.image_ids) if request.scorer else []
    order, scores = list(range(len(drawn.numbers))), [None] * len(drawn.numbers)
    if request.settings.rank != "none":
        values = _scores(request, drawn, images)
        order, scores = values.argsort(descending=True, stable=True).tolist(), values.tolist()
    order = order[: request.keep]
    # Decoding all takes about as long as sampling them: what nobody asks to see is left out.
    shown = [images[i] for i in order] if images else pictures(drawn.image_ids[order])
    ids, seeds = drawn.image_ids.cpu(), [request.seeds[number] for number in drawn.numbers.tolist()]
    return tuple(Candidate(image, scores[i], seeds[i], ids[i]) for i, image in zip(order, shown, strict=True))


def _scores(request: GenerationRequest, drawn: GeneratedIds, images: list[Image.Image]) -> Tensor:
    """What candidates are ordered by, (n,); see `DalleMini.generate`. `images` are needed where the scorer is."""
    likelihood = drawn.likelihood.cpu()
    if request.scorer is None:
        return likelihood
    cosines = request.scorer.cosines(images, request.prompt)
    return likelihood + request.scorer.scale * cosines if request.settings.rank == "both" else cosines
