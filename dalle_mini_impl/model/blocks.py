"""A transformer's block: attention and a feed-forward layer, each behind a norm."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.config.model import BlockConfig
from dalle_mini_impl.model.attention import Attention, RMSNorm
from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.util.errors import UserError

GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh")}


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of the last dimension (Ba et al. 2016), in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


def make_norm(kind: str, width: int) -> nn.Module:
    """`rms` or `layer`.

    Raises:
        UserError: there is no such norm.
    """
    if kind not in ("rms", "layer"):
        raise UserError(f"unknown norm {kind!r}; expected rms or layer")
    return RMSNorm(width) if kind == "rms" else LayerNorm(width)


class MLP(nn.Module):
    """Feed-forward layer, (…, C) -> (…, C).

    Args:
        n_embd: C.
        kind: `swiglu` or `geglu`, gated (Shazeer 2020), or `gelu` or `gelu-tanh`, plain.
        hidden: width inside. 0 is 4 C, but for `swiglu` about 8/3 C, so that it costs what a plain one of 4 C does.
        bias: whether its two matrices add one.

    Raises:
        UserError: there is no such kind.
    """

    def __init__(self, n_embd: int, kind: str = "swiglu", hidden: int = 0, bias: bool = False) -> None:
        super().__init__()
        if kind not in (*GATES, *ACTIVATIONS):
            raise UserError(f"unknown mlp {kind!r}; expected one of {', '.join((*GATES, *ACTIVATIONS))}")
        if not hidden:  # whole cache lines and matrix tiles
            hidden = (8 * n_embd // 3 + 63) // 64 * 64 if kind == "swiglu" else 4 * n_embd
        self.kind = kind
        self.up = nn.Linear(n_embd, 2 * hidden if kind in GATES else hidden, bias=bias)
        self.down = nn.Linear(hidden, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.kind in ACTIVATIONS:
            return self.down(ACTIVATIONS[self.kind](x))
        gate, value = x.chunk(2, -1)
        return self.down(GATES[self.kind](gate) * value)


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and added to the residual stream.

    Args:
        n_embd: C.
        n_head: heads.
        config: what it is made of.
        head_dim: width of a head.
        attention_mask: which positions each may look at; None for all before.
    """

    def __init__(
        self, n_embd: int, n_head: int, config: BlockConfig, head_dim: int, attention_mask: AttentionMask | None = None
    ) -> None:
        super().__init__()
        self.reversible, self.sandwich = config.reversible, config.sandwich
        self.attention_norm = make_norm(config.norm, n_embd)
        self.attention = Attention(
            n_embd,
            n_head,
            head_dim,
            bias=config.bias,
            qk_norm=config.qk_norm,
            rotate_values=config.rotate_values,
            attention_mask=attention_mask,
        )
        self.mlp_norm = make_norm(config.norm, n_embd)
        self.mlp = MLP(n_embd, config.mlp, config.hidden, config.bias)
        if config.sandwich:
            self.attention_post, self.mlp_post = make_norm(config.norm, n_embd), make_norm(config.norm, n_embd)

    def forward(
        self, x: Tensor, table: Tensor | None, cache: KVCache | None, layer: int, sources: Tensor | None = None
    ) -> Tensor:
        """Run the next positions.

        Args:
            x: (B, T, C), or of a reversible block both streams, (2, B, T, C).
            table: rotary angles of these positions, or None for no rotation.
            cache: earlier positions; these are stored in it.
            layer: which of the cache's layers is this one.
            sources: where shifted channels come from (see `shifted`), or None for no shift.

        Returns:
            As x.
        """
        if self.reversible:
            first, second = x.unbind()
            first = first + self._attend(second, table, cache, layer, sources)
            return torch.stack([first, second + self._feed(first, cache, layer, sources)])
        x = x + self._attend(x, table, cache, layer, sources)
        return x + self._feed(x, cache, layer, sources)

    def _attend(
        self, x: Tensor, table: Tensor | None, cache: KVCache | None, layer: int, sources: Tensor | None
    ) -> Tensor:
        z = self.attention_norm(x)
        if sources is not None:
            z = shifted(z, sources, cache, 2 * layer)
        z = self.attention(z, table, cache, layer)
        return self.attention_post(z) if self.sandwich else z

    def _feed(self, x: Tensor, cache: KVCache | None, layer: int, sources: Tensor | None) -> Tensor:
        z = self.mlp_norm(x)
        if sources is not None:
            z = shifted(z, sources, cache, 2 * layer + 1)
        z = self.mlp(z)
        return self.mlp_post(z) if self.sandwich else z


def shifted(z: Tensor, sources: Tensor, cache: KVCache | None, slot: int) -> Tensor:
    """Replace the first two quarters of the channels by those of other positions.

    Args:
        z: (B, T, C) of the next positions.
        sources: (2, T) positions of the stream that the first and the second quarter come from; -1 for zeros.
        cache: knows the positions before, and gets to know these; None if there are none.
        slot: which of the cache's places for such channels is meant.

    Returns:
        (B, T, C).
    """
    half = z.shape[2] // 2
    known = cache.remember(slot, z[..., :half]) if cache is not None else z[..., :half]
    first, second = (known[:, places.clamp_min(0)] * (places >= 0)[:, None] for places in sources)
    return torch.cat([first[..., : half // 2], second[..., half // 2 :], z[..., half:]], -1)
