"""What generating returns: candidates, ranked results, previews, and sheets of pictures."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from PIL import Image
from torch import Tensor

from dalle_mini_impl.pipeline.picture_embed import to_text
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import contact_sheet, enlarge
from dalle_mini_impl.util.picture_metadata import PICTURE_FORMATS, infotext
from dalle_mini_impl.util.save_picture import save_picture


@dataclass(frozen=True, eq=False)
class Candidate:
    """One sampled picture."""

    image: Image.Image
    """RGB; RGBA if it was sampled with `transparent`."""
    score: float | None
    """What it was ranked by: a cosine with `rank="clip"`, otherwise nats; None if it was not ranked."""
    seed: int
    """The candidate's own seed, which makes exactly this picture again: `generate(prompt, seeds=[seed])`."""
    image_ids: Tensor
    """(h, w) int64, on the CPU; (0, 0) where a diffusion decoder drew pixels."""


@dataclass(frozen=True, eq=False)
class Result(Sequence[Candidate]):
    """The kept candidates of one prompt, best first."""

    prompt: str
    """The caption."""
    negative: str
    """What guidance moved away from; "" means "no caption"."""
    candidates: tuple[Candidate, ...]
    """Best first."""
    settings: dict[str, Any]
    """Model, checkpoint hash, precision and sampling settings; for a completed or varied picture also its canvas."""
    source: Image.Image | None = None
    """The picture that was completed or varied, at the model's size; it comes first in the grid."""
    image_embed: Sequence[float] = ()
    """What the picture was to show; empty for no embedding."""

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        return self.candidates[index]

    def grid(self, columns: int = 0, scores: bool = False, zoom: int = 1) -> Image.Image:
        """All pictures on one sheet.

        Args:
            columns: pictures per row; 0 makes the sheet about square.
            scores: write each picture's score under it.
            zoom: how many times larger the pictures are shown.
        """
        return grid([self], columns, scores, zoom)

    def metadata(self, candidates: Sequence[Candidate] | None = None, zoom: int = 1) -> dict[str, Any]:
        """What a picture file of these candidates records: enough for `dalle sample --from` to make them again.

        Args:
            candidates: some of this result's; None for all.
            zoom: how many times larger they are in the file.

        Returns:
            `settings`, a zoom other than 1, and under `pictures` prompt, negative caption, seed and score of each, and
            its image embedding, if it has one.
        """
        chosen = self.candidates if candidates is None else candidates
        prompt = {"prompt": self.prompt, "negative": self.negative}
        embed = {"image_embed": to_text(self.image_embed)} if self.image_embed else {}
        pictures = [{**prompt, "seed": c.seed, "score": c.score, **embed} for c in chosen]
        return {**self.settings, **({"zoom": zoom} if zoom != 1 else {}), "pictures": pictures}

    def file_names(self, ending: str = ".png") -> list[str]:
        """A name for the file of each picture, best first.

        It is the prompt, a hash of prompt, negative caption, image embedding and canvas, and the rank.
        """
        stem = "".join(c if c.isalnum() else "-" for c in self.prompt.lower()).strip("-")[:40] or "picture"
        # The hash distinguishes prompts with equal stems ("a cat", "a/cat"), and one prompt on several canvases.
        identity = f"{self.prompt}\0{self.negative}"
        if self.image_embed:
            identity += f"\0{to_text(self.image_embed)}"
        if "canvas" in self.settings:
            identity += f"\0{json.dumps(self.settings['canvas'])}"
        stem += "-" + hashlib.sha256(identity.encode()).hexdigest()[:6]
        return [f"{stem}-{rank:02d}{ending}" for rank in range(1, len(self) + 1)]

    def save(self, folder: str | Path, zoom: int = 1, ending: str = ".png") -> list[Path]:
        """Write each picture to a file of its own, with its metadata inside.

        Args:
            folder: made if it does not exist.
            zoom: how many times larger the pictures are written; each pixel becomes a square.
            ending: of the files, which says their format: `.png`, `.jpg` or `.webp`.

        Returns:
            The paths, best first; see `file_names`.

        Raises:
            UserError: a file cannot be written, the format cannot hold the pictures, or the ending is another one.
        """
        if ending not in PICTURE_FORMATS:
            raise UserError(
                f"expected an ending among {', '.join(PICTURE_FORMATS)}, got {ending!r}; choose one of these"
            )
        return [
            save_picture(image, Path(folder) / name, self.metadata([candidate], zoom), picture_text([self], candidate))
            for name, candidate in zip(self.file_names(ending), self.candidates, strict=True)
            for image in enlarge([candidate.image], zoom)
        ]


@dataclass(frozen=True, eq=False)
class Preview:
    """Unfinished pictures, or at the end the finished ones."""

    done: float
    """Fraction of all image ids that are sampled, 0 to 1."""
    images: list[Image.Image]
    """Some of the pictures that are being decoded, white where ids are missing; in the last preview those of the
    result."""
    result: Result | None = None
    """In the last preview what `generate` returns, before that None."""


def picture_text(results: Sequence[Result], candidate: Candidate | None = None) -> str:
    """What other programs show of a picture; see `util.picture_metadata.infotext`.

    Args:
        results: the picture's, or all those of a grid.
        candidate: the picture; None for a grid, of which the first seed and size are shown.
    """
    settings = results[0].settings
    shown = candidate or results[0][0]
    sampling = settings["sampling"]
    is_diffused = sampling["decoder"] == "diffusion"
    values = {
        "Steps": sampling["steps"] if is_diffused else shown.image_ids.numel(),
        "Sampler": sampling["sampler"] if is_diffused else "autoregressive",
        "CFG scale": sampling["guidance"],
        "Seed": shown.seed,
        "Size": f"{shown.image.width}x{shown.image.height}",
        "Model hash": settings["checkpoint"],
        "Model": settings["model"],
        "Temperature": sampling["temperature"],
        "Top k": sampling["top_k"],
        "Top p": sampling["top_p"],
        "Precision": settings["precision"],
    }
    return infotext([result.prompt for result in results], [result.negative for result in results], values)


MAX_GRID_ROWS = 24
"""Most results that `grid` puts under each other."""


def grid(results: Sequence[Result], columns: int = 0, scores: bool = False, zoom: int = 1) -> Image.Image:
    """One sheet of several results.

    Args:
        results: of one or several prompts; several are written under their pictures.
        columns: pictures per row; 0 gives each of several results a row of its own, or a part of a row if there are
            more than `MAX_GRID_ROWS`, and makes the sheet of a single one about square.
        scores: write each picture's score under it.
        zoom: how many times larger the pictures are shown; each pixel becomes a square.
    """
    images: list[Image.Image] = []
    labels: list[str] = []
    for result in results:
        images += [*([result.source] if result.source else []), *(candidate.image for candidate in result)]
    if len(results) > 1 or scores:
        for result in results:
            name = [result.prompt] * (len(results) > 1)
            labels += ["source"] * (result.source is not None)
            labels += [
                " ".join([*([f"{c.score:.3f}"] if scores and c.score is not None else []), *name]) for c in result
            ]
    if not columns and len(results) > 1:
        columns = max(len(result) + (result.source is not None) for result in results)
        if len(results) > MAX_GRID_ROWS:
            columns *= math.ceil(math.sqrt(len(results) / columns))  # about as many columns as rows
    transparent = any(image.mode == "RGBA" for image in images)
    return contact_sheet(enlarge(images, zoom), columns, labels, transparent=transparent)
