"""Exact nearest neighbours among memory-mapped vectors in half precision."""

import torch
from torch import Tensor

SLACK = 2**-8
"""Twice the largest error of a cosine in half precision, doubled again to be safe.

Rounding the query moves a cosine by up to 2^-11, rounding the cosine itself by up to 2^-11 more.
"""
CHUNK = 4096


def nearest(vectors: Tensor, query: Tensor, count: int, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of the highest cosines; equal ones in the order of their numbers.

    A first pass multiplies everything in half precision, so that no more than the vectors' own bytes go through the
    processor. What comes as close to the best as rounding could hide is computed again in fp32.

    Args:
        vectors: (n, D) fp16, each of length 1 up to rounding.
        query: (D,) fp32, of length 1.
        count: most rows to return.
        used: (n,) bool, rows to look at; None for all.

    Returns:
        scores: (k,) fp32 cosines, highest first.
        rows: (k,) int64; k is `count`, or less where there are not so many.
    """
    rough = torch.mv(vectors, query.half())
    if used is not None:
        rough.masked_fill_(~used, -torch.inf)
    count = min(count, len(vectors) if used is None else int(used.sum()))
    if not count:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    least = float(rough.topk(count).values[-1]) - SLACK
    rows = (rough >= least).nonzero()[:, 0]
    # A product and a sum rather than a matrix product: equal vectors get equal scores, wherever they stand.
    scores = torch.cat([(vectors[part].float() * query).sum(dim=1) for part in rows.split(CHUNK)])
    scores, order = scores.sort(descending=True, stable=True)
    return scores[:count], rows[order[:count]]
