"""How near copies come to their pictures, one by one and as a set. torchmetrics (extra `eval`) does the arithmetic."""

import torch
from torch import Tensor, nn

from dalle_mini_impl.evaluate.judges import CHUNK, FEATURES, efficientnet_judge
from dalle_mini_impl.evaluate.perceptual import efficientnet_distance
from dalle_mini_impl.util.errors import need_extra

REACH = 5
"""Pixels from the middle to the edge of SSIM's window."""


class Given(nn.Identity):
    """Tells torchmetrics that it gets features, and not pictures to take features of."""

    num_features = FEATURES


class Fidelity:
    """Compares pictures with their copies, batch by batch.

    Args:
        device: where EfficientNet-Lite0 looks at the pictures.

    Raises:
        UserError: the `eval` extra is not installed.
    """

    def __init__(self, device: torch.device | str) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise need_extra("torchmetrics", "eval") from error
        self.device = device
        self.distance, self.judge = efficientnet_distance(device), efficientnet_judge(device)
        self.sets = FrechetInceptionDistance(feature=Given())
        self.pairs: list[Tensor] = []

    @torch.inference_mode()
    def add(self, before: Tensor, after: Tensor) -> None:
        """Take in pictures and their copies, both (B, 3, H, W) in [-1, 1] with H and W at least 11."""
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        x, y = (before + 1) / 2, (after + 1) / 2
        psnr = peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
        places = structural_similarity_index_measure(y, x, data_range=1.0, return_full_image=True)[1]
        # Windows that reach over the border, where mirrored pixels would have to be made up, do not count.
        ssim = places[..., REACH:-REACH, REACH:-REACH].mean((1, 2, 3))
        apart = [
            self.distance(*(part.to(self.device) for part in pair)).cpu()
            for pair in zip(after.split(CHUNK), before.split(CHUNK), strict=True)
        ]
        self.pairs.append(torch.stack([psnr, ssim, torch.cat(apart)]))
        self.sets.update(self.judge(before), real=True)
        self.sets.update(self.judge(after), real=False)

    def figures(self) -> dict[str, float]:
        """PSNR, SSIM and perceptual distance, each the mean over pairs, and the Fréchet distance of the two sets.

        Needs at least two pairs.
        """
        psnr, ssim, distance = torch.cat(self.pairs, dim=1).mean(1).tolist()
        return {
            "psnr": psnr,
            "ssim": ssim,
            "perceptual_distance": distance,
            "fd_efficientnet_lite0": float(self.sets.compute()),
        }
