"""A decoder-only transformer over ids, independent of text and images.

Pre-norm blocks, rotary or learned positions given by plane coordinates, and an output head of which a caller computes
just the rows it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dalle_mini_impl.model.attention import RMSNorm, rotary_table
from dalle_mini_impl.model.blocks import Block
from dalle_mini_impl.model.decoder import Cache
from dalle_mini_impl.model.image_prefix import ImagePrefix
from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.util.errors import UserError

ROPE_BASE = 100.0
"""Base of the rotary wavelengths. Streams here are a few hundred positions long; with the usual 10,000 most channel
pairs would never complete a turn."""
POSITIONS: dict[str | None, int] = {"rope": 4, "learned": 1, "absolute": 1, None: 1}
"""Kinds of positions, and what a head's width must be a multiple of."""


class Transformer(nn.Module):
    """Ids (B, T) -> hidden states (B, T, C) -> logits. Meets the protocol `decoder.Decoder`.

    Args:
        vocab_size: V.
        coordinates: (T, 2) integer coordinates of each position of the longest stream.
        n_layer: number of blocks.
        n_head: heads per block.
        n_embd: C.
        position: `rope` (rotary), `learned` (one embedding per value of each coordinate, summed), `absolute` (one
            embedding per position), or None for no positions.
        extent: number of values of each coordinate, for `learned`; by default as many as occur in `coordinates`.
        head_dim: width of a head; 0 is C / n_head.
        attention_masks: which positions each may attend to, for each block; None, or an empty sequence, for all up to
            itself.
        make_block: makes a block from n_embd, n_head, head_dim and its attention mask.
        make_norm: makes the last norm from n_embd.
        head_bias: whether the output head has a bias.
        tied_head: whether the output head's weights are those of the embedding (Press and Wolf 2017). Then it has no
            bias.
        image_prefix: adds an image embedding to the first positions; None if there are no positions for one.
        recompute: in training store only the input of each block, and compute the rest again in the backward pass
            (activation checkpointing).

    Raises:
        UserError: the position is unknown, or the widths do not fit together.
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
        position: str | None = "rope",
        *,
        extent: Sequence[int] = (),
        head_dim: int = 0,
        attention_masks: Sequence[AttentionMask | None] = (),
        make_block: Callable[[int, int, int, AttentionMask | None], nn.Module] = Block,
        make_norm: Callable[[int], nn.Module] = RMSNorm,
        head_bias: bool = False,
        tied_head: bool = False,
        image_prefix: ImagePrefix | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_shape(n_embd, n_head, head_dim, position, POSITIONS)
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_embd = n_embd
        self.head_dim = head_dim or n_embd // n_head
        self.vocab_size = vocab_size
        self.max_length = len(coordinates)
        self.recompute = recompute
        self.embed = nn.Embedding(vocab_size, n_embd)
        if position == "absolute":
            coordinates = torch.arange(self.max_length)[:, None] - (image_prefix.positions if image_prefix else 0)
            extent = [self.max_length]
        rotary = rotary_table(coordinates, self.head_dim, ROPE_BASE) if position == "rope" else None
        self.positions = None if position in ("rope", None) else position_embeddings(coordinates, extent, n_embd)
        if self.positions is not None:  # those of negative coordinates are the last ones
            coordinates = coordinates % torch.tensor([embedding.num_embeddings for embedding in self.positions])
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("table", rotary, persistent=False)
        self.blocks = nn.ModuleList(
            make_block(n_embd, n_head, self.head_dim, mask) for mask in attention_masks or (None,) * n_layer
        )
        self.norm = make_norm(n_embd)
        self.head = None if tied_head else nn.Linear(n_embd, vocab_size, bias=head_bias)
        self.image_prefix = image_prefix
        self._initialise()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embed.weight.device

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        image_embed: Tensor | None = None,
        added: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the next positions.

        Args:
            ids: (B, T) ids, continuing the positions in the cache.
            cache: earlier positions; extended in place.
            image_embed: see `Decoder.__call__`.
            added: vectors (B or 1, T, C) that training adds to the embedded ids.
            places: (T,) where the ids stand in the stream, if not in its order; without a cache only.

        Returns:
            (B, T, C), normalised and ready for `logits`.
        """
        start = cache.length if cache is not None else 0
        end = start + ids.shape[1]
        span = slice(start, end) if places is None else places
        x = embed_ids(ids, self.coordinates[span], self.embed, self.positions)
        if image_embed is not None:
            x = add_image_embed(x, image_embed, self.image_prefix)
        if added is not None:
            x = x + added
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream has the dtype of the matrix products, which keeps fused kernels in use.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = self.run_blocks(x, span, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def run_blocks(self, x: Tensor, span: slice | Tensor, cache: Any) -> Tensor:
        """Run all blocks over x (B, T, C), the embedded ids at the positions `span`; the result has the same shape."""
        table = self.table[span] if self.table is not None else None
        for layer, block in enumerate(self.blocks):
            x = self.run_block(block, x, table, cache, layer)
        return x

    def run_block(self, block: nn.Module, *arguments: object) -> Tensor:
        """Run one block, in training with `recompute` without storing its activations."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def make_mask_blocks(self, length: int) -> None:
        """Make what attention on a GPU needs of the masks of the first `length` positions, before compiling."""
        for block in self.blocks:
            mask: Any = block.get_submodule("attention").attention_mask
            if mask is not None and self.device.type == "cuda":
                mask.blocks(length)

    def logits(self, hidden: Tensor, allowed: tuple[int, int] | None = None) -> Tensor:
        """Logits of the next id.

        Args:
            hidden: (…, C) from `forward`.
            allowed: `(first, end)` of the ids that may come next; only their logits are computed.

        Returns:
            (…, end - first), or (…, V) without `allowed`.
        """
        return F.linear(hidden, *self.head_rows(allowed))

    def head_rows(self, allowed: tuple[int, int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Weights (end - first, C) and bias (end - first,), if any, of the output head for the ids of `allowed`."""
        rows = slice(None) if allowed is None else slice(*allowed)
        if self.head is None:
            return self.embed.weight[rows], None
        return self.head.weight[rows], None if self.head.bias is None else self.head.bias[rows]

    def new_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` positions, by default the whole stream."""
        shape = (batch, self.n_head, capacity or self.max_length, self.head_dim)
        return KVCache(self.n_layer, shape, self.device, self.embed.weight.dtype)

    def _initialise(self) -> None:
        """Embeddings N(0, 0.02), hidden matrices N(0, 1/fan_in); biases, and layers that add to the residual, zero.

        So every block starts as the identity, the first predictions are uniform (nearly, with a tied head), and image
        embeddings say nothing.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("attention.out", "mlp.down", "head", "image_prefix.project")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)


def position_embeddings(coordinates: Tensor, extent: Sequence[int], n_embd: int) -> nn.ModuleList:
    """An embedding for each column of `coordinates` (T, n); its size is in `extent` or one more than the largest."""
    sizes = extent or (coordinates.max(0).values + 1).tolist()
    return nn.ModuleList(nn.Embedding(size, n_embd) for size in sizes)


def check_shape(
    n_embd: int, n_head: int, head_dim: int, position: str | None, positions: Mapping[str | None, int]
) -> None:
    """Refuse an unknown position, or a head width that does not fit it.

    Args:
        n_embd: C.
        n_head: number of heads.
        head_dim: width of a head; 0 is C / n_head.
        position: kind of positions.
        positions: the known kinds, and what a head's width must be a multiple of for each.

    Raises:
        UserError: naming the values.
    """
    if position not in positions:
        raise UserError(f"expected position {', '.join(filter(None, positions))}, got {position!r}; change position")
    multiple = positions[position]
    if (not head_dim and n_embd % n_head) or (head_dim or n_embd // n_head) % multiple:
        kind = "a whole number" if multiple == 1 else f"a multiple of {multiple}"
        raise UserError(
            f"expected a head width (head_dim, or else n_embd / n_head) that is {kind}, "
            f"got n_embd {n_embd}, n_head {n_head} and head_dim {head_dim}; change one"
        )


def embed_ids(ids: Tensor, coordinates: Tensor, embed: nn.Module, positions: nn.ModuleList | None) -> Tensor:
    """Embeddings of ids plus those of their positions.

    Args:
        ids: (B, T).
        coordinates: (T, n) of these positions.
        embed: ids -> vectors.
        positions: an embedding for each of the n coordinates, if there are any.

    Returns:
        (B, T, C).
    """
    return add_positions(embed(ids), coordinates, positions)


def add_image_embed(x: Tensor, image_embed: Tensor, image_prefix: ImagePrefix | None) -> Tensor:
    """As `ImagePrefix.forward`.

    Raises:
        ValueError: the model has no positions for an image embedding.
    """
    if image_prefix is None:
        raise ValueError("expected no image embedding for a model without positions for it, got one; leave it out")
    return image_prefix(x, image_embed)


def add_positions(x: Tensor, coordinates: Tensor, positions: nn.ModuleList | None) -> Tensor:
    """Add an embedding of each of the n coordinates (T, n), if there are any, to x (B, T, C)."""
    if positions is not None:
        for embedding, values in zip(positions, coordinates.unbind(1), strict=True):
            x = x + embedding(values)
    return x
