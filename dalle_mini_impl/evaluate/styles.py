"""In whose style is a picture? A linear probe on a judge's features, fitted to the vendors of the training pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.evaluate.generation import EvaluationContext, GeneratedPictures
from dalle_mini_impl.evaluate.intervals import TOP_K, Share, ShareRow, mean_share
from dalle_mini_impl.evaluate.r_precision import RPrecision

RIDGE = 1.0
"""Weight of the squared norm of the probe's weights; features have norm 1."""


@dataclass(frozen=True, eq=False)
class StyleProbe:
    """Tells vendors apart by features of one judge."""

    weights: Tensor
    """(d + 1, vendors) float64; the last row is the intercept."""

    def vendors(self, features: Tensor) -> Tensor:
        """Features (..., d) -> the most probable vendor of each, (...) int64."""
        return (_with_one(features) @ self.weights).argmax(-1)


@dataclass(frozen=True)
class StyleFigures:
    """How often pictures have the style of their prompts, by each judge."""

    drawn: dict[str, Share]
    """Of the best-ranked pictures of held-out pairs."""
    real: dict[str, Share]
    """Of real held-out pictures, which the probe was not fitted to: as much as it can see."""
    together: ShareRow
    """Concept at each depth and style of the best-ranked pictures."""


def fit_style_probe(measure: RPrecision, rows: Tensor) -> StyleProbe:
    """Ridge regression of the vendors, one-hot, on the features of some reference pictures.

    Args:
        measure: has the features.
        rows: (n,) bool or int64, the reference pictures to fit to.
    """
    inputs = _with_one(measure.reference_features[rows])
    targets = torch.nn.functional.one_hot(measure.vendor_ids)[rows].double()
    penalty = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    return StyleProbe(torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets))


def style_figures(context: EvaluationContext, pictures: GeneratedPictures) -> StyleFigures:
    """Measure the style of pictures of held-out pairs, whose prompts name it.

    Args:
        context: of a set with vendors.
        pictures: of held-out pairs.
    """
    reference = context.reference
    train, held_out = reference.of_split("train"), reference.of_split("validation")
    own = reference.vendor_ids[pictures.indices]
    drawn, real, together = {}, {}, {}
    for judge, measure in context.r_precisions.items():
        probe = fit_style_probe(measure, train)
        is_right = probe.vendors(pictures.features[judge][:, 0]) == own
        drawn[judge] = _share(is_right)
        real[judge] = _share(probe.vendors(measure.reference_features[held_out]) == reference.vendor_ids[held_out])
        ranks = pictures.ranks[judge][:, 0]
        together[judge] = tuple(_share((ranks < k) & is_right) for k in TOP_K)
    return StyleFigures(drawn, real, ShareRow("  concept and style together", len(own), together))


def _share(hits: Tensor) -> Share:
    values: Sequence[float] = hits.double().tolist()
    return mean_share(values)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(*features.shape[:-1], 1).double()], -1)
