"""An image embedding as the first positions of the stream, such as that of a CLIP model.

The ids of these positions stand for "no embedding"; an embedding is added to theirs. So a model learns with and without
one, and everything that speaks in ids needs to know nothing of it.
"""

import torch
from torch import Tensor, nn


class ImagePrefix(nn.Module):
    """Adds an image embedding to the first positions of a stream.

    Args:
        positions: how many positions it fills.
        embed_dim: D, width of the embedding.
        n_embd: C.
    """

    def __init__(self, positions: int, embed_dim: int, n_embd: int) -> None:
        super().__init__()
        self.positions = positions
        self.project = nn.Linear(embed_dim, positions * n_embd, bias=False)
        self.scale = embed_dim**0.5
        """Gives the numbers of an embedding of length 1 a root mean square of 1."""

    def forward(self, x: Tensor, image_embed: Tensor) -> Tensor:
        """Add embeddings.

        Args:
            x: (B, T, C) embedded ids of the first positions of streams, with all those of the prefix among them.
            image_embed: (B, D), each of length 1, or zeros for no embedding.

        Returns:
            (B, T, C).
        """
        rows = image_embed.to(self.project.weight.dtype) * self.scale
        # Without gradients one by one: then the result of a row does not depend on how many others there are.
        added = self.project(rows) if torch.is_grad_enabled() else torch.stack([self.project(row) for row in rows])
        added = added.unflatten(1, (self.positions, -1)).to(x.dtype)
        return torch.cat([x[:, : self.positions] + added, x[:, self.positions :]], 1)
