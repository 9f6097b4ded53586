"""Sampling ids in compiled code."""

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import load


def sample_top_k(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> Tensor | None:
    """As `sampling.next_ids.next_ids` without top-p, or None if there is no compiled code.

    Args:
        logits: (N, K) on the CPU.
        uniform: (N,) numbers in [0, 1).
        temperature: above 0.
        top_k: number of likeliest ids to choose from, 1 to K.

    Returns:
        (N,) int64 ids in [0, K).
    """
    library = load()
    if library is None:
        return None
    logits = logits.float().contiguous()
    uniform = uniform.float().contiguous()
    rows, vocab = logits.shape
    threads = torch.get_num_threads()
    ids = torch.empty(rows, dtype=torch.int64)
    workspace = torch.empty(threads, vocab + library.lanes())
    library.sample_ids(
        logits.data_ptr(),
        rows,
        vocab,
        1 / temperature,
        top_k,
        uniform.data_ptr(),
        ids.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return ids
