"""The upsampler, which draws pictures of the diffusion decoder again in a higher resolution."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dalle_mini_impl.checkpoint.parts import load_module, read_part
from dalle_mini_impl.config.diffusion import PREDICTIONS, DiffusionDecoderConfig, DiffusionSamplingConfig
from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.model.diffusion import PictureUpsampler
from dalle_mini_impl.unclip.schedule import check_steps, make_scheduler
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file

UPSAMPLER = "upsampler"
"""Name of the part of a checkpoint."""


@dataclass(frozen=True, eq=False)
class Upsampler:
    """Draws pictures in a higher resolution.

    Raises:
        UserError: the sampling settings are out of range.
    """

    network: PictureUpsampler
    prediction: str
    """What the network predicts, one of `PREDICTIONS`."""
    sampling: DiffusionSamplingConfig

    def __post_init__(self) -> None:
        check_ranges(self.sampling, "sampling")
        check_steps(self.sampling.sampler, self.sampling.steps, "sampling.")

    @classmethod
    def find(cls, folder: Path, low_size: int, device: str = "cpu") -> "Upsampler | None":
        """The upsampler of a checkpoint, if it has one.

        Args:
            folder: of the checkpoint.
            low_size: side in pixels of the pictures to be enlarged.
            device: where to compute.

        Raises:
            UserError: it is damaged, or enlarges pictures of another size.
        """
        if not is_file(folder / f"{UPSAMPLER}.safetensors"):
            return None
        part = read_part(folder, UPSAMPLER)
        config = from_dict(DiffusionDecoderConfig, part.config.get("decoder"), f"{part.path}: decoder")
        check_ranges(config, "decoder")
        sampling = from_dict(DiffusionSamplingConfig, part.config.get("sampling"), f"{part.path}: sampling")
        if config.prediction not in PREDICTIONS:
            raise UserError(f"expected prediction {' or '.join(PREDICTIONS)}, got {config.prediction!r}; change it")
        if config.low_size != low_size:
            raise UserError(
                f"expected an upsampler of pictures of {low_size} pixels, as the diffusion decoder draws, got one of "
                f"{config.low_size} in {part.path}; train it again, or move it away"
            )
        return cls(load_module(lambda: PictureUpsampler(config), part, device), config.prediction, sampling)

    @torch.inference_mode()
    def enlarge(self, pixels: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw pictures again, larger.

        Args:
            pixels: (n, 3, h, w) in [-1, 1].
            generators: n, of the noise.

        Returns:
            (n, 3, H, W) in [-1, 1].
        """
        scheduler = make_scheduler(self.sampling.sampler, self.prediction, self.sampling.steps)
        level, side = self.network.low_noise / 2, self.network.side
        low_noise = torch.stack([torch.randn(pixels.shape[1:], generator=generator) for generator in generators])
        x = torch.stack([torch.randn(3, side, side, generator=generator) for generator in generators]).to(pixels)
        low = pixels + level * low_noise.to(pixels)
        levels = torch.full((len(pixels),), level, device=pixels.device)
        for time in scheduler.timesteps:
            found = self.network(x, time.to(x.device).expand(len(x)), low, levels)
            x = scheduler.step(found, time, x, generator=generators).prev_sample
        return x.clamp(-1, 1)
