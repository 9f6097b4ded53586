"""The noise schedule and the samplers of the diffusion prior, which are those of the library `diffusers`."""

from typing import Any

from dalle_mini_impl.config.sampling import SAMPLERS, PriorSamplingConfig
from dalle_mini_impl.model.prior import DIFFUSION_STEPS
from dalle_mini_impl.util.errors import UserError, need_extra

LEAST_LOG_SNR = -5.1
"""Smallest logarithm of signal over noise at which DPM-Solver++ begins; the cosine schedule has no signal before it."""


def make_scheduler(sampler: str = SAMPLERS[0]) -> Any:
    """A scheduler of `diffusers` with the cosine schedule (Nichol and Dhariwal 2021), for predictions of the embedding.

    Args:
        sampler: one of `SAMPLERS`; all add noise in the same way, and differ in how they remove it.

    Raises:
        UserError: diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
    except ImportError as error:
        raise need_extra("diffusers", "unclip") from error
    options: dict[str, Any] = {
        "num_train_timesteps": DIFFUSION_STEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    if sampler == "dpmsolver++":
        return DPMSolverMultistepScheduler(**options, lambda_min_clipped=LEAST_LOG_SNR)
    return (DDPMScheduler if sampler == "ddpm" else DDIMScheduler)(**options, clip_sample=False)


def check_prior_sampling(config: PriorSamplingConfig) -> None:
    """Refuse settings that no embedding can be drawn with.

    Raises:
        UserError: the sampler is unknown, or there are more steps than the process has.
    """
    if config.sampler not in SAMPLERS:
        raise UserError(f"expected sampler {', '.join(SAMPLERS)}, got {config.sampler!r}; change sampling.sampler")
    if not 1 <= config.steps <= DIFFUSION_STEPS:
        raise UserError(f"expected 1 to {DIFFUSION_STEPS} sampling.steps, got {config.steps}; change it")
