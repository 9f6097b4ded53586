"""VQGAN+CLIP (Crowson et al. 2022): a picture is optimised in an image tokenizer's latent space until scorers like it.

No transformer is involved: every image tokenizer and every scorer do. Each step quantizes the latent, decodes it, cuts
the picture at random, asks the scorers, and follows the gradient back through all of that.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.painting.cuts import Cuts, cut_out, draw_cuts
from dalle_mini_impl.painting.gradients import clamp, half_square_angle, nearest, stop_at, straight_through
from dalle_mini_impl.painting.start import Start, first_ids
from dalle_mini_impl.painting.targets import Directions, Target, parse_targets
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import save_png, to_images

LAST_SHARE = 0.1
"""Of the learning rate, that is left at the last step."""


@dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How to paint.

    Raises:
        UserError: a number is out of range.
    """

    steps: int = 200
    """Steps of the optimiser; 0 leaves the start as it is."""
    size: int | tuple[int, int] = 0
    """Side in pixels, or (H, W), multiples of the image tokenizer's factor; 0 is the size it was trained at."""
    learning_rate: float = 0.2
    """Adam's, in standard deviations of the codebook's numbers; falls to a tenth on a cosine."""
    init_weight: float = 0.0
    """How strongly the latent is held to that of the picture it starts from: times the mean squared difference, in
    squared standard deviations of the codebook's numbers."""
    seed: int = 0
    """Of the first latent and of all cuts."""
    cuts: Cuts = field(default_factory=Cuts)

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.seed < 2**63:
            raise UserError(
                f"{self.steps} steps and seed {self.seed} were given; expected 0 or more, and 0 to 2**63 - 1"
            )
        if not (0 < self.learning_rate < math.inf and 0 <= self.init_weight < math.inf):
            raise UserError(
                f"learning rate {self.learning_rate} and init weight {self.init_weight} were given; "
                f"expected one above 0, and 0 or more"
            )


@dataclass(frozen=True)
class Step:
    """What one step found, before it changed the latent."""

    number: int
    """From 1 on."""
    loss: float
    """Mean of the scorers' losses, and what holds the latent to its start."""
    losses: dict[str, float]
    """Of each scorer: sum over targets of |weight| × mean half squared angle, negative for what is pushed away."""


@dataclass(frozen=True, eq=False)
class Painting:
    """A picture that was painted."""

    image: Image.Image
    """RGB."""
    image_ids: Tensor
    """(h, w) int64."""
    settings: dict[str, Any]
    """What it was made by and from."""

    def save(self, path: str | Path) -> Path:
        """Write a PNG with the settings inside."""
        return save_png(self.image, path, self.settings)


class Painter:
    """A picture being painted; iterate over it for its steps.

    Neither image tokenizer nor scorers are changed. On a CPU, equal arguments give equal pictures.

    Args:
        tokenizer: whose latent is optimised; ours or imported, with any quantizer.
        scorers: who judge, by name; the mean of their losses is followed.
        targets: a prompt as `parse_targets` reads it, or the targets themselves.
        settings: all numbers.
        start: a picture, which is cropped to the size, or image ids; random ids where nothing is given.
        source: what else the result's settings record, such as the names of models.

    Raises:
        UserError: there is no scorer or no target, all weights are 0, a prompt's picture cannot be read, the size is no
            multiple of the image tokenizer's factor, the ids do not fit, or an init weight has no start to hold to.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        scorers: Mapping[str, Scorer],
        targets: str | Sequence[Target],
        settings: PaintSettings | None = None,
        start: Start | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        settings = settings or PaintSettings()
        if start is None and settings.init_weight:
            raise UserError(f"init weight {settings.init_weight} was given without a picture to start from; give both")
        targets = parse_targets(targets) if isinstance(targets, str) else list(targets)
        if not scorers or not any(target.weight for target in targets):
            raise UserError(
                f"{len(scorers)} scorers and {len(targets)} prompts were given; expected at least one "
                f"of each, and a weight other than 0"
            )
        self.tokenizer, self.settings, self.done = tokenizer, settings, 0
        self._judges = [(name, scorer, Directions.of(targets, scorer)) for name, scorer in scorers.items()]
        self._facts = {
            **(source or {}),
            "prompts": [target.facts() for target in targets],
            "paint": dataclasses.asdict(settings),
        }
        self._table = tokenizer.table()
        self._spread = float(self._table.std())
        self._low, self._high = (bound[:, None, None] for bound in self._table.aminmax(dim=0))
        # The seed comes before anything is drawn from it.
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._ids = first_ids(tokenizer, settings.size, start, self._generator).to(self._table.device)
        self._start = self._table[self._ids].permute(0, 3, 1, 2).contiguous()
        self._z = self._start.clone().requires_grad_()
        self._adam = torch.optim.Adam([self._z])

    @property
    def image(self) -> Image.Image:
        """The picture as it is now."""
        return to_images(self.tokenizer.decode(self._ids))[0]

    def __iter__(self) -> Iterator[Step]:
        """Paint, from where it stands to the last step."""
        while self.done < self.settings.steps:
            yield self._step()

    def result(self) -> Painting:
        """The picture as it is now, with all that is known of it."""
        return Painting(self.image, self._ids[0].cpu(), {**self._facts, "steps": self.done})

    def _step(self) -> Step:
        loss, losses = self._set_gradient()
        share = LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * self.done / self.settings.steps)) / 2
        self._adam.param_groups[0]["lr"] = self.settings.learning_rate * self._spread * share
        self._adam.step()
        with torch.no_grad():
            self._z.copy_(self._z.clamp(self._low, self._high))
            self._ids = nearest(self._z, self._table)
        self.done += 1
        return Step(self.done, loss, losses)

    @torch.enable_grad()
    def _set_gradient(self) -> tuple[float, dict[str, float]]:
        """Put the gradient of one step's loss into z; returns the loss, and each scorer's."""
        pixels = clamp(self.tokenizer.decode_z(straight_through(self._z, self._table)), -1, 1)
        gradient, losses = self._judge(pixels.detach().requires_grad_())
        pull = self.settings.init_weight * F.mse_loss(self._z, self._start) / self._spread**2
        # Asked for z's gradient alone, autograd leaves the weights' out: nothing has to be frozen.
        (self._z.grad,) = torch.autograd.grad([pixels, pull], self._z, [gradient, torch.ones_like(pull)])
        return sum(losses.values()) / len(losses) + float(pull.detach()), losses

    def _judge(self, pixels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Gradient of the mean of the scorers' losses at the pixels (1, 3, H, W), and each scorer's loss."""
        cuts, gradient, (height, width) = self.settings.cuts, torch.zeros_like(pixels), pixels.shape[2:]
        losses = dict.fromkeys((name for name, _, _ in self._judges), 0.0)
        for drawn in draw_cuts(cuts, height, width, self._generator).split(cuts.chunk):
            views = cut_out(pixels, drawn, self._generator)
            total = pixels.new_zeros(())
            for name, scorer, directions in self._judges:
                loss = distances(scorer.embed_pixels(views), directions).sum() / cuts.count
                losses[name] += float(loss.detach())
                total = total + loss.to(total.device) / len(self._judges)
            gradient += torch.autograd.grad(total, pixels)[0]
        return gradient, losses


def distances(embed: Tensor, directions: Directions) -> Tensor:
    """What each picture's distance to each target adds to the loss: (N, D) -> (N, T)."""
    angles = directions.weights.sign() * half_square_angle(embed[:, None], directions.embed[None])
    return directions.weights.abs() * stop_at(angles, directions.stops)


def paint(
    tokenizer: ImageTokenizer,
    scorers: Mapping[str, Scorer],
    targets: str | Sequence[Target],
    settings: PaintSettings | None = None,
    start: Start | None = None,
) -> Painting:
    """Paint to the end; see `Painter`, which also gives previews and the way."""
    painter = Painter(tokenizer, scorers, targets, settings, start)
    for _ in painter:
        pass
    return painter.result()
