"""Exact nearest neighbours among memory-mapped vectors in half precision."""

import torch
from torch import Tensor

SLACK = 2**-8
"""Twice the largest error of a cosine in half precision, doubled again for safety.

Rounding the query changes a cosine by up to 2^-11, rounding the cosine itself by up to 2^-11 more.
"""
CHUNK = 4096
"""Vectors computed in fp32 at a time, which bounds memory."""


def nearest(vectors: Tensor, query: Tensor, count: int, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of the highest cosines with a query, exactly; equal cosines in ascending order of rows.

    A first pass computes all cosines in half precision, so that only the vectors' own bytes are read. Those close
    enough to the best for rounding to matter are computed again in fp32.

    Args:
        vectors: (n, D) fp16, of unit length up to rounding.
        query: (D,) fp32, of unit length.
        count: most rows to return.
        used: (n,) bool, rows to search; None for all.

    Returns:
        scores: (k,) fp32 cosines, highest first.
        rows: (k,) int64; k is `count`, or the number of rows where that is smaller.
    """
    rough = torch.mv(vectors, query.half())
    if used is not None:
        rough.masked_fill_(~used, -torch.inf)
    count = min(count, len(vectors) if used is None else int(used.sum()))
    if not count:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    threshold = float(rough.topk(count).values[-1]) - SLACK
    rows = (rough >= threshold).nonzero()[:, 0]
    # A product and a sum: a matrix product's rounding depends on the row, and equal vectors must have equal scores.
    scores = torch.cat([(vectors[part].float() * query).sum(dim=1) for part in rows.split(CHUNK)])
    scores, order = scores.sort(descending=True, stable=True)
    return scores[:count], rows[order[:count]]
