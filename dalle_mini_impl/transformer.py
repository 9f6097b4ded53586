"""A decoder-only transformer over ids. It knows nothing of text or images.

RMSNorm before each sublayer, SwiGLU, QK-norm, rotary or learned positions given by plane coordinates, no
biases, and an output head of which a caller can compute just the rows it needs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dalle_mini_impl.attention import Attention, RMSNorm, rotary_table
from dalle_mini_impl.config import StreamConfig, TransformerConfig
from dalle_mini_impl.errors import UserError
from dalle_mini_impl.kv_cache import Cache, KVCache
from dalle_mini_impl.stream import Stream

ROPE_BASE = 100.0
"""Streams here are a few hundred positions long, so slower rotations would never complete a turn."""


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020), about 8/3 wide so that it costs what a plain 4× layer does."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        hidden = (8 * n_embd // 3 + 63) // 64 * 64  # whole cache lines and matrix tiles
        self.up = nn.Linear(n_embd, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(n_embd)
        self.attention = Attention(n_embd, n_head)
        self.mlp_norm = RMSNorm(n_embd)
        self.mlp = SwiGLU(n_embd)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """ids (B, T) -> hidden states (B, T, C) -> logits.

    Args:
        vocab_size: V.
        coordinates: (T, 2) integer place of each position of the longest stream.
        n_layer: number of blocks.
        n_head: heads per block.
        n_embd: C.
        position: `rope` or `learned` (one embedding per value of each coordinate, summed).

    Raises:
        UserError: the numbers do not fit together.
    """

    coordinates: Tensor
    table: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        coordinates: Tensor,
        n_layer: int,
        n_head: int,
        n_embd: int,
        position: str = "rope",
    ) -> None:
        super().__init__()
        if n_embd % n_head or (position == "rope" and n_embd // n_head % 4):
            raise UserError(f"n_embd {n_embd} with n_head {n_head} was given; "
                            f"a head's width must be whole{' and a multiple of 4' * (position == 'rope')}")  # fmt: skip
        if position not in ("rope", "learned"):
            raise UserError(f"unknown position {position!r}; expected rope or learned")
        self.n_layer, self.n_head, self.n_embd, self.vocab_size = n_layer, n_head, n_embd, vocab_size
        self.max_length = len(coordinates)
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.register_buffer("coordinates", coordinates, persistent=False)
        table = rotary_table(coordinates, n_embd // n_head, ROPE_BASE) if position == "rope" else None
        self.register_buffer("table", table, persistent=False)
        self.positions = None
        if position == "learned":
            sizes = (coordinates.max(0).values + 1).tolist() if not coordinates.is_meta else [len(coordinates)] * 2
            self.positions = nn.ModuleList(nn.Embedding(size, n_embd) for size in sizes)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.norm = RMSNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.recompute = False
        """In training, keep only what passes between blocks and compute the rest again in the backward pass."""
        self.heads: dict[tuple[int, int], nn.Module] = {}
        """Parts of the head that were made ready for decoding."""
        self._initialise()

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states of the next positions.

        Args:
            ids: (B, T) ids, continuing what the cache holds.
            cache: earlier positions; extended in place.

        Returns:
            (B, T, C), normalised and ready for `logits`.
        """
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        x = self.embed(ids)
        if self.positions is not None:
            places = self.coordinates[start:end]
            x = x + self.positions[0](places[:, 0]) + self.positions[1](places[:, 1])
        table = self.table[start:end] if self.table is not None else None
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream stays in one dtype with the matrix products, which keeps fused kernels in use.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, table, cache, layer, use_reentrant=False)
            else:
                x = block(x, table, cache, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """Scores of the next id.

        Args:
            hidden: (…, C) from `forward`.
            allowed: `(first, end)` of the ids that may come next; only their scores are computed.

        Returns:
            (…, end - first), or (…, V) without `allowed`.
        """
        if allowed in self.heads:
            return self.heads[allowed](hidden)
        weight = self.head.weight if allowed is None else self.head.weight[allowed[0] : allowed[1]]
        return F.linear(hidden, weight)

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` positions (the whole stream by default)."""
        shape = (batch, self.n_head, capacity or self.max_length, self.n_embd // self.n_head)
        return KVCache(self.n_layer, shape, self.embed.weight.device, self.embed.weight.dtype)

    def _initialise(self) -> None:
        """Embeddings N(0, 0.02), hidden matrices N(0, 1/fan_in); layers that write to the residual start at zero.

        So every block starts as the identity and the first predictions are uniform.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                if name.endswith(("attention.out", "mlp.down", "head")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)


def build_transformer(config: TransformerConfig, stream: StreamConfig) -> Transformer:
    """The transformer of a config, for a stream."""
    layout = Stream(stream)
    return Transformer(
        layout.vocab_size, layout.coordinates(), config.n_layer, config.n_head, config.n_embd, config.position
    )
