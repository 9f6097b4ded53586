"""What a picture file records of how its pictures were made, read strictly: it may come from anyone."""

from dataclasses import dataclass
from typing import Any

from dalle_mini_impl.config.sampling import MAX_ZOOM, PRECISIONS, SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.pipeline.picture_embed import from_text
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.text import printable

MAX_PICTURES = 100_000
"""Pictures that one file may record."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How pictures are arranged on a grid."""

    columns: int
    """Per row; 0 makes the grid about square."""
    scores: bool
    """Whether scores are written under the pictures."""


@dataclass(frozen=True, kw_only=True)
class RecordedPicture:
    """One picture of a file."""

    prompt: str
    negative: str
    seed: int
    """The candidate's own, 0 to 2**63 - 1."""
    image_embed: str = ""
    """What the picture was to show, as `picture_embed.to_text` writes it; empty for no embedding."""


@dataclass(frozen=True, kw_only=True)
class RecordedScorer:
    """A scorer other than the checkpoint's own, which ranked the pictures."""

    name: str
    """What it was loaded by, as `Recorded.model`; empty if it was given in Python without a name."""
    identity: str
    """Hash of what its embeddings depend on."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """How the pictures of a file were sampled.

    Raises:
        UserError: a value is out of range.
    """

    model: str
    """By the name that it was loaded by: one that ships with the package, or a place of the machine it was made on."""
    checkpoint: str
    """Hash of the model."""
    precision: str
    sampling: SamplingConfig
    pictures: tuple[RecordedPicture, ...]
    layout: Layout | None = None
    """Of a grid; None for a picture of its own."""
    scorer: RecordedScorer | None = None
    """None where the checkpoint's own scorer ranked, or none."""
    zoom: int = 1
    """How many times larger than they were drawn the pictures are."""

    def __post_init__(self) -> None:
        columns = self.layout.columns if self.layout else 0
        if not 1 <= len(self.pictures) <= MAX_PICTURES or not 0 <= columns <= MAX_PICTURES:
            raise UserError(
                f"expected 1 to {MAX_PICTURES} pictures and as many columns, got {len(self.pictures)} and {columns}"
            )
        if not 1 <= self.zoom <= MAX_ZOOM:
            raise UserError(f"expected a zoom from 1 to {MAX_ZOOM}, got {self.zoom}")
        if wrong := [picture.seed for picture in self.pictures if not 0 <= picture.seed < 2**63]:
            raise UserError(f"expected seeds from 0 to 2**63 - 1, got {wrong[0]}")
        if self.precision not in PRECISIONS:
            raise UserError(f"expected precision {', '.join(PRECISIONS)}, got {self.precision!r}")

    def check_source(self, source: dict[str, str], path: str) -> None:
        """Refuse another model than the one that made the pictures.

        Args:
            source: `DalleMini.source` of a model.
            path: of the file, for the error.

        Raises:
            UserError: it is another one.
        """
        if self.checkpoint != source["checkpoint"]:
            raise UserError(
                f"expected checkpoint {printable(self.checkpoint)}, which generated {path}, got "
                f"{source['checkpoint']} of model {source['model']}; give the model that generated it to --model"
            )

    def check_scorer(self, source: dict[str, str] | None, path: str) -> None:
        """Refuse another scorer than the one that ranked the pictures, where neither is the checkpoint's own.

        Args:
            source: `DalleMini.scorer_source` of a model.
            path: of the file, for the error.

        Raises:
            UserError: it is another one.
        """
        if self.scorer and source and self.scorer.identity != source["identity"]:
            raise UserError(
                f"expected scorer {printable(self.scorer.identity)}, which ranked {path}, got {source['identity']} of "
                f"{source['name']}; give the scorer that ranked it to --scorer"
            )

    def requests(self) -> list[dict[str, Any]]:
        """Arguments of `DalleMini.generate` that make the pictures again, one request per prompt, in their order."""
        requests: dict[tuple[str, str, str], dict[str, Any]] = {}
        sampling = to_dict(self.sampling)
        for picture in self.pictures:
            key = (picture.prompt, picture.negative, picture.image_embed)
            request = requests.setdefault(key, {"prompt": key[0], "negative": key[1], "seeds": [], **sampling})
            if picture.image_embed:
                request["image_embed"] = from_text(picture.image_embed)
            request["seeds"].append(picture.seed)
            request["keep"] = len(request["seeds"])
        return list(requests.values())


def parse_recorded(metadata: Any, path: str) -> Recorded:
    """The record of a picture file.

    Args:
        metadata: what `util.save_picture.read_metadata` reads from it.
        path: of the file, for errors.

    Raises:
        UserError: it is not the record of sampled pictures, or a value has another type or is out of range.
    """
    if isinstance(metadata, dict) and "canvas" in metadata:
        raise UserError(
            f"expected a picture made by dalle sample, got {path}, which was made from another picture; "
            f"run dalle complete on that one again"
        )
    try:
        if not isinstance(metadata, dict) or not isinstance(metadata.get("pictures"), list):
            raise UserError("it has no list of pictures")
        values = {key: value for key, value in metadata.items() if key not in ("pictures", "layout", "scorer", "zoom")}
        pictures = []
        for picture in metadata["pictures"]:
            if not isinstance(picture, dict) or "score" not in picture:
                raise UserError("a picture has no score")
            plain = {key: value for key, value in picture.items() if key != "score"}  # ranking computes it anew
            pictures.append(from_dict(RecordedPicture, plain, "pictures"))
            from_text(pictures[-1].image_embed)
        layout = from_dict(Layout, metadata["layout"], "layout") if "layout" in metadata else None
        scorer = from_dict(RecordedScorer, metadata["scorer"], "scorer") if "scorer" in metadata else None
        zoom = metadata.get("zoom", 1)
        if type(zoom) is not int:
            raise UserError(f"expected a whole number as zoom, got {zoom!r}")
        sampling = from_dict(SamplingConfig, values.pop("sampling", None), "sampling")
        names = ("model", "checkpoint", "precision")
        if set(values) != set(names) or not all(isinstance(value, str) for value in values.values()):
            raise UserError(f"expected the texts {', '.join(names)}, got the keys {', '.join(map(repr, values))}")
        return Recorded(**values, sampling=sampling, pictures=tuple(pictures), layout=layout, scorer=scorer, zoom=zoom)
    except UserError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected a picture that records how it was sampled, got {path}; give one made by dalle sample to "
            f"--from ({reason})"
        ) from error
