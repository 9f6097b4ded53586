"""What sampling gives: candidates, ranked results, and sheets of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from PIL import Image
from torch import Tensor

from dalle_mini_impl.util.images import contact_sheet, save_png


@dataclass(frozen=True, eq=False)
class Candidate:
    """One sampled picture."""

    image: Image.Image
    """RGB."""
    score: float | None
    """What it was ranked by: a cosine with `rank="clip"`, otherwise nats; None when not ranked."""
    seed: int
    """Makes exactly this picture again: `generate(prompt, seeds=[seed])`."""
    image_ids: Tensor
    """(h, w) int64."""


@dataclass(frozen=True, eq=False)
class Result(Sequence[Candidate]):
    """The kept candidates of one prompt, best first."""

    prompt: str
    negative: str
    candidates: tuple[Candidate, ...]
    settings: dict[str, Any]
    """Model, checkpoint hash and sampling settings."""
    source: Image.Image | None = None
    """The picture that was completed or varied, as the model got it; it comes first in the grid."""

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

    def grid(self, columns: int = 0, scores: bool = False) -> Image.Image:
        """All pictures on one sheet, optionally with their scores underneath."""
        return grid([self], columns, scores)

    def metadata(self, candidates: Sequence[Candidate] | None = None) -> dict[str, Any]:
        """What a PNG of these candidates (default: all) records, enough to make them again."""
        chosen = self.candidates if candidates is None else candidates
        pictures = [
            {"prompt": self.prompt, "negative": self.negative, "seed": c.seed, "score": c.score} for c in chosen
        ]
        return {**self.settings, "pictures": pictures}

    def save(self, folder: str | Path) -> list[Path]:
        """Write each picture as its own PNG with its settings inside; returns the paths, best first."""
        stem = "".join(c if c.isalnum() else "-" for c in self.prompt.lower()).strip("-")[:40] or "picture"
        # Prompts that spell alike in file names, and one prompt for several pictures, must not overwrite each other.
        what = f"{self.prompt}\0{self.negative}"
        if "canvas" in self.settings:
            what += f"\0{json.dumps(self.settings['canvas'])}"
        stem += "-" + hashlib.sha256(what.encode()).hexdigest()[:6]
        return [
            save_png(candidate.image, Path(folder) / f"{stem}-{rank:02d}.png", self.metadata([candidate]))
            for rank, candidate in enumerate(self.candidates, 1)
        ]


@dataclass(frozen=True, eq=False)
class Preview:
    """Pictures while they are being drawn."""

    done: float
    """Share of all image ids that are drawn, 0 to 1."""
    images: list[Image.Image]
    """Some of the pictures being drawn, what is still to come in white; of the last preview, those that are kept."""
    result: Result | None = None
    """Of the last preview, what `generate` returns."""


def grid(results: Sequence[Result], columns: int = 0, scores: bool = False) -> Image.Image:
    """One sheet of several results; with several prompts, each starts a row of its own by default.

    Args:
        results: of one or several prompts.
        columns: pictures per row; 0 chooses.
        scores: write each picture's score under it.
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
    return contact_sheet(images, columns, labels)
