"""The core of every decode loop: prompts run once, then continued by several candidates, one id at a time."""

from typing import NamedTuple

import torch
from torch import Tensor

from dalle_mini_impl.model.decoder import Cache, Decoder
from dalle_mini_impl.util.devices import free_memory
from dalle_mini_impl.util.memory import check_memory


class PromptState(NamedTuple):
    """P prompts of equal length after one pass through the model."""

    cache: Cache
    """Keys and values of all their positions."""
    hidden: Tensor
    """(P, T, C), the output at each position; the last one predicts the first id to sample."""


def run_prompts(transformer: Decoder, ids: Tensor) -> PromptState:
    """Run prompts through the model once, however many candidates will continue them.

    Args:
        transformer: the model, in evaluation mode.
        ids: (P, T) stream ids on the model's device, T at least 1.
    """
    cache = transformer.new_cache(*ids.shape)
    return PromptState(cache, transformer(ids, cache))


class Continuations:
    """n candidates that continue the same P prompts, decoded together with one cache.

    Every candidate has one row in the batch for each prompt, and each id that is appended to a candidate is appended to
    all of its rows. With classifier-free guidance there are two prompts, with and without the caption. Rows are ordered
    prompt by prompt: all candidates of the first one, then all of the second.

    Args:
        transformer: the model, in evaluation mode.
        prompts: the prompts; their cache is copied and stays as it is.
        count: n.
        capacity: length of the longest stream, prompt included.

    Raises:
        UserError: the cache does not fit into the memory.
    """

    def __init__(self, transformer: Decoder, prompts: PromptState, count: int, capacity: int) -> None:
        self._transformer = transformer
        self._prompt_count = len(prompts.hidden)
        check_memory(
            prompts.cache.branch_bytes(count, capacity),
            f"the keys and values of {count} candidates",
            "decode fewer at a time, with a smaller chunk",
            free_memory(transformer.device),
        )
        self._cache = prompts.cache.branch(count, capacity)
        self._hidden = prompts.hidden[:, -1].repeat_interleave(count, 0)

    def next_logits(self, id_range: tuple[int, int]) -> Tensor:
        """Logits of the next id, (P, n, K) in fp32, over the K ids of `id_range` (first, end)."""
        logits = self._transformer.logits(self._hidden, id_range).float()
        return logits.unflatten(0, (self._prompt_count, -1))

    def append(self, ids: Tensor) -> None:
        """Append one stream id to each candidate, (n,)."""
        self._hidden = self._transformer(ids.repeat(self._prompt_count)[:, None], self._cache)[:, -1]

    def keep(self, candidates: Tensor) -> None:
        """Drop all candidates but these, (m,) indices, which keep this order."""
        count = len(self._hidden) // self._prompt_count
        rows = torch.cat([candidates + prompt * count for prompt in range(self._prompt_count)])
        self._cache.keep(rows)
        self._hidden = self._hidden[rows]
