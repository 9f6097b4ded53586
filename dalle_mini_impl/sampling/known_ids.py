"""Image ids that stay while others are drawn."""

from dataclasses import dataclass

from torch import Tensor

from dalle_mini_impl.model.stream import Stream, check_ids
from dalle_mini_impl.util.errors import UserError


@dataclass(frozen=True, eq=False)
class KnownIds:
    """A picture some of whose ids stay."""

    image_ids: Tensor
    """(h, w) in [0, K), or (N, h, w): a picture for each candidate."""
    redraw: Tensor
    """(h, w) bool: the places that are drawn anew."""
    share: float = 1.0
    """Chance in (0, 1] of each of these places to be drawn anew indeed, rolled for every candidate and place."""

    @property
    def leading(self) -> Tensor:
        """(n,) ids that all candidates begin with, whatever is drawn."""
        shared = int(self.redraw.flatten().int().argmax()) if self.image_ids.ndim == 2 else 0
        return self.image_ids.flatten()[:shared]

    def check(self, stream: Stream, candidates: int) -> None:
        """Refuse what does not fit the stream.

        Raises:
            UserError: a shape, an id or the share is out of range, or nothing would be drawn.
        """
        grid = stream.config.grid
        if self.image_ids.shape not in (grid, (candidates, *grid)) or self.redraw.shape != grid:
            raise UserError(
                f"image ids {tuple(self.image_ids.shape)} with places to redraw {tuple(self.redraw.shape)} were "
                f"given, expected grid {grid} for {candidates} candidates; encode the picture at the model's size"
            )
        check_ids(self.image_ids, stream.config.image_vocab, "image")
        if not self.redraw.any():
            raise UserError("nothing is left to draw, all of the picture is kept; keep less of it")
        if not 0 < self.share <= 1:
            raise UserError(f"share {self.share} was given, expected more than 0 and at most 1")
