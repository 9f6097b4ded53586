"""R-precision: real art as one judge sees it, and at which place a picture's own concept comes among all."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.evaluate.judges import Judge

CHUNK = 256
COMPONENTS = 192


@dataclass(frozen=True, eq=False)
class RPrecision:
    """The features of all real art, by which pictures are matched to concepts."""

    judge: Judge
    centre: Tensor
    """(D,) mean of the judge's features over the art."""
    axes: Tensor
    """(D, d) principal axes of the art, scaled so that no few of them decide."""
    features: Tensor
    """(n, d), the art's features as `see` gives them."""
    concepts: Tensor
    """(n,) int64, number of each picture's concept, 0 to `concept_count - 1`."""
    vendors: Tensor
    """(n,) int64, number of who drew it."""

    @property
    def concept_count(self) -> int:
        """Number of concepts to choose among."""
        return int(self.concepts.max()) + 1

    def see(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> (B, d), centred and scaled as the bank is, L2-normalised."""
        return F.normalize((self.judge(pixels) - self.centre) @ self.axes, dim=-1)

    def ranks(self, features: Tensor, concepts: Tensor, other_than: Tensor | None = None) -> Tensor:
        """How many concepts fit each picture at least as well as its own does; 0 is a hit at the first place.

        A concept fits as well as the most similar of its drawings. Ties count against the picture.

        Args:
            features: (B, d) from `see`.
            concepts: (B,) int64, each picture's own concept.
            other_than: (B,) int64, a vendor whose art is left out for that picture; None leaves out nothing.

        Returns:
            (B,) int64, 0 to `concept_count - 1`.
        """
        parts = []
        for start in range(0, len(features), CHUNK):
            rows = slice(start, start + CHUNK)
            cosines = features[rows] @ self.features.T
            if other_than is not None:
                cosines = cosines.masked_fill(self.vendors == other_than[rows, None], -torch.inf)
            fit = cosines.new_full((len(cosines), self.concept_count), -torch.inf)
            fit = fit.scatter_reduce(1, self.concepts.expand_as(cosines), cosines, "amax")
            own = fit.gather(1, concepts[rows, None])
            parts.append((fit >= own).sum(1) - 1)
        return torch.cat(parts)


def build_r_precision(judge: Judge, embeds: Tensor, concepts: Tensor, vendors: Tensor) -> RPrecision:
    """A bank from what the judge made of all art.

    Features are centred and half whitened: each principal axis is divided by the square root of its standard
    deviation. Undivided, a few broad properties such as how full the frame is outweigh everything else; fully
    whitened, noise does.

    Args:
        judge: made the embeds and will see the pictures to be matched.
        embeds: (n, D), as the judge gives them.
        concepts: (n,) int64.
        vendors: (n,) int64.
    """
    centre = embeds.mean(0)
    variances, axes = torch.linalg.eigh((embeds - centre).T.double().cov())
    kept = variances > variances[-1] * 1e-6
    kept[:-COMPONENTS] = False
    axes = (axes[:, kept] / variances[kept] ** 0.25).to(embeds.dtype)
    return RPrecision(judge, centre, axes, F.normalize((embeds - centre) @ axes, dim=-1), concepts, vendors)


def has_other_art(concepts: Tensor, vendors: Tensor) -> Tensor:
    """(n,) bool: whether another vendor drew the same concept, so that it can be found without one's own."""
    pairs = torch.stack([concepts, vendors], 1).unique(dim=0)
    return torch.bincount(pairs[:, 0], minlength=int(concepts.max()) + 1)[concepts] > 1
