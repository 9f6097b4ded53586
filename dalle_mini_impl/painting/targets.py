"""What a painting approaches or moves away from: texts, pictures and random directions, as embeddings of a scorer."""

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

UNESCAPED_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, eq=False)
class Target:
    """One thing that the painting should resemble, or with a negative weight should not.

    Raises:
        UserError: it is an empty text, or a number is not finite.
    """

    content: str | Path | Image.Image | int
    """A text, the path of a picture, a picture, or the seed of a random direction, which makes paintings vary."""
    weight: float = 1.0
    """Factor of its distance in the loss; negative for what should not be there."""
    stop: float = -math.inf
    """Half the squared angle in radians, with the sign of the weight, below which the target has no gradient."""

    def __post_init__(self) -> None:
        if isinstance(self.content, str) and not self.content.strip():
            raise UserError("expected a text, or a picture's file, between the bars, got an empty prompt; fill it")
        if not math.isfinite(self.weight) or math.isnan(self.stop):
            raise UserError(f"expected numbers, got weight {self.weight} and stop {self.stop}; correct them")

    def metadata(self) -> dict[str, Any]:
        """What a painting records of the target."""
        if isinstance(self.content, int):
            content: dict[str, Any] = {"noise": self.content}
        elif isinstance(self.content, str):
            content = {"text": self.content}
        else:
            content = {"picture": str(self.content) if isinstance(self.content, Path) else "given"}
        stop = {} if self.stop == -math.inf else {"stop": self.stop}
        return {**content, "weight": self.weight, **stop}

    def embed(self, scorer: Scorer) -> Tensor:
        """The target's embedding by a scorer: (D,), L2-normalised, on the CPU.

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
    r"""Parse prompts such as `a fox:1.0 | snow:0.4 | photo.jpg:0.5 | text:-0.3`.

    Args:
        prompt: texts and files of pictures, separated by bars, each with up to two numbers, `:weight` or
            `:weight:stop`. What ends like a picture file is one. A number right after a colon is always a weight or a
            stop unless escaped, as in `clock at 12\:30`; `\|` is a bar that does not separate.

    Raises:
        UserError: there is nothing between two bars.
    """
    terms = [split_term(part.strip(), max_numbers=2) for part in UNESCAPED_BAR.split(prompt)]
    return [Target(content, *numbers) for content, numbers in terms]


def parse_noise(word: str) -> Target:
    """Parse a noise prompt, `SEED` or `SEED:WEIGHT`.

    Raises:
        UserError: the seed is no integer from 0 to 2**63 - 1.
    """
    seed, numbers = split_term(word)
    if not (isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) < 2**63):
        raise UserError(f"expected a noise prompt SEED or SEED:WEIGHT, got {word!r}; write for example 7:0.2")
    return Target(int(seed), *numbers)


@dataclass(frozen=True, eq=False)
class EmbeddedTargets:
    """T targets in the embedding space of one scorer, on its device."""

    embed: Tensor
    """(T, D), L2-normalised."""
    weights: Tensor
    """(T,)"""
    stops: Tensor
    """(T,), see `Target.stop`."""


def embed_targets(targets: Sequence[Target], scorer: Scorer) -> EmbeddedTargets:
    """Embed targets, at least one, by a scorer.

    Raises:
        UserError: a target's picture cannot be read.
    """
    embed = torch.stack([target.embed(scorer) for target in targets])
    weights = torch.tensor([target.weight for target in targets])
    stops = torch.tensor([target.stop for target in targets])
    return EmbeddedTargets(embed.to(scorer.device), weights.to(scorer.device), stops.to(scorer.device))
