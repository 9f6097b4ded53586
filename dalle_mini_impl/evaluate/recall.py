"""How well pictures and their names find each other."""

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)


def recalls(similar: Tensor, numbers: Tensor) -> dict[str, float]:
    """Recall both ways, and zero-shot accuracy.

    Args:
        similar: (n, n) how well each picture fits each name; picture and name of the same row belong together.
        numbers: (n,) concept of each; whatever shows the same concept counts as found.

    Returns:
        `image_to_text_at_k` and `text_to_image_at_k` for each of `DEPTHS`, the share of rows with a hit among their k
        best; and `zero_shot`, the share of pictures whose concept has the best name of all concepts, each named once.
    """
    results: dict[str, float] = {}
    for way, table in (("image_to_text", similar), ("text_to_image", similar.T)):
        hits = numbers[table.topk(min(DEPTHS[-1], len(table)), dim=1).indices] == numbers[:, None]
        results |= {f"{way}_at_{k}": float(hits[:, :k].any(1).float().mean()) for k in DEPTHS}
    firsts = torch.tensor([(numbers == concept).nonzero()[0, 0] for concept in numbers.unique()])
    nearest = firsts[similar[:, firsts].argmax(1)]
    return {**results, "zero_shot": float((numbers[nearest] == numbers).float().mean())}
