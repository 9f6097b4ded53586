"""VQGAN+CLIP (Crowson et al. 2022): optimise a latent of an image tokenizer until CLIP scorers find that it fits.

No transformer is involved, and every image tokenizer and every scorer can be used. Each step quantizes the latent,
decodes it, takes random cuts of the picture, embeds them with the scorers, and follows the gradient of their distances
to the targets back to the latent.
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
from dalle_mini_impl.painting.cuts import Cuts, cut_out, sample_cuts
from dalle_mini_impl.painting.gradients import (
    clamp_with_inward_gradient,
    half_squared_angle,
    nearest_ids,
    stop_gradient_below,
    straight_through,
)
from dalle_mini_impl.painting.start import Start, pixel_size, start_ids
from dalle_mini_impl.painting.targets import EmbeddedTargets, Target, embed_targets, parse_targets
from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.images import to_images
from dalle_mini_impl.util.memory import check_memory
from dalle_mini_impl.util.picture_metadata import infotext
from dalle_mini_impl.util.save_picture import save_picture

DECODED_BYTES, CUT_BYTES = 600, 60
"""Bytes that a pixel of the picture, and of each cut, takes in a step of the included model, gradients included;
measured as 656 and 66. Larger image tokenizers take more."""
CUT_BOX_BYTES = 100
"""Bytes that the random numbers of a cut take."""
FINAL_LEARNING_RATE = 0.1
"""Fraction of the learning rate that is left at the end of its cosine decay."""


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
    """Adam's, in standard deviations of the codebook's entries; decays to a tenth on a cosine."""
    init_weight: float = 0.0
    """Weight of the mean squared difference between the latent and that of the picture it starts from, in squared
    standard deviations of the codebook's entries."""
    seed: int = 0
    """Of random first ids and of all cuts, 0 to 2**63 - 1."""
    cuts: Cuts = field(default_factory=Cuts)
    """The random crops that scorers embed."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"expected 0 or more steps, got {self.steps} steps; raise them")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"expected a seed from 0 to 2**63 - 1, got seed {self.seed}; choose another")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"expected a learning rate above 0, got learning rate {self.learning_rate}; try 0.2")
        if not 0 <= self.init_weight < math.inf:
            raise UserError(f"expected an init weight of 0 or more, got init weight {self.init_weight}; 0 is off")


@dataclass(frozen=True)
class Step:
    """Losses of one step, before it changed the latent."""

    number: int
    """From 1 on."""
    loss: float
    """Mean of the scorers' losses, plus the init weight's term."""
    losses: dict[str, float]
    """By scorer: sum over targets of weight × mean half squared angle; below 0 where negative weights dominate."""


@dataclass(frozen=True, eq=False)
class Painting:
    """A finished picture."""

    image: Image.Image
    """RGB."""
    image_ids: Tensor
    """(h, w) int64, on the CPU."""
    settings: dict[str, Any]
    """What it was made by and from."""

    def save(self, path: str | Path) -> Path:
        """Write the picture, as JPEG or WebP if the path ends so and else as PNG, with the settings inside.

        Returns:
            The path.

        Raises:
            UserError: the file cannot be written.
        """
        targets = [
            target.get("text", target.get("picture", "noise"))
            + (f":{target['weight']:g}" if target["weight"] != 1 else "")
            for target in self.settings["prompts"]
        ]
        values = {
            "Steps": self.settings["steps"],
            "Sampler": "VQGAN+CLIP",
            "Seed": self.settings["paint"]["seed"],
            "Size": f"{self.image.width}x{self.image.height}",
            "Model hash": self.settings.get("image_tokenizer"),
            "Model": self.settings.get("model"),
        }
        return save_picture(self.image, path, self.settings, infotext([" | ".join(targets)], [], values))


class Painter:
    """Paints one picture; iterate over it to run its steps.

    Neither the image tokenizer nor the scorers are changed. On a CPU, equal arguments give equal pictures; on another
    device the same seed means other cuts.

    Args:
        tokenizer: decodes the latent that is optimised; trained here or imported, with any quantizer.
        scorers: CLIP scorers by name; the mean of their losses is minimised.
        targets: a prompt as `parse_targets` reads it, or the targets themselves.
        settings: all numbers.
        start: a picture, which is cropped to the size, or image ids (h, w); None starts from random ids.
        source: what else the result's settings record, such as the names of models.

    Raises:
        UserError: there is no scorer or no target, all weights are 0, a target's picture cannot be read, the size is no
            multiple of the image tokenizer's factor, the ids do not fit, or there is an init weight without a start.
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
            raise UserError(
                f"expected a picture to start from with an init weight, got init weight {settings.init_weight} alone; "
                f"give both or neither"
            )
        targets = parse_targets(targets) if isinstance(targets, str) else list(targets)
        if not scorers or not any(target.weight for target in targets):
            raise UserError(
                f"expected at least one scorer, and one prompt with a weight other than 0, got {len(scorers)} scorers "
                f"and {len(targets)} prompts; add what is missing"
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.done = 0
        """Steps that have been run."""
        self._scorers = [(name, scorer, embed_targets(targets, scorer)) for name, scorer in scorers.items()]
        self._metadata = {
            **(source or {}),
            "prompts": [target.metadata() for target in targets],
            "paint": dataclasses.asdict(settings),
        }
        self._check_memory(start)
        self._table = tokenizer.table()
        self._codebook_std = float(self._table.std())
        self._low, self._high = (bound[:, None, None] for bound in self._table.aminmax(dim=0))
        generator = torch.Generator().manual_seed(settings.seed)
        self._ids = start_ids(tokenizer, settings.size, start, generator).to(self._table.device)
        device = self._table.device
        # Millions of random numbers a step are drawn where they are needed; the first ids are the same on all devices.
        self._generator = generator if device.type == "cpu" else torch.Generator(device).manual_seed(settings.seed)
        self._start = self._table[self._ids].permute(0, 3, 1, 2).contiguous()
        self._z = self._start.clone().requires_grad_()
        self._optimizer = torch.optim.Adam([self._z])

    @property
    def image(self) -> Image.Image:
        """The picture so far, RGB."""
        return to_images(self.tokenizer.decode(self._ids))[0]

    def __iter__(self) -> Iterator[Step]:
        """Run the steps that are left, one per iteration."""
        while self.done < self.settings.steps:
            yield self._step()

    def result(self) -> Painting:
        """The picture so far, with its ids and all settings."""
        return Painting(self.image, self._ids[0].cpu(), {**self._metadata, "steps": self.done})

    def _check_memory(self, start: Start | None) -> None:
        """Refuse a size, or as many cuts at a time, as cannot fit into the memory, before anything is allocated.

        Raises:
            UserError: it needs more than there is, at the least.
        """
        cuts = self.settings.cuts
        factor = self.tokenizer.config.factor
        if isinstance(start, Tensor) and start.ndim == 2:
            height, width = (side * factor for side in start.shape)
        else:
            height, width = pixel_size(self.tokenizer, self.settings.size)
        views = min(cuts.count, cuts.chunk) * min(height, width) ** 2
        needed = height * width * DECODED_BYTES + views * CUT_BYTES + cuts.count * CUT_BOX_BYTES
        check_memory(needed, f"a painting of {width}×{height} pixels", "choose a smaller size, or fewer cuts at a time")

    def _step(self) -> Step:
        """Move the latent once, and quantize it.

        Raises:
            UserError: the loss or its gradient is not a number; the picture stays as it was.
        """
        loss, losses, is_finite = self._compute_gradient()
        if not is_finite:
            raise UserError(
                f"expected a finite loss and gradient, got loss {loss} at step {self.done + 1}; use smaller weights, "
                f"or another scorer or image tokenizer if it comes with every prompt"
            )
        decay = remaining_rate(self.done / self.settings.steps)
        self._optimizer.param_groups[0]["lr"] = self.settings.learning_rate * self._codebook_std * decay
        self._optimizer.step()
        with torch.no_grad():
            self._z.copy_(self._z.clamp(self._low, self._high))
            self._ids = nearest_ids(self._z, self._table)
        self.done += 1
        return Step(self.done, loss, losses)

    @torch.enable_grad()
    def _compute_gradient(self) -> tuple[float, dict[str, float], bool]:
        """Set z's gradient to that of one step's loss; returns the loss, each scorer's, and whether all is finite."""
        pixels = clamp_with_inward_gradient(self.tokenizer.decode_z(straight_through(self._z, self._table)), -1, 1)
        pixel_gradient, parts = self._score(pixels.detach().requires_grad_())
        init_loss = self.settings.init_weight * F.mse_loss(self._z, self._start) / self._codebook_std**2
        # `autograd.grad` with respect to z alone computes no gradients of weights, so no module has to be frozen.
        gradients = [pixel_gradient, torch.ones_like(init_loss)]
        (gradient,) = torch.autograd.grad([pixels, init_loss], self._z, gradients)
        self._z.grad = gradient
        # All numbers of a step leave the device together, because each look has to wait for it.
        *values, init_value, is_finite = torch.stack(
            [*parts, init_loss.detach(), gradient.isfinite().all().to(init_loss.dtype)]
        ).tolist()
        names = [name for name, _, _ in self._scorers]
        losses = {name: sum(values[number :: len(names)]) for number, name in enumerate(names)}
        loss = sum(losses.values()) / len(losses) + init_value
        return loss, losses, bool(is_finite) and math.isfinite(loss)

    def _score(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradient of the mean of the scorers' losses at the pixels (1, 3, H, W), and each scorer's part per chunk."""
        cuts = self.settings.cuts
        gradient = torch.zeros_like(pixels)
        parts: list[Tensor] = []
        height, width = pixels.shape[2:]
        for boxes in sample_cuts(cuts, height, width, self._generator).split(cuts.chunk):
            views = cut_out(pixels, boxes, self._generator)
            total = pixels.new_zeros(())
            for _, scorer, targets in self._scorers:
                loss = weighted_distances(scorer.embed_pixels(views), targets).sum() / cuts.count
                parts.append(loss.detach().to(pixels))
                total = total + loss.to(total.device) / len(self._scorers)
            gradient += torch.autograd.grad(total, pixels)[0]
        return gradient, parts


def remaining_rate(share: float) -> float:
    """Fraction of the learning rate that is left after a share of the steps."""
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * share)) / 2


def weighted_distances(embed: Tensor, targets: EmbeddedTargets) -> Tensor:
    """What the distance of each picture to each target adds to the loss.

    Args:
        embed: (N, D) embeddings of pictures, L2-normalised.
        targets: T targets of the same scorer.

    Returns:
        (N, T): half squared angles times weights, without gradient below the targets' stops.
    """
    angles = targets.weights.sign() * half_squared_angle(embed[:, None], targets.embed[None])
    return targets.weights.abs() * stop_gradient_below(angles, targets.stops)


def paint(
    tokenizer: ImageTokenizer,
    scorers: Mapping[str, Scorer],
    targets: str | Sequence[Target],
    settings: PaintSettings | None = None,
    start: Start | None = None,
) -> Painting:
    """Paint a picture, all steps at once. `Painter` takes the same arguments and also gives intermediate pictures."""
    painter = Painter(tokenizer, scorers, targets, settings, start)
    for _ in painter:
        pass
    return painter.result()
