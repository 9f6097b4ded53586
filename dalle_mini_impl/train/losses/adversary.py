"""The adversarial loss of a VQGAN (Esser et al. 2021): a discriminator, its optimizer, and the generator loss."""

from typing import cast

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
"""AdamW's moment decay rates for the discriminator; a low first one is usual for GANs."""
MAX_ADAPTIVE_RATIO = 1e4
"""Bound on the ratio of gradient norms in the adaptive weight (Esser et al. 2021)."""
LECAM_DECAY = 0.99
"""Decay of the running mean logits in LeCam regularization."""


class Adversary:
    """A discriminator and its optimizer.

    The discriminator learns from `first_step` on; the decoder learns from it from `generator_start` on. In between the
    decoder only has its other losses: an untrained discriminator would ruin what it has learned.

    Args:
        accelerator: the processes of the run.
        config: settings; `weight` is above 0.
        last_weight: weight of the decoder's last layer.
        run: number of steps and of passes per step.
    """

    def __init__(self, accelerator: Accelerator, config: GanConfig, last_weight: nn.Parameter, run: RunConfig) -> None:
        self.accelerator = accelerator
        self.config = config
        self.last_weight = last_weight
        self.passes = run.accumulation
        self.set_schedule(run)
        self.discriminator = channels_last(Discriminator(config.channels)).to(accelerator.device)
        self.network = accelerator.prepare(self.discriminator)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.learning_rate, betas=BETAS, weight_decay=0.0
        )
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.mean_logits = torch.zeros(2, device=accelerator.device)
        """Running mean logits of real pictures and of reconstructions, for LeCam. Part of the resumable state."""

    def set_schedule(self, run: RunConfig) -> None:
        """Compute `first_step` and `generator_start` from the run's steps, which change in a run by the clock."""
        self.generator_start = max(round(self.config.start * run.steps), self.config.discriminator_warmup)
        self.first_step = self.generator_start - self.config.discriminator_warmup

    def accumulate_gradients(self, target: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Add the gradients of the discriminator's hinge loss for one pass.

        Args:
            target: (B, 3, H, W) real pictures.
            pixels: (B, 3, H, W) their reconstructions; they get no gradient.

        Returns:
            Scalars for the log.
        """
        target = target.detach().requires_grad_(self.config.r1 > 0)
        with self.accelerator.autocast():
            logits = self.network(torch.cat([target, pixels.detach().clamp(-1, 1)]))
        real, fake = logits.chunk(2)
        hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        loss = hinge
        if self.config.r1:
            loss = loss + self.config.r1 / 2 * _r1_penalty(real, target)
        if self.config.lecam:
            loss = loss + self.config.lecam * self._lecam(real, fake)
        self.accelerator.backward(loss / self.passes)
        return {"discriminator": hinge, "real_logit": real.mean(), "fake_logit": fake.mean()}

    def combined_loss(self, loss: Tensor, result: Reconstruction) -> tuple[Tensor, Tensor]:
        """Combine the reconstruction loss with the generator loss, which is minus the mean logit.

        Returns:
            A scalar whose gradients are those of `loss + weight × generator loss` (its value is another), and the
            weight.
        """
        decoded = result.decoded
        with self.accelerator.autocast():
            generator_loss = -self.discriminator(result.pixels.clamp(-1, 1)).mean()
        # Both gradients are computed at the decoder's output; from there one backward pass takes both.
        loss_gradient = torch.autograd.grad(loss, decoded, retain_graph=True)[0]
        generator_gradient = torch.autograd.grad(generator_loss, decoded, retain_graph=True)[0]
        weight = torch.tensor(self.config.weight, device=decoded.device)
        if self.config.adaptive:
            loss_norm = self._norm_at_last_layer(decoded, loss_gradient)
            generator_norm = self._norm_at_last_layer(decoded, generator_gradient)
            weight = weight * (loss_norm / (generator_norm + 1e-6)).clamp(max=MAX_ADAPTIVE_RATIO)
        return (decoded * (loss_gradient + weight * generator_gradient).to(decoded.dtype)).sum(), weight

    def _norm_at_last_layer(self, decoded: Tensor, gradient: Tensor) -> Tensor:
        """Norm of a gradient at the last layer's weight, averaged over processes."""
        (weight_gradient,) = torch.autograd.grad(decoded, self.last_weight, gradient, retain_graph=True)
        return self.accelerator.reduce(weight_gradient, "mean").norm()

    def _lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """Squared distance of each kind's logits from the other kind's running mean (Tseng et al. 2021)."""
        means = self.accelerator.reduce(torch.stack([real.detach().mean(), fake.detach().mean()]), "mean")
        self.mean_logits.lerp_(means, 1 - LECAM_DECAY)
        mean_real, mean_fake = self.mean_logits
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()


def _r1_penalty(logits: Tensor, pixels: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): mean squared norm of the logits' gradient with respect to the pixels."""
    (gradient,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), pixels, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def build_adversary(accelerator: Accelerator, config: ImageTokenizerRun, tokenizer: ImageTokenizer) -> Adversary | None:
    """Build the adversary of a config; None if `gan.weight` is 0.

    Raises:
        UserError: a setting is out of range.
    """
    gan, side = config.gan, min(config.model.size)
    if gan.weight < 0 or not 0 <= gan.start <= 1:
        raise UserError(
            f"expected gan.weight of 0 or more and gan.start from 0 to 1, got {gan.weight} and {gan.start}; change one"
        )
    if not gan.channels or side < 2 ** len(gan.channels):
        raise UserError(
            f"expected gan.channels with at least one width, and at most as many as {side} pixels can be halved, "
            f"got {list(gan.channels)}; change them"
        )
    if not gan.weight:
        return None
    if accelerator.mixed_precision == "fp16":  # its gradients at the decoder's output are not scaled
        raise UserError("expected bf16 or fp32 with gan.weight above 0, got fp16; choose another run.precision")
    last_layer = [module for module in tokenizer.decoder.modules() if isinstance(module, nn.Conv2d)][-1]
    return Adversary(accelerator, gan, cast(nn.Parameter, last_layer.weight), config.run)
