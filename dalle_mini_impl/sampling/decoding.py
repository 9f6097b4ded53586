"""The core of every decode loop: prompts run once, then continued by several rows each, one id at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.model.decoder import Cache, Decoder
from dalle_mini_impl.sampling.next_ids import guide
from dalle_mini_impl.util.devices import free_memory
from dalle_mini_impl.util.memory import check_memory


class PromptState(NamedTuple):
    """P prompts of equal length after one pass through the model."""

    cache: Cache
    """Keys and values of all their positions."""
    hidden: Tensor
    """(P, T, C), the output at each position; the last one predicts the first id to sample."""


def run_prompts(transformer: Decoder, ids: Tensor, image_embed: Tensor | None = None) -> PromptState:
    """Run prompts through the model once, however many candidates will continue them.

    Args:
        transformer: the model, in evaluation mode.
        ids: (P, T) stream ids on the model's device, T at least 1.
        image_embed: as `Decoder.__call__`, on any device.
    """
    cache = transformer.new_cache(*ids.shape)
    image_embed = None if image_embed is None else image_embed.to(ids.device)
    return PromptState(cache, transformer(ids, cache, image_embed))


class Continuations:
    """Rows that continue prompts, decoded together with one cache, one id each at a time.

    Args:
        transformer: the model, in evaluation mode.
        prompts: the prompts; their cache is copied and stays as it is.
        rows: (R,) which prompt each row continues, on the CPU.
        capacity: length of the longest stream, prompt included.
        candidates: how many the rows belong to, for an error message; R by default.

    Raises:
        UserError: the cache does not fit into the memory.
    """

    def __init__(
        self, transformer: Decoder, prompts: PromptState, rows: Tensor, capacity: int, candidates: int | None = None
    ) -> None:
        self._transformer = transformer
        check_memory(
            prompts.cache.branch_bytes(len(rows), capacity),
            f"the keys and values of {candidates or len(rows)} candidates",
            "decode fewer at a time, with a smaller chunk",
            free_memory(transformer.device),
        )
        self._cache = prompts.cache.branch(rows, capacity)
        self._hidden = prompts.hidden[:, -1].index_select(0, rows.to(prompts.hidden.device))

    def next_logits(self, id_range: tuple[int, int]) -> Tensor:
        """Logits of the next id, (R, K) in fp32, over the K ids of `id_range` (first, end)."""
        return self._transformer.logits(self._hidden, id_range).float()

    def append(self, ids: Tensor) -> None:
        """Append one stream id to each row, (R,)."""
        self._hidden = self._transformer(ids[:, None], self._cache)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, (m,) indices, which keep this order."""
        self._cache.keep(rows)
        self._hidden = self._hidden[rows]


class GuidedContinuations:
    """Continuations of n candidates: a row for each that continues its caption, then one for each that has guidance.

    Args:
        transformer: the model, in evaluation mode.
        prompts: see `Continuations`.
        captions: of each candidate the prompt with its caption.
        negatives: of each the prompt with its negative caption; None for no guidance.
        scales: guidance of each.
        capacity: see `Continuations`.
    """

    def __init__(
        self,
        transformer: Decoder,
        prompts: PromptState,
        *,
        captions: Sequence[int],
        negatives: Sequence[int | None],
        scales: Sequence[float],
        capacity: int,
    ) -> None:
        rows = [*captions, *(row for row in negatives if row is not None)]
        self._continuations = Continuations(transformer, prompts, torch.tensor(rows), capacity, len(captions))
        self._is_guided = torch.tensor([row is not None for row in negatives])
        self._scales = torch.tensor(scales, dtype=torch.float32, device=prompts.hidden.device)[:, None]
        self._guided = self._find_guided()

    def _find_guided(self) -> Tensor:
        """Indices of the candidates with guidance, on the device."""
        return self._is_guided.nonzero()[:, 0].to(self._scales.device)

    def next_logits(self, id_range: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits of the next id, (n, K) in fp32, given the captions, and those with guidance; see `Continuations`."""
        count = len(self._scales)
        all_logits = self._continuations.next_logits(id_range)
        logits, unconditional = all_logits[:count], all_logits[count:]
        if not len(unconditional):
            return logits, logits
        if len(unconditional) == count:
            return logits, guide(logits, unconditional, self._scales)
        guided = guide(logits[self._guided], unconditional, self._scales[self._guided])
        return logits, logits.index_copy(0, self._guided, guided)

    def append(self, ids: Tensor) -> None:
        """Append one stream id to each candidate, (n,)."""
        self._continuations.append(torch.cat([ids, ids[self._guided]]))

    def keep(self, candidates: Tensor) -> None:
        """Drop all candidates but these, (m,) ascending indices."""
        chosen = candidates.cpu()
        own_rows = len(self._is_guided) + self._is_guided.cumsum(0) - 1
        rows = torch.cat([chosen, own_rows[chosen][self._is_guided[chosen]]])
        self._continuations.keep(rows.to(candidates.device))
        self._is_guided, self._scales = self._is_guided[chosen], self._scales[candidates]
        self._guided = self._find_guided()
