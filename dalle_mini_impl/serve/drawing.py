"""Fields and pictures of a request -> work for the engine."""

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.serving import RANDOM_SEEDS
from dalle_mini_impl.pipeline.canvas import Canvas, Region, completion_canvas, variation_canvas
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.serve.engine import DrawnRequest, Engine
from dalle_mini_impl.serve.fields import EditFields, ImageFields, ScoreFields, VariationFields
from dalle_mini_impl.serve.uploads import Prepared
from dalle_mini_impl.util.errors import UserError

MakeCanvas = Callable[[DalleMini], Canvas]
"""Makes what is drawn on, on the engine's thread."""


def draw(
    engine: Engine, fields: ImageFields, make_canvas: MakeCanvas | None = None, **previews: Any
) -> "Future[DrawnRequest]":
    """Have the pictures of a request drawn.

    Args:
        engine: draws them.
        fields: checked.
        make_canvas: of an edit or a variation.
        **previews: see `Engine.draw`.
    """
    seed = secrets.randbelow(RANDOM_SEEDS) if fields.seed is None else fields.seed
    sampling = fields.sampling
    if fields.count == 1 and fields.rank is None:
        sampling["rank"] = "none"  # there is nothing to order, and the scorer would take as long as drawing

    def make() -> GenerationRequest:
        return engine.dalle.request(
            fields.prompt,
            candidates=fields.count,
            keep=fields.n,
            seed=seed,
            seeds=fields.seeds,
            negative=fields.negative,
            canvas=make_canvas(engine.dalle) if make_canvas else None,
            **sampling,
        )

    return engine.draw(make, fields.count, **previews)


def edit_canvas(prepared: Prepared, fields: EditFields) -> MakeCanvas:
    """What `/v1/images/edits` draws on."""

    def make(dalle: DalleMini) -> Canvas:
        region = Region(mask=prepared.mask)
        return completion_canvas(
            dalle.image_tokenizer, dalle.stream.config.grid, prepared.picture, region, fields.paste
        )

    return make


def vary(picture: Image.Image, fields: VariationFields) -> MakeCanvas:
    """What `/v1/images/variations` draws on: the picture, of which each candidate keeps some ids.

    Args:
        picture: at the model's size.
        fields: say how much is drawn anew.
    """

    def make(dalle: DalleMini) -> Canvas:
        return variation_canvas(dalle.image_tokenizer, dalle.stream.config.grid, picture, fields.strength)

    return make


def score(scorer: Scorer, pixels: Tensor, fields: ScoreFields) -> dict[str, Any]:
    """The answer of `/v1/score`.

    Args:
        scorer: looks at the pictures.
        pixels: of the pictures, as `scorer.preprocess` makes them.
        fields: of the request.

    Raises:
        UserError: not exactly one of prompt and labels is given, or a single label would fit any picture.
    """
    if (fields.prompt is None) == (fields.labels is None):
        raise UserError("expected prompt or labels, got both or neither; prompt ranks pictures, labels classify each")
    image_embed = scorer.embed_prepared(pixels)
    if fields.prompt is not None:
        order, scores = scorer.rank_embedded(image_embed, fields.prompt)
        ranked = zip(order.tolist(), scores.tolist(), strict=True)
        return {"object": "ranking", "data": [{"index": index, "score": value} for index, value in ranked]}
    labels = list(dict.fromkeys(fields.labels or ()))
    if len(labels) == 1 and scorer.preprocess.activation == "softmax":
        raise UserError(f"expected at least two labels, got only {labels[0]!r}, which would fit any picture; add one")
    rows = scorer.probabilities(image_embed, scorer.embed_labels(labels, fields.templates)).tolist()
    data = [
        {
            "index": index,
            "labels": [
                {"label": label, "probability": value}
                for label, value in sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])
            ],
        }
        for index, row in enumerate(rows)
    ]
    return {"object": "classification", "data": data}
