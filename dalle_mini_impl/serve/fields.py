"""The fields of requests: those of OpenAI's images API, and our settings beside them."""

from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from dalle_mini_impl.config.sampling import MAX_ZOOM, SamplingConfig
from dalle_mini_impl.config.serving import QUALITIES, ServiceLimits
from dalle_mini_impl.serve.errors import ApiError
from dalle_mini_impl.util.save_picture import check_transparency

M = TypeVar("M", bound="Fields")
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
AsList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
"""A form says nothing of whether a field that is there once is a list."""
MAX_SCORED_TEXTS = 1000
"""Most texts that a request has embedded: each label in each template."""
MAX_PARTIAL_IMAGES = 3
"""As in OpenAI's API."""


class Fields(BaseModel):
    """Fields of any request."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    """One of the names that the service answers to; None is its own."""
    user: str | None = None
    """Ignored."""


OF_DIFFUSION = ("decoder", "sampler", "steps", "eta")
"""Settings of a diffusion decoder, by which a service does not draw."""
SETTINGS = {
    name: kind for name, kind in get_type_hints(SamplingConfig).items() if name not in ("transparent", *OF_DIFFUSION)
}
"""Settings of sampling that are fields under the same name; `background` stands for `transparent`."""
_optional: dict[str, Any] = {name: (kind | None, None) for name, kind in SETTINGS.items()}
SamplingFields: Any = create_model("SamplingFields", __base__=Fields, **_optional)
"""Fields of `SETTINGS`; None is the model's recommendation."""


class ImageFields(SamplingFields):
    """Fields of all requests that draw pictures."""

    prompt: str
    """What the pictures show."""
    n: int = Field(1, ge=1)
    """Pictures to return."""
    size: str = "auto"
    """`WIDTHxHEIGHT`: the model's size, or a whole multiple of it; each pixel becomes a square."""
    response_format: Literal["url", "b64_json"] = "url"
    quality: Quality = "auto"
    """How many candidates are drawn for each picture; see `config.serving.QUALITIES`."""
    background: Literal["auto", "opaque", "transparent"] = "auto"
    """Whether plain grounds become transparent; `auto` is as the model recommends."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of JPEG and WebP pictures; by default JPEG's is high, and WebP loses nothing. With PNG only 100, which
    is OpenAI's default."""
    stream: bool = False
    """Answer with server-sent events."""
    partial_images: int = Field(0, ge=0, le=MAX_PARTIAL_IMAGES)
    """With `stream`, how many unfinished pictures to send before each finished one."""
    moderation: str | None = None
    """Ignored, as the three below."""
    style: str | None = None
    input_fidelity: str | None = None
    safety_identifier: str | None = None
    candidates: int | None = Field(None, ge=1)
    """Candidates to draw, of which the best n are returned; by default as `quality` says."""
    seed: Seed | None = None
    """Of the request; by default another one each time."""
    seeds: Annotated[list[Seed] | None, AsList] = Field(None, min_length=1)
    """The candidates' own seeds, as answers name them, instead of `seed` and `candidates`."""
    negative: str = ""
    """What the pictures should not show."""

    @property
    def ending(self) -> str:
        """Of the files of the pictures."""
        return f".{self.output_format}"

    @property
    def count(self) -> int:
        """How many candidates are drawn."""
        if self.seeds:
            return len(self.seeds)
        return self.candidates or self.n * QUALITIES[self.quality]

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings for `DalleMini.request`; None where the model's recommendation holds."""
        transparent = None if self.background == "auto" else self.background == "transparent"
        return {"transparent": transparent, **{name: getattr(self, name) for name in SETTINGS}}

    def check(self, limits: ServiceLimits, size: tuple[int, int]) -> int:
        """Check what depends on the service.

        Args:
            limits: of the service.
            size: width and height of the model's pictures.

        Returns:
            How many times larger than the model's the returned pictures are.

        Raises:
            ApiError: a limit is exceeded, or fields contradict each other.
            UserError: the format of the pictures has no transparency.
        """
        for name in ("prompt", "negative"):
            check_text(getattr(self, name), name, limits)
        if self.background == "transparent":
            check_transparency(self.ending)
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise ApiError(
                "expected output_compression with output_format jpeg or webp, got png; leave it out, or choose another",
                param="output_compression",
            )
        if not self.stream and self.partial_images:
            raise ApiError("expected partial_images with stream, got it alone; add stream", param="partial_images")
        if self.seeds and (self.candidates or self.seed is not None):
            raise ApiError("expected seeds alone, got candidates or seed as well; leave them out", param="seeds")
        if self.count > limits.max_candidates:
            # Only asking for fewer pictures helps where their number is what exceeds the limit.
            name = "n" if self.n > limits.max_candidates or not (self.candidates or self.seeds) else "candidates"
            raise ApiError(
                f"expected at most {limits.max_candidates} candidates, got {self.count} for {self.n} pictures of "
                f"quality {self.quality}; ask for fewer, or for a lower quality",
                param=name,
            )
        if self.n > self.count:
            raise ApiError(f"expected n of at most the {self.count} candidates, got {self.n}; lower it", param="n")
        zoom = read_zoom(self.size, size)
        pixels = self.n * zoom**2 * size[0] * size[1]
        if pixels > limits.max_pixels:
            raise ApiError(
                f"expected pictures of at most {limits.max_pixels} pixels together, got {self.n} of {self.size}; ask "
                f"for fewer, or for smaller ones",
                param="size",
            )
        return zoom


class EditFields(ImageFields):
    """Fields of `/v1/images/edits`, beside `image` and `mask`."""

    paste: bool = True
    """Put the original pixels back where nothing is redrawn."""


class VariationFields(ImageFields):
    """Fields of `/v1/images/variations`, beside `image`."""

    prompt: str = ""
    strength: float | None = Field(None, gt=0, le=1)
    """Share of the picture that is drawn anew; see `drawing.vary`."""


class ScoreFields(Fields):
    """Fields of `/v1/score`, beside `image`: `prompt` ranks the pictures, `labels` classify each."""

    prompt: str | None = None
    labels: Annotated[list[str] | None, AsList] = Field(None, min_length=1)
    templates: Annotated[list[str], AsList] = Field(["{}"], min_length=1)
    """Texts with {} for the label; several are averaged."""

    def check(self, limits: ServiceLimits) -> None:
        """Refuse texts that are too long, or too many of them.

        Raises:
            ApiError: they are.
        """
        labels = self.labels or []
        count = len(labels) * len(self.templates)
        if count > MAX_SCORED_TEXTS:
            raise ApiError(
                f"expected at most {MAX_SCORED_TEXTS} texts of labels in templates, got {count}; leave some out",
                param="labels",
            )
        for text in (self.prompt or "", *labels, *self.templates):
            check_text(text, "text", limits)
        longest = max(labels, key=len, default="")
        for template in self.templates:
            check_text(template.replace("{}", longest), "text", limits)


def parse(kind: type[M], values: Any) -> M:
    """Fields from the values of a JSON object or a form; null is as good as absent.

    Raises:
        ApiError: a field is unknown, missing or has a wrong value.
    """
    if not isinstance(values, dict):
        raise ApiError(f"expected a JSON object, got {type(values).__name__}; send fields by name")
    try:
        return kind.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise ApiError.of_fields(error) from error


def check_text(text: str, name: str, limits: ServiceLimits) -> None:
    """Refuse a text that is too long.

    Raises:
        ApiError: it is.
    """
    if len(text) > limits.max_prompt:
        raise ApiError(
            f"expected a {name} of at most {limits.max_prompt} characters, got {len(text)}; shorten it", param=name
        )


def read_zoom(text: str, size: tuple[int, int]) -> int:
    """How many times larger than the model's pictures those of a size such as `256x256` are.

    Args:
        text: `auto`, or width x height in pixels.
        size: width and height of the model's pictures.

    Raises:
        ApiError: it is no whole multiple.
    """
    width, height = size
    sizes = {f"{width * zoom}x{height * zoom}": zoom for zoom in range(1, MAX_ZOOM + 1)}
    if text != "auto" and text not in sizes:
        raise ApiError(f"expected size auto or one of {', '.join(sizes)}, got {text[:20]!r}; change it", param="size")
    return sizes.get(text, 1)
