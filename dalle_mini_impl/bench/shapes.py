"""Model shapes to measure at, and what each piece of work must cost at least."""

from dataclasses import dataclass

from dalle_mini_impl.config.model import StreamConfig, TransformerConfig
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer

BYTES = {"bf16": 2, "fp32": 4, "int8": 1}


@dataclass(frozen=True)
class Shape:
    """A transformer and its stream, all sizes that ours and the peers' have in common."""

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
        """Image ids of a picture."""
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
        """Our transformer of this shape, untrained; its masks as `TransformerConfig` has them."""
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
    "quick": Shape("quick", 64, 2, 2, 8, 8, 128, 128, 4),
}


@dataclass(frozen=True)
class Cost:
    """Work that cannot be avoided."""

    flops: float
    bytes_moved: float


def matrix_weights(transformer: Transformer) -> int:
    """Weights that every position is multiplied with: the blocks' matrices, without embeddings and head."""
    return sum(p.numel() for p in transformer.blocks.parameters() if p.ndim == 2)


def decode_cost(shape: Shape, weights: int, candidates: int, guided: bool, dtype: str) -> Cost:
    """One decoding step, halfway through the picture.

    Weights are read once; keys and values of the prompt once per caption, those of the picture once per row.

    Args:
        shape: of the model.
        weights: what `matrix_weights` says of it.
        candidates: N.
        guided: whether each has a second row.
        dtype: of the weights; `int8` keeps keys and values in bf16.
    """
    captions = 2 if guided else 1
    rows, seen = captions * candidates, shape.image_length / 2
    weights += shape.n_embd * shape.image_vocab
    attention = 4 * shape.n_layer * shape.n_embd * rows * (1 + shape.text_length + seen)
    cached = 2 * shape.n_layer * shape.n_embd * (captions * (1 + shape.text_length) + rows * seen)
    cache_bytes = BYTES["bf16" if dtype == "int8" else dtype]
    return Cost(2 * rows * weights + attention, weights * BYTES[dtype] + cached * cache_bytes)


def train_cost(shape: Shape, weights: int, batch: int) -> Cost:
    """Forward and backward of one step; twice the forward's operations go backward (Kaplan et al. 2020).

    Causal attention needs half of the pairs of positions. Logits count only where they are needed.
    """
    length = shape.length - 1
    head = shape.text_length * (shape.text_vocab + shape.text_length) + shape.image_length * shape.image_vocab
    forward = 2 * (weights * length + shape.n_embd * head)
    attention = 4 * shape.n_layer * shape.n_embd * length**2 / 2
    return Cost(3.0 * batch * (forward + attention), 0.0)
