"""A decoder-only transformer over ids. It knows nothing of text or images.

Blocks of any kind that `blocks` knows, rotary or learned positions given by plane coordinates, and an output head of
which a caller can compute just the rows it needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.model.attention import rotary_from_angles, rotary_table
from dalle_mini_impl.model.blocks import Block, make_norm
from dalle_mini_impl.model.kv_cache import Cache, KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.util.errors import UserError

ROPE_BASE = 100.0
"""Streams here are a few hundred positions long, so slower rotations would never complete a turn."""
POSITIONS = {"rope": 4, "table": 2, "learned": 1, "absolute": 1}
"""Kinds of positions, and what a head's width must be a multiple of."""
OURS = BlockConfig()


class Transformer(nn.Module):
    """ids (B, T) -> hidden states (B, T, C) -> logits.

    Args:
        vocab_size: V.
        coordinates: (T, 2) integer place of each position of the longest stream.
        n_layer: number of blocks.
        n_head: heads per block.
        n_embd: C.
        position: `rope`, `table` (rotary, by a table that is among the weights), `learned` (one embedding per value of
            each coordinate, summed) or `absolute` (one per position).
        extent: how many values each coordinate has; the largest in `coordinates` tells where it is not given.
        block: what the blocks are made of.
        head_dim: width of a head; 0 is C / n_head.
        attention_masks: which positions each may look at, for each block; None, or nothing at all, for all before.
        sources: (2, T) where blocks that shift channels take them from; see `blocks.shifted`.
        last_norms: norms behind the last block.
        divide_by_max: divide what leaves the last block by its largest number.

    Raises:
        UserError: the numbers do not fit together.
    """

    coordinates: Tensor
    table: Tensor | None
    sources: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        coordinates: Tensor,
        n_layer: int,
        n_head: int,
        n_embd: int,
        position: str = "rope",
        *,
        extent: Sequence[int] = (),
        block: BlockConfig = OURS,
        head_dim: int = 0,
        attention_masks: Sequence[AttentionMask | None] = (),
        sources: Tensor | None = None,
        last_norms: int = 1,
        divide_by_max: bool = False,
    ) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise UserError(f"unknown position {position!r}; expected one of {', '.join(POSITIONS)}")
        multiple = POSITIONS[position]
        if (not head_dim and n_embd % n_head) or (head_dim or n_embd // n_head) % multiple:
            raise UserError(
                f"n_embd {n_embd} with n_head {n_head} and head_dim {head_dim} was given; a head's width "
                f"must be whole{f' and a multiple of {multiple}' * (multiple > 1)}"
            )
        if block.token_shift and n_embd % 4:
            raise UserError(f"n_embd {n_embd} was given; to shift a quarter of the channels it must be a multiple of 4")
        if not last_norms >= 1:
            raise UserError(f"last_norms {last_norms} was given, expected 1 or more")
        self.n_layer, self.n_head, self.n_embd, self.vocab_size = n_layer, n_head, n_embd, vocab_size
        self.head_dim, self.config, self.divide_by_max = head_dim or n_embd // n_head, block, divide_by_max
        self.max_length = len(coordinates)
        self.embed = nn.Embedding(vocab_size, n_embd)
        if position == "absolute":
            coordinates = torch.arange(len(coordinates))[:, None]
        self.register_buffer("coordinates", coordinates, persistent=False)
        table = rotary_table(coordinates, self.head_dim, ROPE_BASE) if position == "rope" else None
        if position == "table":  # turns nothing until weights are loaded
            table = rotary_from_angles(torch.zeros(len(coordinates), self.head_dim // 2))
        self.register_buffer("table", table, persistent=position == "table")
        self.register_buffer("sources", sources if block.token_shift else None, persistent=False)
        self.positions = None
        if position in ("learned", "absolute"):
            sizes = [len(coordinates)] if position == "absolute" else extent or (coordinates.max(0).values + 1).tolist()
            self.positions = nn.ModuleList(nn.Embedding(size, n_embd) for size in sizes)
        attention_masks = attention_masks or (None,) * n_layer
        self.blocks = nn.ModuleList(
            Block(n_embd, n_head, block, self.head_dim, attention_mask) for attention_mask in attention_masks
        )
        norms = [make_norm(block.norm, n_embd) for _ in range(last_norms)]
        self.norm = nn.Sequential(*norms) if last_norms > 1 else norms[0]
        self.head = nn.Linear(n_embd, vocab_size, bias=block.bias)
        self.recompute = False
        """In training, keep only what passes between blocks and compute the rest again in the backward pass."""
        self.heads: dict[tuple[int, int], nn.Module] = {}
        """Parts of the head that were made ready for decoding."""
        self._initialise()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed.weight.device

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
            for embedding, places in zip(self.positions, self.coordinates[start:end].unbind(1), strict=True):
                x = x + embedding(places)
        table = self.table[start:end] if self.table is not None else None
        sources = self.sources[:, start:end] if self.sources is not None else None
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream stays in one dtype with the matrix products, which keeps fused kernels in use.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if self.config.reversible:
            x = torch.stack([x, x])
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, table, cache, layer, sources, use_reentrant=False)
            else:
                x = block(x, table, cache, layer, sources)
        if cache is not None:
            cache.length = end
        if self.config.reversible:
            x = x.mean(0)
        if self.divide_by_max:
            x = x / x.amax(-1, keepdim=True).detach()
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
        rows = slice(None) if allowed is None else slice(*allowed)
        return F.linear(hidden, self.head.weight[rows], None if self.head.bias is None else self.head.bias[rows])

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` positions (the whole stream by default)."""
        shape = (batch, self.n_head, capacity or self.max_length, self.head_dim)
        shifted = self.n_embd // 2 if self.sources is not None else 0
        return KVCache(self.n_layer, shape, self.device, self.embed.weight.dtype, shifted)

    def _initialise(self) -> None:
        """Embeddings N(0, 0.02), hidden matrices N(0, 1/fan_in); biases and layers that write to the residual are zero.

        So every block starts as the identity and the first predictions are uniform.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("attention.out", "mlp.down", "head")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
