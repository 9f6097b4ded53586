"""Transformer shapes to measure at, and the least operations and bytes of each piece of work."""

from dataclasses import dataclass

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer

BYTES = {"bf16": 2, "fp32": 4, "int8": 1}
"""Per weight."""


@dataclass(frozen=True)
class Shape:
    """A transformer and its stream: the sizes that this package's model and the peers' have in common."""

    name: str
    n_embd: int
    n_layer: int
    n_head: int
    text_length: int
    side: int
    """The token grid is side × side."""
    image_vocab: int
    text_vocab: int
    train_batch: int
    """Pictures per training step."""

    @property
    def image_length(self) -> int:
        """Image ids per picture."""
        return self.side**2

    @property
    def length(self) -> int:
        """Positions of the stream, BOS included."""
        return 1 + self.text_length + self.image_length

    def stream(self, bos_id: int = 1) -> Stream:
        """The layout of the stream."""
        return Stream(
            StreamConfig(
                text_length=self.text_length,
                text_vocab=self.text_vocab,
                grid=(self.side, self.side),
                image_vocab=self.image_vocab,
                bos_id=bos_id,
            )
        )

    def build(self, attention_masks: tuple[str, ...] = ("full",), last_attention_mask: str = "") -> Transformer:
        """An untrained transformer of this shape.

        Args:
            attention_masks: of the layers, repeated in turn, as in `TransformerConfig`.
            last_attention_mask: of the last layer; empty for the one whose turn it is.
        """
        config = TransformerConfig(
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            attention_masks=attention_masks,
            last_attention_mask=last_attention_mask,
        )
        return build_transformer(config, self.stream().config)


SHAPES = {
    "R": Shape("R", 512, 8, 8, 64, 16, 4096, 4096, 8),
    "emoji": Shape("emoji", 256, 6, 4, 20, 8, 1024, 8192, 64),
    "gpu": Shape("gpu", 1024, 24, 16, 64, 16, 8192, 16384, 32),
    "300m": Shape("300m", 1024, 24, 16, 256, 32, 8192, 16384, 32),
    "quick": Shape("quick", 64, 2, 2, 8, 8, 128, 128, 4),
}


@dataclass(frozen=True)
class Cost:
    """Least work of an operation."""

    flops: float
    bytes_moved: float


def matrix_weights(transformer: Transformer) -> int:
    """Number of weights that every position is multiplied with: the blocks' matrices, without embeddings and head."""
    return sum(p.numel() for p in transformer.blocks.parameters() if p.ndim == 2)


def decode_cost(shape: Shape, weights: int, candidates: int, guided: bool, dtype: str) -> Cost:
    """Cost of one decoding step, halfway through the picture.

    Weights are read once; cached keys and values of the prompt once per caption, those of the picture once per row.

    Args:
        shape: of the model.
        weights: from `matrix_weights`.
        candidates: N.
        guided: whether each candidate has a second row, for classifier-free guidance.
        dtype: of the weights; with `int8` keys and values are bf16.
    """
    captions = 2 if guided else 1
    rows = captions * candidates
    sampled = shape.image_length / 2
    weights += shape.n_embd * shape.image_vocab
    attention = 4 * shape.n_layer * shape.n_embd * rows * (1 + shape.text_length + sampled)
    cached = 2 * shape.n_layer * shape.n_embd * (captions * (1 + shape.text_length) + rows * sampled)
    cache_bytes = BYTES["bf16" if dtype == "int8" else dtype]
    return Cost(2 * rows * weights + attention, weights * BYTES[dtype] + cached * cache_bytes)


def train_cost(shape: Shape, weights: int, batch: int) -> Cost:
    """Cost of one training step; the backward pass takes twice the forward's operations (Kaplan et al. 2020).

    Causal attention needs half of all pairs of positions. Logits count for the vocabulary that a position can have.

    Args:
        shape: of the model.
        weights: from `matrix_weights`.
        batch: pictures.
    """
    length = shape.length - 1
    head = shape.text_length * (shape.text_vocab + shape.text_length) + shape.image_length * shape.image_vocab
    forward = 2 * (weights * length + shape.n_embd * head)
    attention = 4 * shape.n_layer * shape.n_embd * length**2 / 2
    return Cost(3.0 * batch * (forward + attention), 0.0)
