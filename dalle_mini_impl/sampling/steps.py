"""Steps of a decode loop: each draws the next image id of every candidate of a batch."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.sampling.decoding import GuidedContinuations
from dalle_mini_impl.sampling.native.next_id import sample_top_k
from dalle_mini_impl.sampling.next_ids import RowSettings, next_ids


class Candidates(NamedTuple):
    """The n candidates of a batch; h * w cells in the order of the stream."""

    uniforms: Tensor
    """(n, h * w), the random number with which each id is sampled."""
    redraw: Tensor
    """(n, h * w) bool: the cells whose ids are sampled."""
    image_ids: Tensor
    """(n, h * w), the known ids; overwritten where ids are sampled."""
    indices: Tensor
    """(n,), of each one's seed among those of its request."""
    pieces: Tensor
    """(n,), index of each one's piece in the batch."""
    log_likelihood: Tensor
    """(n,), of the ids so far."""


class Steps(Protocol):
    """What draws the ids of a batch, one cell at a time for all candidates."""

    @property
    def now(self) -> Candidates:
        """The candidates, with their ids and log-likelihoods so far."""

    def draw(self, cell: int) -> None:
        """Draw the ids of a cell, the one after that of the last call."""

    def keep(self, candidates: Tensor) -> None:
        """Drop all candidates but these, (m,) ascending indices."""

    def close(self) -> None:
        """End; `now` must not be used any more."""


class PlainSteps:
    """Steps whose tensors grow, by any decoder.

    Args:
        continuations: the rows of the candidates.
        stream: the layout.
        now: the candidates; changed in place.
        settings: of each candidate.
    """

    def __init__(
        self, continuations: GuidedContinuations, stream: Stream, now: Candidates, settings: RowSettings
    ) -> None:
        self.now = now
        self._continuations, self._stream, self._settings = continuations, stream, settings
        self._drawn: Tensor | None = None

    def draw(self, cell: int) -> None:
        """As `Steps.draw`."""
        if self._drawn is not None:
            self._continuations.append(self._drawn + self._stream.image_offset)
        now = self.now
        logits, guided = self._continuations.next_logits(self._stream.image_range)
        sampled = sample_ids(guided, now.uniforms[:, cell], self._settings)
        self._drawn = torch.where(now.redraw[:, cell], sampled, now.image_ids[:, cell])
        now.image_ids[:, cell] = self._drawn
        now.log_likelihood.add_(log_probabilities(logits, self._drawn))

    def keep(self, candidates: Tensor) -> None:
        """As `Steps.keep`."""
        self._continuations.keep(candidates)
        self._settings = self._settings.keep(candidates)
        self._drawn = None if self._drawn is None else self._drawn[candidates]
        self.now = Candidates(*(values[candidates] for values in self.now))

    def close(self) -> None:
        """As `Steps.close`."""


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of one id (n,) in each row of logits (n, K)."""
    return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1)


def sample_ids(logits: Tensor, uniforms: Tensor, settings: RowSettings) -> Tensor:
    """As `next_ids`, by compiled code where there is any for the device and a row's settings."""
    ids = None
    if logits.device.type == "cpu":
        ids = sample_top_k(logits, uniforms, settings.inverse_temperature, settings.top_k)
    if ids is None:
        return next_ids(logits, uniforms, settings)
    if settings.any_greedy or settings.any_top_p:
        others = (settings.greedy | (settings.top_p < 1)).nonzero()[:, 0]
        ids[others] = next_ids(logits[others], uniforms[others], settings.keep(others))
    return ids
