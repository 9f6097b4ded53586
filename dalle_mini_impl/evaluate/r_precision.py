"""R-precision: the rank of a picture's own concept among all concepts, by one judge's features.

R-precision for text-to-image models comes from Xu et al. 2018 (AttnGAN) and Park et al. 2021: it is the fraction of
generated pictures whose own caption is the nearest among many. Here each concept is represented by its real pictures
in place of captions, and features come from a judge that reads no text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle_mini_impl.evaluate.judges import Judge

CHUNK = 256
"""Pictures compared with all references at a time, which bounds memory."""
COMPONENTS = 192
"""Most principal components kept, those of the largest variance."""
SOFTMAX_TEMPERATURE = 0.1
"""Divides cosines before the softmax of `RPrecision.log_probabilities`."""
MIN_RELATIVE_VARIANCE = 1e-6
"""Components whose variance is below this fraction of the largest are rounding noise and dropped."""


@dataclass(frozen=True, eq=False)
class RPrecision:
    """Features of all reference pictures, by which pictures are matched to concepts. See `build_r_precision`."""

    judge: Judge
    mean: Tensor
    """(D,) mean of the judge's features over the reference pictures."""
    projection: Tensor
    """(D, d) principal axes of the reference features, each divided by the square root of its standard deviation."""
    reference_features: Tensor
    """(n, d) features of the reference pictures, as `features_of` returns them."""
    concept_ids: Tensor
    """(n,) int64, concept of each reference picture, 0 to `concept_count - 1`."""
    vendor_ids: Tensor
    """(n,) int64, vendor of each reference picture."""

    @property
    def concept_count(self) -> int:
        """Number of concepts to choose among."""
        return int(self.concept_ids.max()) + 1

    def features_of(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> (B, d), centred and scaled like the references, L2-normalised."""
        return F.normalize((self.judge.features(pixels) - self.mean) @ self.projection, dim=-1)

    def ranks(self, features: Tensor, concept_ids: Tensor, excluded_vendor_ids: Tensor | None = None) -> Tensor:
        """Number of other concepts that fit each picture at least as well as its own concept; 0 is a top-1 hit.

        The fit of a concept is the largest cosine of any of its reference pictures. Ties count against the picture.

        Args:
            features: (B, d) from `features_of`.
            concept_ids: (B,) int64, each picture's own concept.
            excluded_vendor_ids: (B,) int64, the vendor whose reference pictures are left out for that picture; None
                leaves out nothing.

        Returns:
            (B,) int64, 0 to `concept_count - 1`.
        """
        ranks = []
        for start in range(0, len(features), CHUNK):
            rows = slice(start, start + CHUNK)
            excluded = None if excluded_vendor_ids is None else excluded_vendor_ids[rows]
            fit = self.fit(features[rows], excluded)
            own_fit = fit.gather(1, concept_ids[rows, None])
            ranks.append((fit >= own_fit).sum(1) - 1)
        return torch.cat(ranks)

    def log_probabilities(self, features: Tensor, concept_ids: Tensor) -> Tensor:
        """Log-probability of each picture's own concept, from a softmax over the fits of all concepts.

        Unlike the rank it changes with every change of a picture, so that few pictures are enough to compare settings.

        Args:
            features: (B, d) from `features_of`.
            concept_ids: (B,) int64, each picture's own concept.

        Returns:
            (B,) nats, at most 0.
        """
        parts = [
            (self.fit(features[start : start + CHUNK]) / SOFTMAX_TEMPERATURE).log_softmax(1)
            for start in range(0, len(features), CHUNK)
        ]
        return torch.cat(parts).gather(1, concept_ids[:, None])[:, 0]

    def nearest(self, features: Tensor) -> Tensor:
        """The reference picture (B,) int64 with the largest cosine to each picture, features (B, d)."""
        return torch.cat([(chunk @ self.reference_features.T).argmax(1) for chunk in features.split(CHUNK)])

    def fit(self, features: Tensor, excluded_vendor_ids: Tensor | None = None) -> Tensor:
        """Largest cosine of each picture with any reference picture of each concept; arguments as for `ranks`.

        Returns:
            (B, `concept_count`), minus infinity where no picture of a concept is left.
        """
        cosines = features @ self.reference_features.T
        if excluded_vendor_ids is not None:
            cosines = cosines.masked_fill(self.vendor_ids == excluded_vendor_ids[:, None], -torch.inf)
        fit = cosines.new_full((len(cosines), self.concept_count), -torch.inf)
        return fit.scatter_reduce(1, self.concept_ids.expand_as(cosines), cosines, "amax")


def build_r_precision(judge: Judge, features: Tensor, concept_ids: Tensor, vendor_ids: Tensor) -> RPrecision:
    """Centre and half-whiten the judge's features of the reference pictures.

    Half-whitened: each principal axis is divided by the square root of its standard deviation. Without whitening a few
    broad properties, such as how much of the frame is filled, outweigh everything else; with full whitening noise
    does.

    Args:
        judge: computed `features`, and will compute those of the pictures to be matched.
        features: (n, D) of the reference pictures, as the judge returns them.
        concept_ids: (n,) int64.
        vendor_ids: (n,) int64.
    """
    mean = features.mean(0)
    variances, axes = torch.linalg.eigh((features - mean).T.double().cov())  # ascending
    selected = variances > variances[-1] * MIN_RELATIVE_VARIANCE
    selected[:-COMPONENTS] = False
    projection = (axes[:, selected] / variances[selected] ** 0.25).to(features.dtype)
    reference_features = F.normalize((features - mean) @ projection, dim=-1)
    return RPrecision(judge, mean, projection, reference_features, concept_ids, vendor_ids)


def has_other_vendor(concept_ids: Tensor, vendor_ids: Tensor) -> Tensor:
    """(n,) bool: whether another vendor also has a picture of this concept, so that a match is possible without it."""
    pairs = torch.stack([concept_ids, vendor_ids], 1).unique(dim=0)
    vendor_counts = torch.bincount(pairs[:, 0], minlength=int(concept_ids.max()) + 1)
    return vendor_counts[concept_ids] > 1
