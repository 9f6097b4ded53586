"""Retrieval between pictures and their names: recall in both directions, and zero-shot accuracy."""

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)
"""The k of recall@k."""


def recalls(similarity: Tensor, concept_ids: Tensor) -> dict[str, float]:
    """Recall@k in both directions (as in CLIP, Radford et al. 2021, section 3.1.4), and zero-shot accuracy.

    Args:
        similarity: (n, n) how well each picture (row) fits each name (column); the diagonal holds the true pairs.
        concept_ids: (n,) int64, concept of each pair; a result of the same concept counts as a hit.

    Returns:
        `image_to_text_at_k` and `text_to_image_at_k` for each k of `DEPTHS`, the fraction of rows with a hit among
        their k best; and `zero_shot`, the fraction of pictures whose own concept's name is the best of all concepts'
        names, each concept being represented by the name of its first pair.
    """
    results: dict[str, float] = {}
    for direction, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        hits = concept_ids[scores.topk(min(DEPTHS[-1], len(scores)), dim=1).indices] == concept_ids[:, None]
        results |= {f"{direction}_at_{k}": float(hits[:, :k].any(1).float().mean()) for k in DEPTHS}
    first_pairs = torch.tensor([(concept_ids == concept).nonzero()[0, 0] for concept in concept_ids.unique()])
    best_pairs = first_pairs[similarity[:, first_pairs].argmax(1)]
    return {**results, "zero_shot": float((concept_ids[best_pairs] == concept_ids).float().mean())}
