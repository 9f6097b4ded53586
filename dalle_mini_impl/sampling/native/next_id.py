"""Sampling ids in compiled code."""

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import load
from dalle_mini_impl.sampling.next_ids import SMALLEST_TEMPERATURE


def sample_top_k(logits: Tensor, uniform: Tensor, temperature: float, top_k: int) -> Tensor | None:
    """As `sampling.next_ids.next_ids` without top-p, or None if there is no compiled code.

    Args:
        logits: (N, K) on the CPU.
        uniform: (N,) numbers in [0, 1).
        temperature: above 0.
        top_k: number of likeliest ids to choose from, 1 to K.

    Returns:
        (N,) int64 ids in [0, K).

    Raises:
        ValueError: there is no id to choose from, or not one number for each row.
    """
    library = load()
    if library is None:
        return None
    rows, vocab = logits.shape
    if vocab == 0 or uniform.shape != (rows,):
        raise ValueError(
            f"expected logits (N, K) with K at least 1 and N uniform numbers, got {tuple(logits.shape)} and "
            f"{tuple(uniform.shape)}; give one number per row"
        )
    logits = logits.float().contiguous()
    uniform = uniform.float().contiguous()
    threads = torch.get_num_threads()
    ids = torch.empty(rows, dtype=torch.int64)
    workspace = torch.empty(library.sampling_workspace_size(vocab, threads), dtype=torch.uint8)
    library.sample_ids(
        logits.data_ptr(),
        rows,
        vocab,
        1 / max(temperature, SMALLEST_TEMPERATURE),
        top_k,
        uniform.data_ptr(),
        ids.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return ids
