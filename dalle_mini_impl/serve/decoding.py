"""Image ids of several requests -> pixels, each picture as it would be alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dalle_mini_impl.model.image_tokenizer import ImageTokenizer

TOGETHER = 16
"""Pictures that are decoded at a time: more of them are hardly faster each, and take more memory."""


class SharedDecoder:
    """Decodes the pictures of several requests together where that changes none of them.

    How many pictures there are decides which algorithm a convolution takes, and so how it rounds; what they show does
    not. So batches of a size are used if the first one of it has the pixels that its first and last picture have alone.

    Args:
        image_tokenizer: decodes.
    """

    def __init__(self, image_tokenizer: ImageTokenizer) -> None:
        self._tokenizer = image_tokenizer
        self._is_alike = {1: True}

    def decode(self, groups: Sequence[Tensor]) -> list[Tensor] | None:
        """Decode all pictures together.

        Args:
            groups: image ids (n, h, w) of each request.

        Returns:
            (n, 3, H, W) in [-1, 1] for each; None where a picture would depend on the others.
        """
        parts = []
        for ids in torch.cat([*groups]).to(self._tokenizer.device).split(TOGETHER):
            pixels, count = self._tokenizer.decode(ids), len(ids)
            if count not in self._is_alike:
                places = (0, count - 1)
                alone = (torch.equal(self._tokenizer.decode(ids[[place]])[0], pixels[place]) for place in places)
                self._is_alike[count] = all(alone)
            if not self._is_alike[count]:
                return None
            parts.append(pixels)
        return list(torch.cat(parts).split([len(ids) for ids in groups]))
