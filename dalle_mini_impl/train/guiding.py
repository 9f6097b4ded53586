"""What a scorer that guides painting must not be fooled by (`guiding` in the settings of the scorer stage).

Gradient ascent finds what a scorer rates highly, and of one that has learned from pictures alone that is seldom a
picture: patches of the right colours in no order. So it also learns from

- cuts, which are what it sees while a picture is painted;
- pictures changed as little as possible and as harmfully as possible: scorers that withstand this have gradients that
  look like what they mean (Santurkar et al. 2019, arXiv:1906.09453);
- spoiled pictures, blended or with their tiles shuffled, which match no caption;
- paintings against itself, which match no caption either, as in the training of energy-based models with chains that go
  on from step to step (Du and Mordatch 2019, arXiv:1903.08689).

Everything follows from (seed, step) but the unfinished paintings, which are part of a run's state.
"""

from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from dalle_mini_impl.config.guiding import GuidingConfig
from dalle_mini_impl.config.training import RunConfig, ScorerRun
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer
from dalle_mini_impl.painting.cuts import Cuts, cut_out, sample_cuts
from dalle_mini_impl.painting.gradients import (
    clamp_with_inward_gradient,
    half_squared_angle,
    straight_through,
)
from dalle_mini_impl.painting.painter import PaintSettings, remaining_rate
from dalle_mini_impl.train.losses.contrastive import contrastive_loss
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.loop import generator_for
from dalle_mini_impl.util.errors import UserError

TILES = 4
"""Tiles along a side of a picture that is spoiled by shuffling them."""
BLEND = (0.35, 0.65)
"""Least and largest share of the first of two blended pictures."""
BLEND_NOISE = 0.2
"""Largest standard deviation of a blend's noise, in pixel values."""
CUT, SPOILED, NEW_PAINTING, PAINTING = range(1, 5)
"""Last but one numbers of seeds, which keep the random numbers of a step apart."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as the painter has them."""


class Pairs(NamedTuple):
    """Some pictures with their captions."""

    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    text_ids: Tensor
    """(B × M, L), the M captions of a picture in a row."""
    groups: Tensor
    """(B,) int64, equal for pictures of one concept."""


class Guiding:
    """Extends the batches of a training by what the scorer must not be fooled by.

    Args:
        accelerator: the processes of the run.
        config: settings of the stage.
        clip: the scorer.
        ema: of the scorer.
        tokenizer: decodes paintings; None if there are none.

    Raises:
        UserError: the pictures to be added do not fit the batch or the number of processes and passes.
    """

    def __init__(
        self, accelerator: Accelerator, config: ScorerRun, clip: CLIP, ema: Ema, tokenizer: ImageTokenizer | None
    ) -> None:
        self.accelerator, self.config, self.run = accelerator, config.guiding, config.run
        self.clip, self.ema = clip, ema
        passes = accelerator.num_processes * self.run.accumulation
        limits = {"spoiled": self.run.batch_size // 2, "paintings": self.run.batch_size}
        for name, most in limits.items():
            count = getattr(self.config, name)
            if count > most or count % passes:
                raise UserError(
                    f"expected guiding.{name} of at most {most} in multiples of {passes}, as the batch is divided into "
                    f"{passes} passes, got {count}; change it"
                )
        self.spoiled, self.painted = self.config.spoiled // passes, self.config.paintings // passes
        self.first_pass = accelerator.process_index * self.run.accumulation
        self.paintings = None
        if self.config.paintings and tokenizer is not None:
            first = self.first_pass * self.painted
            places = range(first, first + self.painted * self.run.accumulation)
            model = config.model
            self.paintings = Paintings(
                self.config, self.run, tokenizer, places, model.image_size, config.captions, model.text_length
            )

    @property
    def unmatched(self) -> int:
        """Pictures at the end of each extended pass that match no caption."""
        return self.spoiled + self.painted

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps for a run to be continued exactly."""
        return self.paintings.tensors() if self.paintings else {}

    def extend(self, step: int, number: int, batch: Pairs, cut_rows: Tensor) -> Pairs:
        """Add to the batch of a pass what `guiding` asks for.

        Args:
            step: of the training.
            number: of the pass, from 0.
            batch: of the pass.
            cut_rows: (B,) int64, the row in the global batch of each picture that is to be cut, -1 for the others.

        Returns:
            B pairs and those of paintings' true pictures, and at the end `unmatched` pictures without captions.
        """
        if self.config == GuidingConfig():
            return batch
        first = self.first_pass + number
        pixels, spoiled = batch.pixels, self._spoiled(step, first * self.spoiled, batch.pixels)
        painted = pixels[:0]
        if self.paintings:
            chosen = slice(number * self.painted, (number + 1) * self.painted)
            self.paintings.renew(step, chosen, batch)
            painted = self.paintings.advance(self.accelerator, self.clip, self.ema, step, chosen).to(pixels.device)
            batch = Pairs(*map(torch.cat, zip(batch, self.paintings.true_pairs(chosen), strict=True)))
        pixels = torch.cat([self._cut(step, pixels, cut_rows.tolist()), batch.pixels[len(pixels) :]])
        if self.config.attack:
            pixels = attacked(self.accelerator, self.clip, batch._replace(pixels=pixels), self.config)
        # Those that match nothing are cut as often as pictures, or a cut would mean a picture.
        others = torch.cat([spoiled, painted])
        rows = self.run.batch_size + first * self.spoiled + np.arange(self.spoiled)
        after = self.run.batch_size + self.config.spoiled + first * self.painted + np.arange(self.painted)
        chances = [np.random.default_rng([self.run.seed, step, CUT, row]).random() for row in (*rows, *after)]
        rows = np.where(np.array(chances) < self.config.cut_share, np.append(rows, after), -1)
        return batch._replace(pixels=torch.cat([pixels, self._cut(step, others, rows.tolist())]))

    def _cut(self, step: int, pixels: Tensor, rows: list[int]) -> Tensor:
        """Pictures of which those whose row is not -1 are replaced by a random cut."""
        if max(rows, default=-1) < 0:
            return pixels
        parts = [
            one if row < 0 else random_cuts(one, 1, generator_for(self.run.seed, step, CUT, row))
            for one, row in zip(pixels.split(1), rows, strict=True)
        ]
        return torch.cat(parts)

    def _spoiled(self, step: int, first: int, pixels: Tensor) -> Tensor:
        """Pictures made of some of a pass: in turns two blended, with noise, and one with its tiles shuffled."""
        found = [pixels[:0]]
        for index in range(self.spoiled):
            generator = generator_for(self.run.seed, step, SPOILED, first + index)
            start, width = index * len(pixels) // self.spoiled, len(pixels) // self.spoiled
            one, other = (pixels[start + row] for row in torch.randperm(width, generator=generator)[:2].tolist())
            spoiled = shuffled(one, generator) if (first + index) % 2 else blended(one, other, generator)
            found.append(spoiled[None])
        return torch.cat(found)


class Paintings:
    """Pictures that are being painted against the scorer, a step in each step of training.

    Each begins with random image ids for a caption of the batch, and makes way for a new one after
    `guiding.painting_steps`, not all in the same step. The true pictures are kept beside them.

    Args:
        config: settings; `paintings` of them in all processes.
        run: settings of the run.
        tokenizer: decodes them.
        places: which of all paintings this process has.
        image_size: side of the scorer's pictures in pixels.
        captions: of each picture.
        text_length: ids of each caption.
    """

    def __init__(
        self,
        config: GuidingConfig,
        run: RunConfig,
        tokenizer: ImageTokenizer,
        places: range,
        image_size: int,
        captions: int,
        text_length: int,
    ) -> None:
        self.config, self.run, self.tokenizer, self.places = config, run, tokenizer, places
        self.side = image_size
        self.table = tokenizer.table()
        device, count = tokenizer.device, len(places)
        height, width = tokenizer.config.grid
        self.z, self.mean, self.square = (
            torch.zeros(count, self.table.shape[1], height, width, device=device) for _ in range(3)
        )
        self.age = torch.full((count,), -1)
        """Steps since it was begun; -1 for none yet."""
        self.true_pixels = torch.zeros(count, 3, image_size, image_size)
        self.text_ids = torch.zeros(count, captions, text_length, dtype=torch.int64)
        self.groups = torch.zeros(count, dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps of them."""
        names = ("z", "mean", "square", "age", "true_pixels", "text_ids", "groups")
        return {f"painting_{name}": getattr(self, name) for name in names}

    def true_pairs(self, chosen: slice) -> Pairs:
        """The true pictures of some of them, with their captions."""
        return Pairs(self.true_pixels[chosen], self.text_ids[chosen].flatten(0, 1), self.groups[chosen])

    def renew(self, step: int, chosen: slice, batch: Pairs) -> None:
        """Begin those anew that are finished, each for a random picture of its own part of the batch.

        Args:
            step: of the training.
            chosen: the paintings that go with the batch.
            batch: some rows of the global batch.
        """
        count, life = chosen.stop - chosen.start, self.config.painting_steps
        captions = batch.text_ids.unflatten(0, (len(batch.pixels), -1))
        for number, index in enumerate(range(chosen.start, chosen.stop)):
            place = self.places[index]
            # Without captions where `captions` was changed for a resumed run, so that those of its state do not fit.
            is_begun = self.age[index] >= 0 and self.text_ids[index].any()
            if is_begun and (step + place * life // self.config.paintings) % life:
                continue
            generator = generator_for(self.run.seed, step, NEW_PAINTING, place)
            first = number * len(batch.pixels) // count
            row = first + int(torch.randint(len(batch.pixels) // count, (), generator=generator))
            ids = torch.randint(len(self.table), self.z.shape[2:], generator=generator)
            self.z[index] = self.table[ids.to(self.table.device)].permute(2, 0, 1)
            self.mean[index], self.square[index], self.age[index] = 0, 0, 0
            self.true_pixels[index] = batch.pixels[row]
            self.text_ids[index] = captions[row]
            self.groups[index] = batch.groups[row]

    def advance(self, accelerator: Accelerator, clip: CLIP, ema: Ema, step: int, chosen: slice) -> Tensor:
        """Paint some of them on by a step of Adam against the scorer's averaged weights.

        Returns:
            (n, 3, S, S) in [-1, 1], what they showed before it.
        """
        cuts, life = self.config.painting_cuts, self.config.painting_steps
        text_ids = self.text_ids[chosen, 0].to(self.z.device)
        z = self.z[chosen].clone().requires_grad_()
        quantized = straight_through(z, self.table)
        with accelerator.autocast():
            decoded = self.tokenizer.decode_z(quantized)
            pixels = clamp_with_inward_gradient(resized(decoded, self.side), -1, 1)
            views = [
                random_cuts(one, cuts, generator_for(self.run.seed, step, PAINTING, self.places[index]))
                for index, one in zip(range(chosen.start, chosen.stop), pixels.split(1), strict=True)
            ]
            image, text, *_ = functional_call(clip, ema.state, (torch.cat(views), text_ids))
            embeds = F.normalize(image.float(), dim=-1).unflatten(0, (-1, cuts)), F.normalize(text.float(), dim=-1)
            loss = half_squared_angle(embeds[0], embeds[1][:, None]).mean(1).sum()
            (gradient,) = torch.autograd.grad(loss, z)
        rates = [remaining_rate(age / life) for age in self.age[chosen].tolist()]
        ages = self.age[chosen].to(z.device)[:, None, None, None] + 1
        rate = torch.tensor(rates, device=z.device)[:, None, None, None] * PaintSettings.learning_rate
        mean, square = self.mean[chosen], self.square[chosen]
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        change = mean / (1 - BETAS[0] ** ages) / ((square / (1 - BETAS[1] ** ages)).sqrt() + EPSILON)
        low, high = (bound[:, None, None] for bound in self.table.aminmax(dim=0))
        self.z[chosen] = (z.detach() - rate * self.table.std() * change).clamp(low, high)
        self.age[chosen] += 1
        return pixels.detach()


def attacked(accelerator: Accelerator, clip: CLIP, batch: Pairs, config: GuidingConfig) -> Tensor:
    """Pictures changed as a scorer likes it least: so that the contrastive loss of the batch rises.

    Args:
        accelerator: the processes of the run.
        clip: the scorer.
        batch: the pictures, with their captions.
        config: length and steps of the change.

    Returns:
        (B, 3, S, S) in [-1, 1].
    """
    pixels, groups = batch.pixels.to(clip.device), batch.groups.to(clip.device)
    first_captions = batch.text_ids.unflatten(0, (len(pixels), -1))[:, 0].to(clip.device)
    with torch.no_grad(), accelerator.autocast():
        text = clip.encode_text(first_captions)
    scale, bias = clip.logit_scale.detach(), None if clip.logit_bias is None else clip.logit_bias.detach()
    change = torch.zeros_like(pixels)
    for _ in range(config.attack_steps):
        change.requires_grad_()
        with accelerator.autocast():
            loss = contrastive_loss(clip.encode_image(pixels + change), text, scale, bias, groups)
        (gradient,) = torch.autograd.grad(loss, change)
        reach = 2 / (config.attack_steps + 1)
        change = change.detach() + reach * config.attack * gradient / root_mean_square(gradient)
        change = change * (config.attack / root_mean_square(change)).clamp(max=1)
    return (pixels + change).clamp(-1, 1).to(batch.pixels.device)


def root_mean_square(pixels: Tensor) -> Tensor:
    """Of each of n pictures (n, 3, S, S): (n, 1, 1, 1), above 0."""
    return pixels.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=torch.finfo(pixels.dtype).tiny)


def random_cuts(pixels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Cuts (count, 3, S, S) of a picture (1, 3, S, S), as painting makes them."""
    height, width = pixels.shape[2:]
    return cut_out(pixels, sample_cuts(Cuts(count=count), height, width, generator), generator)


def blended(one: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Two pictures (3, S, S) in one, with noise."""
    share, noise = torch.rand(2, generator=generator).tolist()
    share = BLEND[0] + (BLEND[1] - BLEND[0]) * share
    grain = torch.randn(one.shape, generator=generator).to(one)
    return (share * one + (1 - share) * other + noise * BLEND_NOISE * grain).clamp(-1, 1)


def shuffled(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A picture (3, S, S) whose tiles have changed places."""
    side = picture.shape[1] // TILES
    order = torch.randperm(TILES**2, generator=generator).tolist()
    result = picture.clone()
    for place, tile in enumerate(order):
        (y, x), (from_y, from_x) = divmod(place, TILES), divmod(tile, TILES)
        result[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = picture[
            :, from_y * side : (from_y + 1) * side, from_x * side : (from_x + 1) * side
        ]
    return result


def resized(decoded: Tensor, side: int) -> Tensor:
    """Decoded pictures (n, 3, H, W), squashed into the scorer's squares where they are none."""
    size = (side, side)
    return decoded if decoded.shape[2:] == size else F.interpolate(decoded, size, mode="bicubic", antialias=True)
