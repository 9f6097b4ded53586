"""The noise schedule and the samplers of diffusion prior and decoder: those of the library `diffusers`, and DDIM."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_mini_impl.config.sampling import DIFFUSION_STEPS, SAMPLERS
from dalle_mini_impl.util.errors import UserError, need_extra

LEAST_LOG_SNR = -5.1
"""Smallest logarithm of signal over noise at which DPM-Solver++ begins; the cosine schedule has no signal before it."""
STREAM = 220406125
"""Last number of the seeds of this room's random numbers, which keeps them apart from those of image ids."""


def make_scheduler(sampler: str = SAMPLERS[0], prediction: str = "sample", steps: int | None = None) -> Any:
    """A scheduler of `diffusers` with the cosine schedule (Nichol and Dhariwal 2021).

    Args:
        sampler: one of `SAMPLERS`; all add noise in the same way, and differ in how they remove it.
        prediction: what the network predicts: `sample` (what was noised), `v_prediction` or `epsilon` (the noise).
        steps: of the sampler; None where noise is only added.

    Raises:
        UserError: diffusers is not installed.
    """
    try:
        from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
    except ImportError as error:
        raise need_extra("diffusers", "unclip") from error
    options: dict[str, Any] = {
        "num_train_timesteps": DIFFUSION_STEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
    }
    if sampler == "dpmsolver++":
        scheduler: Any = DPMSolverMultistepScheduler(**options, lambda_min_clipped=LEAST_LOG_SNR)
        if steps is not None:
            scheduler.set_timesteps(steps)
            scheduler.set_timesteps(timesteps=scheduler.timesteps[scheduler.timesteps >= 0].tolist())
        return scheduler
    if prediction == "epsilon":
        # In the last step of the process nothing is left of a picture, and from its noise alone none can be computed.
        options["timestep_spacing"] = "leading"
    scheduler = (DDPMScheduler if sampler == "ddpm" else _ddim_class())(**options, clip_sample=False)
    if steps is not None:
        scheduler.set_timesteps(steps)
        # The library begins in the middle of the process, or ends before it, where `steps` does not divide its length.
        times = scheduler.timesteps[:steps]
        if prediction == "epsilon":
            times = torch.from_numpy(np.arange(steps)[::-1] * DIFFUSION_STEPS // steps)
        scheduler.timesteps = times
    return scheduler


def add_noise(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Add the noise of some times, as every scheduler of `make_scheduler` does, but without `diffusers`.

    Args:
        clean: (n, …).
        noise: the same shape, of variance 1.
        times: (n,) int64 in [0, `DIFFUSION_STEPS`).

    Returns:
        The same shape.
    """
    kept = _kept_signal().to(clean)[times].view(-1, *[1] * (clean.dim() - 1))
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def remove_noise(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int) -> Tensor:
    """Draw with DDIM, adding no noise (Song et al. 2021), as `make_scheduler("ddim")` does, but without `diffusers`.

    So the prior of a checkpoint works where only this package is installed.

    Args:
        predict: what was noised, (n, …), from noised values (n, …) and times (n,).
        x: noise to begin with.
        steps: 1 to 1,000.

    Returns:
        What was drawn, of the shape of x.
    """
    kept = _kept_signal().to(x.device)
    times = np.round(np.arange(DIFFUSION_STEPS, 0, -DIFFUSION_STEPS / steps)).astype(np.int64)[:steps] - 1
    for time, later in zip(times.tolist(), [*times[1:].tolist(), -1], strict=True):
        clean = predict(x, torch.full((len(x),), time, device=x.device))
        noise = (x - kept[time].sqrt() * clean) / (1 - kept[time]).sqrt()
        x = kept[later].sqrt() * clean + (1 - kept[later]).sqrt() * noise
    return x


@functools.cache
def _kept_signal() -> Tensor:
    """(1001,) shares of the variance that the cosine schedule keeps after each step; the last one stands for none."""
    share = torch.arange(DIFFUSION_STEPS + 1, dtype=torch.float64) / DIFFUSION_STEPS
    cosine = torch.cos((share + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    return torch.cat([(1 - betas.float()).cumprod(0), torch.ones(1)])


@functools.cache
def _ddim_class() -> Any:
    from diffusers import DDIMScheduler

    base: Any = DDIMScheduler

    class EvenDDIMScheduler(base):  # type: ignore[misc]
        """DDIM each of whose steps ends where the next one begins; the library rounds the distance down for all."""

        def step(self, model_output: Tensor, timestep: Tensor, *arguments: Any, **options: Any) -> Any:
            later = self.timesteps[self.timesteps < timestep]
            distance = int(timestep) - (int(later.max()) if len(later) else -1)
            self.num_inference_steps = Fraction(DIFFUSION_STEPS, distance)  # by which the library divides
            return super().step(model_output, timestep, *arguments, **options)

    return EvenDDIMScheduler


def check_steps(sampler: str, steps: int, prefix: str = "") -> None:
    """Refuse settings that nothing can be drawn with.

    Args:
        sampler: its name.
        steps: of the sampler.
        prefix: before the names of the two settings, for the message.

    Raises:
        UserError: the sampler is unknown, or there are no steps, or more than the process has.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"expected sampler {', '.join(SAMPLERS)}, got {sampler!r}; change {prefix}sampler")
    if not 1 <= steps <= DIFFUSION_STEPS:
        raise UserError(f"expected 1 to {DIFFUSION_STEPS} {prefix}steps, got {steps}; change it")


def noise_generator(seed: int, place: int) -> torch.Generator:
    """A CPU generator for a candidate's seed, and for one of the things that are drawn with it."""
    state: Any = np.random.SeedSequence([seed, place, STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
