"""Image ids that stay as they are while the others are sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle_mini_impl.model.stream import Stream, check_ids
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, eq=False)
class KnownIds:
    """A picture of which some cells are redrawn and the others keep their ids."""

    image_ids: Tensor
    """(h, w) in [0, K), or (N, h, w): one picture for each candidate."""
    redraw: Tensor
    """(h, w) bool: the cells that may be redrawn."""
    redraw_probability: float = 1.0
    """Probability, in (0, 1], that such a cell is redrawn; decided for each candidate and cell by the candidate's
    seed."""

    @classmethod
    def none(cls, grid: tuple[int, int]) -> "KnownIds":
        """No known ids: every cell of the grid (h, w) is sampled."""
        return cls(torch.zeros(grid, dtype=torch.int64), torch.ones(grid, dtype=torch.bool))

    def shared_prefix(self, stream: Stream) -> Tensor:
        """(n,) ids before the first cell to redraw, in the stream's order, if all candidates share the picture."""
        if self.image_ids.ndim > 2:
            return self.image_ids.new_empty(0)
        return stream.to_order(self.image_ids.long())[: int(stream.to_order(self.redraw).int().argmax())]

    def validate(self, stream: Stream, candidates: int) -> None:
        """Check shapes and ranges against the stream.

        Args:
            stream: gives the grid and the number of image ids.
            candidates: how many will be sampled.

        Raises:
            UserError: a shape, an id or the probability is out of range, or no cell would be redrawn.
        """
        grid = stream.config.grid
        if self.image_ids.shape not in (grid, (candidates, *grid)) or self.redraw.shape != grid:
            raise UserError(
                f"expected image ids and a redraw mask of grid {grid} for {candidates} candidates, got shapes "
                f"{tuple(self.image_ids.shape)} and {tuple(self.redraw.shape)}; encode the picture at the model's size"
            )
        check_ids(self.image_ids, stream.config.image_vocab, "image")
        if not self.redraw.any():
            raise UserError("expected at least one cell to redraw, got none; keep less of the picture")
        if not 0 < self.redraw_probability <= 1:
            raise UserError(
                f"expected a redraw probability above 0 and at most 1, got {self.redraw_probability}; "
                f"1 redraws every cell that may be redrawn"
            )
