"""How close reconstructions are to their pictures, one by one and as a set. torchmetrics (extra `eval`) computes."""

import torch
from torch import Tensor

from dalle_mini_impl.evaluate.frechet import new_frechet
from dalle_mini_impl.evaluate.judges import BATCH_SIZE, FEATURE_DIM, efficientnet_judge
from dalle_mini_impl.evaluate.perceptual import efficientnet_distance

SSIM_RADIUS = 5
"""Pixels from the centre to the edge of SSIM's 11 × 11 window."""


class ReconstructionMetrics:
    """PSNR, SSIM, perceptual distance and Fréchet distance between pictures and reconstructions, batch by batch.

    The Fréchet distance is that of FID (Heusel et al. 2017) and of a tokenizer's rFID, with EfficientNet-Lite0's 192
    features in place of Inception's 2048, so its values cannot be compared with published FIDs.

    Args:
        device: where EfficientNet-Lite0 computes.

    Raises:
        UserError: the `eval` or the `judge` extra is not installed.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.distance = efficientnet_distance(device)
        self.judge = efficientnet_judge(device)
        self.frechet = new_frechet(FEATURE_DIM)
        self.per_picture: list[Tensor] = []
        """(3, B) of each batch: PSNR, SSIM, perceptual distance."""

    @torch.inference_mode()
    def update(self, before: Tensor, after: Tensor) -> None:
        """Add a batch.

        Args:
            before: pictures (B, 3, H, W) in [-1, 1], H and W at least 11.
            after: their reconstructions, the same shape.
        """
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        x, y = (before + 1) / 2, (after + 1) / 2
        psnr = peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim_map = structural_similarity_index_measure(y, x, data_range=1.0, return_full_image=True)[1]
        # Windows that cross the border are left out: they would compare mirrored pixels.
        ssim = ssim_map[..., SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS].mean((1, 2, 3))
        distances = [
            self.distance(*(part.to(self.device) for part in pair)).cpu()
            for pair in zip(after.split(BATCH_SIZE), before.split(BATCH_SIZE), strict=True)
        ]
        self.per_picture.append(torch.stack([psnr, ssim, torch.cat(distances)]))
        self.frechet.update(self.judge.features(before), real=True)
        self.frechet.update(self.judge.features(after), real=False)

    def compute(self) -> dict[str, float]:
        """Means over all pictures added, and the Fréchet distance between the two sets. Needs at least two pictures.

        Returns:
            `psnr` (dB), `ssim`, `perceptual_distance` and `fd_efficientnet_lite0`.
        """
        psnr, ssim, distance = torch.cat(self.per_picture, dim=1).mean(1).tolist()
        return {
            "psnr": psnr,
            "ssim": ssim,
            "perceptual_distance": distance,
            "fd_efficientnet_lite0": float(self.frechet.compute()),
        }
