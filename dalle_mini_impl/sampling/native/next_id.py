"""Sampling ids in compiled code."""

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import load


def sample_top_k(logits: Tensor, uniform: Tensor, inverse_temperature: Tensor, top_k: Tensor) -> Tensor | None:
    """As `sampling.next_ids.next_ids` without top-p and greedy rows, or None if there is no compiled code.

    Args:
        logits: (N, K) on the CPU.
        uniform: (N,) numbers in [0, 1).
        inverse_temperature: (N,), finite.
        top_k: (N,) numbers of likeliest ids to choose from, at least 1.

    Returns:
        (N,) int64 ids in [0, K).

    Raises:
        ValueError: there is no id to choose from, or not one number for each row.
    """
    library = load()
    if library is None:
        return None
    rows, vocab = logits.shape
    shapes = [tuple(values.shape) for values in (uniform, inverse_temperature, top_k)]
    if vocab == 0 or shapes != [(rows,)] * 3:
        raise ValueError(
            f"expected logits (N, K) with K at least 1, and N random numbers, temperatures and top_k, got "
            f"{tuple(logits.shape)} and {shapes}; give one number per row"
        )
    logits, uniform, inverse_temperature = (
        part.float().contiguous() for part in (logits, uniform, inverse_temperature)
    )
    top_k = top_k.int().contiguous()
    threads = torch.get_num_threads()
    ids = torch.empty(rows, dtype=torch.int64)
    workspace = torch.empty(library.sampling_workspace_size(vocab, threads), dtype=torch.uint8)
    library.sample_ids(
        logits.data_ptr(),
        rows,
        vocab,
        inverse_temperature.data_ptr(),
        top_k.data_ptr(),
        uniform.data_ptr(),
        ids.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return ids
