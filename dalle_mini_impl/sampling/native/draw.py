"""Drawing ids in compiled code."""

import torch
from torch import Tensor

from dalle_mini_impl.sampling.native.library import load


def draw(logits: Tensor, uniform: Tensor, temperature: float, kept: int) -> Tensor | None:
    """As `sampling.next_ids` has it, of the `kept` likeliest ids; None where there is no compiled code.

    Args:
        logits: (N, K) on the CPU.
        uniform: (N,) numbers in [0, 1).
        temperature: above 0.
        kept: 1 to K.
    """
    library = load()
    if library is None:
        return None
    logits, uniform = logits.float().contiguous(), uniform.float().contiguous()
    rows, vocab = logits.shape
    threads = torch.get_num_threads()
    ids, room = torch.empty(rows, dtype=torch.int64), torch.empty(threads, vocab + library.lanes())
    library.draw(
        logits.data_ptr(),
        rows,
        vocab,
        1 / temperature,
        kept,
        uniform.data_ptr(),
        ids.data_ptr(),
        room.data_ptr(),
        threads,
    )
    return ids
