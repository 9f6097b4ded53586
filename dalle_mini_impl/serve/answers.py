"""DrawnRequest pictures -> JSON and server-sent events, as OpenAI's images API has them."""

import base64
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from dalle_mini_impl.pipeline.results import picture_text
from dalle_mini_impl.serve.engine import DrawnRequest
from dalle_mini_impl.serve.fields import ImageFields
from dalle_mini_impl.util.files import dump_json
from dalle_mini_impl.util.images import enlarge
from dalle_mini_impl.util.save_picture import picture_bytes


def encode_pictures(drawn: DrawnRequest, zoom: int, fields: ImageFields) -> list[bytes]:
    """The pictures as files, best first, each with what `dalle sample --from` draws it again by."""
    result = drawn.result
    return [
        picture_bytes(
            image,
            fields.ending,
            result.metadata([candidate], zoom),
            picture_text([result], candidate),
            fields.output_compression,
        )
        for candidate in result
        for image in enlarge([candidate.image], zoom)
    ]


def encode_previews(images: Sequence[Image.Image], zoom: int, fields: ImageFields) -> list[bytes]:
    """Unfinished pictures as files."""
    ending, quality = fields.ending, fields.output_compression
    return [picture_bytes(image, ending, quality=quality) for one in images for image in enlarge([one], zoom)]


def images_answer(
    drawn: DrawnRequest, places: Sequence[dict[str, str]], fields: ImageFields, size: str
) -> dict[str, Any]:
    """The answer to a request for pictures.

    Args:
        drawn: the pictures.
        places: of each its address or its content.
        fields: of the request.
        size: of the pictures.
    """
    data = [
        {**place, "seed": candidate.seed, "score": candidate.score}
        for place, candidate in zip(places, drawn.result, strict=True)
    ]
    return {"created": int(time.time()), "data": data, **_common(fields, size), "usage": usage(drawn)}


def usage(drawn: DrawnRequest) -> dict[str, Any]:
    """How many ids were read and sampled."""
    return {
        "input_tokens": drawn.text_ids,
        "output_tokens": drawn.image_ids,
        "total_tokens": drawn.text_ids + drawn.image_ids,
        "input_tokens_details": {"text_tokens": drawn.text_ids, "image_tokens": 0},
    }


def as_text(content: bytes) -> dict[str, str]:
    """The content of a file for JSON."""
    return {"b64_json": base64.b64encode(content).decode()}


def partial_event(kind: str, number: int, index: int, content: bytes, fields: ImageFields, size: str) -> str:
    """An event with an unfinished picture.

    Args:
        kind: `image_generation` or `image_edit`.
        number: which time it is shown, from 0.
        index: which picture of the request it is.
        content: of its file.
        fields: of the request.
        size: of the pictures.
    """
    values = {**as_text(content), "partial_image_index": number, "index": index}
    return event(f"{kind}.partial_image", {**values, **_created(fields, size)})


def completed_event(kind: str, index: int, content: bytes, drawn: DrawnRequest, fields: ImageFields, size: str) -> str:
    """An event with a finished picture; see `partial_event`."""
    candidate = drawn.result[index]
    values = {**as_text(content), "index": index, "seed": candidate.seed, "score": candidate.score}
    return event(f"{kind}.completed", {**values, **_created(fields, size), "usage": usage(drawn)})


def event(kind: str, values: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {dump_json({'type': kind, **values})}\n\n"


def _created(fields: ImageFields, size: str) -> dict[str, Any]:
    return {"created_at": int(time.time()), **_common(fields, size)}


def _common(fields: ImageFields, size: str) -> dict[str, Any]:
    return {
        "size": size,
        "quality": fields.quality,
        "background": fields.background,
        "output_format": fields.output_format,
    }
