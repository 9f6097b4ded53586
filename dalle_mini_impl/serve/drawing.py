"""Fields and pictures of a request -> work for the engine."""

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.serving import RANDOM_SEEDS
from dalle_mini_impl.pipeline.canvas import Region, completion_canvas, variation_canvas
from dalle_mini_impl.pipeline.dalle_mini import DalleMini
from dalle_mini_impl.pipeline.request import GenerationRequest
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.serve.engine import DrawnRequest, Engine
from dalle_mini_impl.serve.fields import EditFields, ImageFields, ScoreFields, VariationFields
from dalle_mini_impl.serve.uploads import Prepared
from dalle_mini_impl.util.errors import UserError

MakeArguments = Callable[[DalleMini], dict[str, Any]]
"""Makes further arguments of `DalleMini.request` from an uploaded picture, on the engine's thread."""
STRENGTH = 0.5
"""Of variations by models that cannot be told by an image embedding what to draw."""


def draw(
    engine: Engine, fields: ImageFields, make_arguments: MakeArguments | None = None, **previews: Any
) -> "Future[DrawnRequest]":
    """Have the pictures of a request drawn.

    Args:
        engine: draws them.
        fields: checked.
        make_arguments: of an edit or a variation.
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
            decoder="tokens",  # whose candidates are drawn together with those of other requests
            **sampling,
            **(make_arguments(engine.dalle) if make_arguments else {}),
        )

    return engine.draw(make, fields.count, **previews)


def edit(prepared: Prepared, fields: EditFields) -> MakeArguments:
    """Arguments of `/v1/images/edits`: a canvas of which a part is redrawn."""

    def make(dalle: DalleMini) -> dict[str, Any]:
        region, tokenizer = Region(mask=prepared.mask), dalle.image_tokenizer
        canvas = completion_canvas(tokenizer, dalle.stream.config.grid, prepared.picture, region, fields.paste)
        return {"canvas": canvas}

    return make


def vary(picture: Image.Image, fields: VariationFields) -> MakeArguments:
    """Arguments of `/v1/images/variations`.

    A model that can be told by an image embedding what to draw is told that of the picture. With another model, or with
    a `strength`, each candidate keeps some ids of the picture.
    """

    def make(dalle: DalleMini) -> dict[str, Any]:
        config = dalle.stream.config
        if config.embed_positions and fields.strength is None:
            return {"image_embed": picture}
        strength = STRENGTH if fields.strength is None else fields.strength
        return {"canvas": variation_canvas(dalle.image_tokenizer, config.grid, picture, strength)}

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
