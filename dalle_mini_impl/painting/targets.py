"""What a picture is drawn towards, or away from: texts, pictures and noise."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import open_picture
from dalle_mini_impl.util.weighted_terms import split_term

BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, eq=False)
class Target:
    """One thing to resemble.

    Raises:
        UserError: it is an empty text, or a number is not finite.
    """

    content: str | Path | Image.Image | int
    """A text, the path of a picture, a picture, or the seed of a random direction, which gives variety."""
    weight: float = 1.0
    """How much it counts; negative for what should not be there."""
    stop: float = -math.inf
    """Half the squared angle, in radians and with the sign of the weight, below which it pulls or pushes no more."""

    def __post_init__(self) -> None:
        if isinstance(self.content, str) and not self.content.strip():
            raise UserError("an empty prompt was given; expected a text, or a picture's file, between the bars")
        if not math.isfinite(self.weight) or math.isnan(self.stop):
            raise UserError(f"weight {self.weight} and stop {self.stop} were given; expected numbers")

    def facts(self) -> dict[str, Any]:
        """What metadata record of it."""
        if isinstance(self.content, (str, int)):
            shown: dict[str, Any] = {"text" if isinstance(self.content, str) else "noise": self.content}
        else:
            shown = {"picture": str(self.content) if isinstance(self.content, Path) else "given"}
        stop = {} if self.stop == -math.inf else {"stop": self.stop}
        return {**shown, "weight": self.weight, **stop}

    def embed(self, scorer: Scorer) -> Tensor:
        """Where a scorer has it: (D,), L2-normalised, on the CPU.

        Raises:
            UserError: its picture cannot be read.
        """
        if isinstance(self.content, int):
            generator = torch.Generator().manual_seed(self.content)
            return F.normalize(torch.randn(scorer.model.embed_dim, generator=generator), dim=0)
        if isinstance(self.content, str):
            return scorer.embed_texts([self.content])[0]
        image = self.content if isinstance(self.content, Image.Image) else open_picture(self.content)
        return scorer.embed_images([image])[0]


def parse_targets(prompt: str) -> list[Target]:
    r"""Read prompts such as `a fox:1.0 | snow:0.4 | photo.jpg:0.5 | text:-0.3`.

    Args:
        prompt: texts and pictures' files between bars, each with up to two numbers, `:weight` or `:weight:stop`. What
            ends like a picture file is one. A number right behind a colon is always taken for one of them, so a text
            says `clock at 12\:30`; `\|` is a bar.

    Raises:
        UserError: there is nothing between two bars.
    """
    terms = [split_term(part.strip(), max_numbers=2) for part in BAR.split(prompt)]
    return [Target(content, *numbers) for content, numbers in terms]


def parse_noise(word: str) -> Target:
    """Read a noise prompt, `SEED` or `SEED:WEIGHT`.

    Raises:
        UserError: the seed is no whole number from 0 on.
    """
    seed, numbers = split_term(word)
    if not (isinstance(seed, str) and seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise UserError(f"noise prompt {word!r} was given; expected SEED or SEED:WEIGHT, such as 7:0.2")
    return Target(int(seed), *numbers)


@dataclass(frozen=True, eq=False)
class Directions:
    """Targets as one scorer has them."""

    embed: Tensor
    """(T, D), L2-normalised."""
    weights: Tensor
    """(T,)"""
    stops: Tensor
    """(T,)"""

    @classmethod
    def of(cls, targets: Sequence[Target], scorer: Scorer) -> "Directions":
        """Embed the targets, on the scorer's device."""
        weights, stops = (torch.tensor(row) for row in zip(*((t.weight, t.stop) for t in targets), strict=True))
        embed = torch.stack([target.embed(scorer) for target in targets])
        return cls(*(value.to(scorer.device) for value in (embed, weights, stops)))
