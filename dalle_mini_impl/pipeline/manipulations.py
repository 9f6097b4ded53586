"""Pictures changed through the embedding that the scorer has of them (Ramesh et al. 2022, DALL-E 2, sections 3 and 4).

A picture is divided in two: its image embedding, which says what it shows, and the random numbers that draw it given
that, which say everything else: uniform numbers of its image ids (`sampling.inversion`), or the noise of a diffusion
decoder. A transformer needs positions for an image embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.pipeline.canvas import encode_picture
from dalle_mini_impl.pipeline.diffused import chosen_decoder
from dalle_mini_impl.pipeline.diffused_edit import describe_picture, redraw_diffused
from dalle_mini_impl.pipeline.picture_embed import from_text, to_text
from dalle_mini_impl.pipeline.results import Result
from dalle_mini_impl.sampling.generate import Progress, no_progress
from dalle_mini_impl.sampling.inversion import invert, redraw
from dalle_mini_impl.sampling.requests import Prompt
from dalle_mini_impl.text.clean_caption import clean_caption
from dalle_mini_impl.unclip.diffusion_decoder import DiffusionDecoder
from dalle_mini_impl.unclip.directions import check_share, slerp, text_difference, with_first_components
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini
    from dalle_mini_impl.scorer.scorer import Scorer

MAX_STEPS = 1000
"""Most pictures of a strip."""


def vary(dalle: "DalleMini", picture: Image.Image, prompt: str = "", **options: Any) -> Result:
    """Draw pictures of the same embedding: variations that keep what the scorer sees (section 3.1).

    Args:
        dalle: the model.
        picture: of any size and mode.
        prompt: what it shows; "" leaves that to the embedding.
        **options: of `DalleMini.generate`.

    Raises:
        UserError: as `DalleMini.generate`.
    """
    return dalle.generate(prompt, image_embed=picture, **options)


def mix(
    dalle: "DalleMini",
    first: Image.Image | str,
    second: Image.Image | str,
    prompt: str = "",
    *,
    steps: int = 8,
    seed: int = 0,
    **sampling: Any,
) -> list[Result]:
    """Draw pictures on the way from one embedding to another, all from the same random numbers (section 3.2).

    Args:
        dalle: the model.
        first: a picture, or a text, whose image embedding the prior draws where there is one.
        second: the same.
        prompt: caption of all pictures.
        steps: how many to draw, both ends among them.
        seed: of the random numbers, 0 to 2**63 - 1.
        **sampling: settings of `SamplingConfig`, such as `guidance` and `decoder`.

    Returns:
        A result of one picture for each step.

    Raises:
        UserError: as `DalleMini.generate`, there are fewer than 2 steps, or the embeddings are opposite.
    """
    _check_steps(steps)
    start, end = (embed(dalle, one, seed) for one in (first, second))
    embeds = [slerp(start, end, share) for share in np.linspace(0, 1, steps).tolist()]
    return _one_each(dalle, embeds, prompt, seed, sampling)


def component_views(
    dalle: "DalleMini",
    picture: Image.Image,
    others: Iterable[Image.Image],
    counts: Sequence[int] | None = None,
    prompt: str = "",
    *,
    seed: int = 0,
    **sampling: Any,
) -> list[Result]:
    """Draw what is left of a picture's embedding with a few principal components only (section 4, figure 7).

    Args:
        dalle: the model.
        picture: of any size and mode.
        others: pictures whose embeddings have those components, at least 2; one is in memory in full size at a time.
        counts: how many components are kept, for each picture to draw; None for 1, 2, 4 … and all.
        prompt: caption of all pictures.
        seed: of the random numbers, the same for all.
        **sampling: settings of `SamplingConfig`.

    Raises:
        UserError: as `DalleMini.generate`, or a count is out of range.
    """
    own, scorer = embed(dalle, picture), _own_scorer(dalle)
    prepared = [scorer.preprocess.from_images([one]) for one in others]
    known = scorer.embed_prepared(torch.cat(prepared)) if prepared else torch.empty(0, len(own))
    if counts is None:
        counts = [*(2**power for power in range((len(own) - 1).bit_length())), len(own)]
    kept = with_first_components(own, known, [*counts])
    return _one_each(dalle, list(kept), prompt, seed, sampling)


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """What an edit is made of: enough to make it again with the same checkpoint."""

    image_ids: tuple[tuple[int, ...], ...] = ()
    """(h, w) of the picture; empty with `pixels`."""
    pixels: str = ""
    """The picture as a PNG in base64, for a diffusion decoder of pixels."""
    image_embed: str
    """Of the picture, as `picture_embed.to_text` writes it."""
    source: str
    """What the picture shows; empty to move towards `target` itself."""
    target: str
    """What it should show."""
    prompt: str = ""
    """Caption of all pictures."""
    theta: float = 0.5
    """How far the embedding is rotated at the end, as a share of the angle; the paper uses 0.25 to 0.5."""
    steps: int = 5
    """Pictures, the one that is edited among them."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 switches it off."""
    decoder: str = "tokens"
    """What draws the pictures, one of `config.sampling.DECODERS`."""
    sampler_steps: int = 50
    """Steps of a diffusion decoder's DDIM, in which the noise of the picture is found as well."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture on its way from one text to another."""

    images: list[Image.Image]
    """RGB. The first one is the picture as the model reconstructs it."""
    image_ids: Tensor
    """(steps, h, w); (steps, 0, 0) where pixels are diffused."""
    metadata: dict[str, Any]
    """Model, checkpoint hash, precision, and under `edit` the record."""


@dataclass(frozen=True, kw_only=True)
class RecordedEdit:
    """What a strip of `edit` records."""

    model: str
    checkpoint: str
    """Hash of the model."""
    precision: str
    edit: EditRecord


def parse_edit(metadata: Any, path: str) -> RecordedEdit:
    """The record of a strip of `edit`, read strictly: it may come from anyone.

    Args:
        metadata: what `util.save_picture.read_metadata` reads from it.
        path: of the picture, for errors.

    Raises:
        UserError: it is something else, or a value has another type.
    """
    try:
        return from_dict(RecordedEdit, metadata, "record")
    except UserError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected --to, or a picture made by dalle edit, got {path} without; say what it should show ({reason})"
        ) from error


def edit(
    dalle: "DalleMini",
    picture: Image.Image,
    source: str,
    target: str,
    *,
    progress: Progress = no_progress,
    **options: Any,
) -> Edit:
    """Change what a picture shows by the difference of two texts (section 3.3), and keep the rest of it.

    The embedding of the picture is rotated towards the difference of the texts' embeddings, and the picture is drawn
    again from the random numbers that draw it. So the unchanged embedding gives it back: id for id by a transformer, up
    to rounding by a diffusion decoder, if that varies slowly enough for its steps to be inverted.

    Args:
        dalle: the model.
        picture: of any size; cropped to the model's proportions, and white where transparent.
        source: what it shows, such as "a cat"; empty to move towards `target` itself.
        target: what it should show, such as "a lion".
        progress: called with 1 for each id that the transformer is asked for: those of `steps` + 1 pictures; by a
            diffusion decoder each time that it predicts.
        **options: `prompt`, `theta`, `steps`, `guidance`, `decoder` and `sampler_steps` of `EditRecord`; `decoder` is
            what the checkpoint recommends where it is left out or None.

    Raises:
        UserError: an option is out of range, the scorer embeds both texts alike, or the model takes no embeddings.
    """
    chosen = options.get("decoder") or dalle.sampling.decoder
    if chosen == "tokens":
        dalle.stream.check_takes_embeddings()
        _, image_ids = encode_picture(dalle.image_tokenizer, dalle.stream.config.grid, picture)
        given: dict[str, Any] = {"image_ids": image_ids.tolist()}
    else:
        decoder = chosen_decoder(chosen, dalle.diffusion_decoder)
        given = {"sampler_steps": decoder.sampling.steps, **describe_picture(decoder, picture)}
    given["image_embed"] = to_text(embed(dalle, picture).tolist())
    values = {**given, "source": source, "target": target, **options, "decoder": chosen}
    return make_edit(dalle, from_dict(EditRecord, values, "edit"), progress)


def make_edit(dalle: "DalleMini", record: EditRecord, progress: Progress = no_progress) -> Edit:
    """Draw the pictures of an edit; see `edit` for `progress`.

    Raises:
        UserError: see `edit`; or the record does not fit the model.
    """
    _check_steps(record.steps)
    check_share(record.theta, "theta")
    if not 0 <= record.guidance < float("inf"):
        raise UserError(f"expected a guidance of 0 or more, got {record.guidance}; 1 switches it off")
    if not record.target:
        raise UserError("expected a text of what the picture should show, got none; give one")
    start = torch.tensor(from_text(record.image_embed))
    drawer: Stream | DiffusionDecoder
    drawer = dalle.stream if record.decoder == "tokens" else chosen_decoder(record.decoder, dalle.diffusion_decoder)
    if drawer.embeddings([start.tolist()]) is None:
        raise UserError("expected the image embedding of a picture in the record of an edit, got none; edit again")
    target = embed(dalle, record.target, draw=False)
    direction = text_difference(embed(dalle, record.source, draw=False), target) if record.source else target
    shares = np.linspace(0, record.theta, record.steps).tolist()
    embeds = [(slerp(start, direction, share) if share else start).tolist() for share in shares]
    if isinstance(drawer, DiffusionDecoder):
        images, image_ids = redraw_diffused(drawer, record, embeds, progress)
    else:
        image_ids = _redraw_ids(dalle, record, embeds, progress)
        images = dalle.decode(image_ids)
    return Edit(images, image_ids, {**dalle.source, "edit": to_dict(record)})


def _redraw_ids(dalle: "DalleMini", record: EditRecord, embeds: list[list[float]], progress: Progress) -> Tensor:
    """Image ids (n, h, w) of an edit by the transformer, one picture for each embedding; the first is that of it."""
    text_ids, ids = dalle.encode(record.prompt), _to_tensor(record.image_ids)
    known, (first, *_) = (dalle.transformer, dalle.stream), embeds
    uniforms = invert(*known, Prompt(text_ids, (), tuple(first)), ids, record.guidance, progress)
    prompts = [Prompt(text_ids, (), tuple(numbers)) for numbers in embeds]
    return torch.stack([redraw(*known, prompt, uniforms, record.guidance, progress) for prompt in prompts])


def embed(dalle: "DalleMini", given: Image.Image | str, seed: int = 0, *, draw: bool = True) -> Tensor:
    """The image embedding (D,) of a picture, or of a text.

    Args:
        dalle: the model.
        given: a picture, or a text.
        seed: with which the prior draws one for a text.
        draw: whether it does, where there is one; otherwise the text's own embedding is returned.

    Raises:
        UserError: the checkpoint has no scorer.
    """
    if not isinstance(given, str):
        return _own_scorer(dalle).embed_images([given])[0]
    if draw and dalle.prior is not None:
        return dalle.prior.draw([given], [seed])[0]
    return _own_scorer(dalle).embed_texts([clean_caption(given)])[0]


def _own_scorer(dalle: "DalleMini") -> "Scorer":
    """The scorer with which the transformer was trained."""
    if dalle.own_scorer is None:
        raise UserError(
            "expected a checkpoint with the scorer that the transformer was trained with, got one without; copy "
            "scorer.safetensors into it"
        )
    return dalle.own_scorer


def _to_tensor(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    try:
        return torch.tensor(rows)
    except (ValueError, RuntimeError) as error:  # rows of several lengths, or numbers beyond 64 bits
        raise UserError(
            f"expected rows of image ids in the record of an edit, got others ({error}); edit again"
        ) from error


def _one_each(
    dalle: "DalleMini", embeds: list[Tensor], prompt: str, seed: int, sampling: dict[str, Any]
) -> list[Result]:
    requests = [{"prompt": prompt, "image_embed": one} for one in embeds]
    return list(dalle.generate_many(requests, seeds=[seed], keep=1, **{"prior": "none", **sampling, "rank": "none"}))


def _check_steps(steps: int) -> None:
    if not 2 <= steps <= MAX_STEPS:
        raise UserError(f"expected 2 to {MAX_STEPS} steps, got {steps}; change it")
