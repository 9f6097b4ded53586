"""The adversarial side of a VQGAN (Esser et al. 2021): a discriminator, and what the decoder learns from it."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.config.training import GanConfig, ImageTokenizerRun, RunConfig
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, Reconstruction
from dalle_mini_impl.model.vqvae import channels_last
from dalle_mini_impl.train.losses.discriminator import Discriminator
from dalle_mini_impl.util.errors import UserError

BETAS = (0.5, 0.9)
"""Decay rates of the discriminator's AdamW."""
HIGHEST_WEIGHT = 1e4
"""Limit of the adaptive weight (Esser et al. 2021)."""
LECAM_DECAY = 0.99
"""Decay of the running mean logits that LeCam regularization compares with (Tseng et al. 2021)."""


class Adversary:
    """A discriminator and its optimizer.

    The discriminator is trained from step `first` on, and the decoder gets gradients from it from step `acts_from` on.
    In between, the decoder is trained by its other losses only, because gradients of an untrained discriminator would
    spoil the reconstructions.

    Args:
        accelerator: of the run.
        config: settings of the adversarial loss; `weight` is above 0.
        last: weight of the decoder's last layer, at which the adaptive weight compares gradients.
        run: number of steps and of passes per step.
    """

    def __init__(self, accelerator: Accelerator, config: GanConfig, last: nn.Parameter, run: RunConfig) -> None:
        self.accelerator, self.config, self.last = accelerator, config, last
        self.follow(run)
        self.passes = run.accumulation
        self.discriminator = channels_last(Discriminator(config.channels)).to(accelerator.device)
        optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.learning_rate, betas=BETAS, weight_decay=0.0
        )
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.optimizer: Any
        self.network, self.optimizer = accelerator.prepare(self.discriminator, optimizer)
        self.usual = torch.zeros(2)
        """Running mean logits of real pictures and of reconstructions, for LeCam. Part of the state of a run."""

    def follow(self, run: RunConfig) -> None:
        """Set `first` and `acts_from` from the number of steps, which changes during a run that is limited by time."""
        self.acts_from = max(round(self.config.start * run.steps), self.config.discriminator_warmup)
        self.first = self.acts_from - self.config.discriminator_warmup

    def learn(self, target: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Accumulate the discriminator's gradients of one pass, with the hinge loss.

        Args:
            target: (B, 3, H, W) real pictures.
            pixels: (B, 3, H, W) their reconstructions.

        Returns:
            Figures for the log.
        """
        target = target.detach().requires_grad_(self.config.r1 > 0)
        with self.accelerator.autocast():
            logits = self.network(torch.cat([target, pixels.detach().clamp(-1, 1)]))
        real, fake = logits.chunk(2)
        hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        loss = hinge
        if self.config.r1:
            loss = loss + self.config.r1 / 2 * _squared_slope(real, target)
        if self.config.lecam:
            loss = loss + self.config.lecam * self._lecam(real, fake)
        self.accelerator.backward(loss / self.passes)
        return {"discriminator": hinge, "real_logit": real.mean(), "fake_logit": fake.mean()}

    def joined(self, loss: Tensor, result: Reconstruction) -> tuple[Tensor, Tensor]:
        """Combine the reconstruction loss and the generator loss of the discriminator.

        Returns:
            A scalar with the gradients of `loss + weight × generator loss`, though not with its value; and the weight.
        """
        decoded = result.decoded
        with self.accelerator.autocast():
            generator_loss = -self.discriminator(result.pixels.clamp(-1, 1)).mean()
        # Each loss is backpropagated to the decoder's output by itself; from there on their sum is, once.
        ours = torch.autograd.grad(loss, decoded, retain_graph=True)[0]
        theirs = torch.autograd.grad(generator_loss, decoded, retain_graph=True)[0]
        weight = torch.tensor(self.config.weight, device=decoded.device)
        if self.config.adaptive:
            norms = [self._norm_at_last(decoded, gradient) for gradient in (ours, theirs)]
            weight = weight * (norms[0] / (norms[1] + 1e-6)).clamp(max=HIGHEST_WEIGHT)
        return (decoded * (ours + weight * theirs).to(decoded.dtype)).sum(), weight

    def _norm_at_last(self, decoded: Tensor, gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(decoded, self.last, gradient, retain_graph=True)
        return self.accelerator.reduce(found, "mean").norm()

    def _lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """LeCam regularization: squared distance of real and fake logits from each other's running mean."""
        means = self.accelerator.reduce(torch.stack([real.detach().mean(), fake.detach().mean()]), "mean")
        self.usual.lerp_(means.cpu(), 1 - LECAM_DECAY)
        usual = self.usual.to(real.device)
        return F.relu(real - usual[1]).square().mean() + F.relu(usual[0] - fake).square().mean()


def _squared_slope(logits: Tensor, pixels: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): mean squared norm of the logits' gradients by pixels."""
    (slope,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), pixels, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def build_adversary(accelerator: Accelerator, config: ImageTokenizerRun, tokenizer: ImageTokenizer) -> Adversary | None:
    """The adversary of a config, or None where `gan.weight` is 0.

    Raises:
        UserError: a setting is out of range.
    """
    gan, side = config.gan, config.model.image_size
    if gan.weight < 0 or not 0 <= gan.start <= 1:
        raise UserError(
            f"gan.weight is {gan.weight} and gan.start {gan.start}; expected 0 or more, and a share from 0 to 1"
        )
    if not gan.channels or side < 2 ** len(gan.channels):
        raise UserError(
            f"gan.channels {list(gan.channels)} were given; expected at least one width, and at most as "
            f"many as {side} pixels can be halved"
        )
    if not gan.weight:
        return None
    last = [module for module in tokenizer.decoder.modules() if isinstance(module, nn.Conv2d)][-1]
    return Adversary(accelerator, gan, cast(nn.Parameter, last.weight), config.run)
