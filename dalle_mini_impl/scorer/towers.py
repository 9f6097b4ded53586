"""What a scorer needs of its model and its text tokenizer."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Towers(Protocol):
    """A module that embeds pictures and texts. One with `logit_bias` is read by sigmoid, one without by softmax."""

    embed_dim: int
    """D, width of what both methods return."""

    @property
    def logit_scale(self) -> Any:
        """Logarithm of what cosines are multiplied with, of one element."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> (B, D)."""

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """(B, L) int64 -> (B, D)."""

    def state_dict(self) -> dict[str, Any]:
        """The weights, by name."""

    def to(self, device: Any) -> Any:
        """Move the weights."""

    def eval(self) -> Any:
        """Stop dropout."""


class Encodes(Protocol):
    """A text tokenizer."""

    def encode_batch(self, texts: Sequence[str], length: int, end: bool) -> Tensor:
        """Texts -> (B, L) int64, cut to `length`; `end` asks for an end-of-text that survives the cut."""
