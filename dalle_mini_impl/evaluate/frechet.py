"""The Fréchet distance between sets of pictures, by features of a judge. torchmetrics (extra `eval`) computes."""

from typing import Any

from torch import Tensor, nn

from dalle_mini_impl.util.errors import need_extra


class PrecomputedFeatures(nn.Identity):
    """Passed to torchmetrics as its feature network: inputs are features already.

    Args:
        width: D of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def new_frechet(width: int) -> Any:
    """The Fréchet distance of FID (Heusel et al. 2017) between sets of features (n, width), added batch by batch.

    Raises:
        UserError: the `eval` extra is not installed.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise need_extra("torchmetrics", "eval") from error
    return FrechetInceptionDistance(feature=PrecomputedFeatures(width))


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """The Fréchet distance of FID between two sets of features, (n, D) and (m, D), each of at least two.

    Raises:
        UserError: the `eval` extra is not installed.
    """
    frechet = new_frechet(features.shape[1])
    frechet.update(reference, real=True)
    frechet.update(features, real=False)
    return float(frechet.compute())
