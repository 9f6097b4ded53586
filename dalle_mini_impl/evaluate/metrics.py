"""Picture quality, codebook use and distances between pictures, as pure functions."""

import torch
from torch import Tensor


def mean_distances(features: Tensor) -> Tensor:
    """Mean of 1 - cosine over all pairs of pictures of each row.

    Args:
        features: (n, N, d), normalised, N at least 2.

    Returns:
        (n,), 0 where the pictures are equal.
    """
    count = features.shape[1]
    cosines = features.double() @ features.double().transpose(1, 2)
    pairs = torch.ones(count, count, dtype=torch.bool).triu(1)
    return 1 - cosines[:, pairs].mean(1)


def psnr(pixels: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        reference: the same shape.

    Returns:
        (B,) dB; infinite where the pictures are equal.
    """
    error = (pixels.float() - reference.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error)  # the range of [-1, 1] is 2, its square 4


def count_ids(image_ids: Tensor, codebook_size: int) -> Tensor:
    """Number of occurrences of each image id: (K,) int64, on the device of the ids."""
    ids = image_ids.flatten().long()
    # On a GPU `bincount` would wait for the largest id.
    return torch.zeros(codebook_size, dtype=torch.int64, device=ids.device).index_add_(0, ids, torch.ones_like(ids))


def usage(counts: Tensor) -> float:
    """Fraction of the codebook's ids that occur at least once, in [0, 1].

    Args:
        counts: (K,) from `count_ids`.
    """
    return float((counts > 0).float().mean())


def perplexity(counts: Tensor) -> float:
    """Effective number of ids in use: exp of the entropy of their frequencies, 1 to K.

    Args:
        counts: (K,) from `count_ids`.
    """
    frequencies = counts.double() / counts.sum().clamp(min=1)
    return float(torch.exp(-(frequencies * frequencies.clamp(min=1e-12).log()).sum()))
