"""What `DalleMini.generate` is asked for, checked."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.pipeline.canvas import Canvas
from dalle_mini_impl.sampling.generate import CHUNK, Progress, Prompt, ignore
from dalle_mini_impl.sampling.seeds import candidate_seed
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError


class GenerationRequest(NamedTuple):
    """What to draw, and what to keep of it."""

    prompt: str
    negative: str
    ids: Prompt
    seeds: Sequence[int]
    settings: SamplingConfig
    keep: int
    chunk: int
    progress: Progress
    canvas: Canvas | None
    scorer: Scorer | None = None
    """Who has a say in the ranking beside the transformer, or instead of it."""

    @property
    def drawing(self) -> dict[str, Any]:
        """What `generate` of the ids wants to know."""
        return {
            "prompt": self.ids,
            "seeds": self.seeds,
            "sampling": self.settings,
            "chunk": self.chunk,
            "progress": self.progress,
            "prune_to": self.keep if self.settings.prune and self.settings.rank != "none" else None,
            "known": self.canvas.known if self.canvas else None,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What results record of it."""
        canvas = {"canvas": self.canvas.settings} if self.canvas else {}
        return {"sampling": to_dict(self.settings), **canvas}


def make_request(
    prompt: str,
    encode: Callable[[str], list[int]],
    recommended: SamplingConfig,
    /,
    *,
    candidates: int = 32,
    keep: int = 8,
    seed: int = 0,
    negative: str = "",
    seeds: Sequence[int] | None = None,
    chunk: int = CHUNK,
    progress: Progress = ignore,
    canvas: Canvas | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """Check what `DalleMini.generate` was given.

    `encode` makes text ids of a caption, and `recommended` are the sampling settings where none are given. All else is
    as there.

    Raises:
        UserError: a number is out of range, or a sampling setting is unknown.
    """
    check_counts(candidates, keep, seed)
    if seeds is None:
        seeds = [candidate_seed(seed, number) for number in range(candidates)]
    if not seeds or not all(0 <= number < 2**63 for number in seeds):
        raise UserError(f"seeds {list(seeds)} were given; expected one or more, each from 0 to 2**63 - 1")
    settings = _settings(recommended, sampling)
    return GenerationRequest(
        prompt, negative, Prompt(encode(prompt), encode(negative)), seeds, settings, keep, chunk, progress, canvas
    )


def check_counts(candidates: int, keep: int, seed: int) -> None:
    """Refuse to sample or keep nothing, and seeds below 0."""
    if candidates < 1 or keep < 1:
        raise UserError(f"candidates {candidates} and keep {keep} were given; both must be at least 1")
    if seed < 0:
        raise UserError(f"seed {seed} was given, expected 0 or more")


def _settings(recommended: SamplingConfig, changes: dict[str, Any]) -> SamplingConfig:
    known = [field.name for field in dataclasses.fields(SamplingConfig)]
    if unknown := sorted(set(changes) - set(known)):
        raise UserError(f"unknown sampling setting {unknown[0]!r}; known are {', '.join(known)}")
    given = {name: value for name, value in changes.items() if value is not None}
    return from_dict(SamplingConfig, {**to_dict(recommended), **given}, "sampling")
