"""A transformer block: attention and a feed-forward layer, each after a norm and added to the residual stream."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from dalle_mini_impl.model.attention import Attention, RMSNorm
from dalle_mini_impl.model.kv_cache import KVCache
from dalle_mini_impl.model.masks import AttentionMask
from dalle_mini_impl.util.errors import UserError

GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}
"""Gated feed-forward layers: half of the hidden channels go through this function and multiply the other half."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh")}
"""Feed-forward layers without a gate."""


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of the last dimension (Ba et al. 2016), in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


def make_norm(kind: str, width: int) -> nn.Module:
    """The norm of a kind: `rms` or `layer`.

    Raises:
        UserError: the kind is unknown.
    """
    if kind not in ("rms", "layer"):
        raise UserError(f"expected norm rms or layer, got {kind!r}; change block.norm")
    return RMSNorm(width) if kind == "rms" else LayerNorm(width)


class MLP(nn.Module):
    """Feed-forward layer, (…, C) -> (…, C).

    Args:
        n_embd: C.
        kind: gated: `swiglu` or `geglu` (Shazeer 2020); without a gate: `gelu` or `gelu-tanh`.
        hidden: hidden width. 0 is 4 C, or with `swiglu` about 8/3 C, which costs as much as 4 C without a gate.
        bias: whether the two linear layers have biases.

    Raises:
        UserError: the kind is unknown.
    """

    def __init__(self, n_embd: int, kind: str = "swiglu", hidden: int = 0, bias: bool = False) -> None:
        super().__init__()
        if kind not in (*GATES, *ACTIVATIONS):
            raise UserError(f"expected mlp {', '.join((*GATES, *ACTIVATIONS))}, got {kind!r}; change block.mlp")
        if not hidden:
            # A multiple of 64 fills whole cache lines and matrix tiles.
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
    """Pre-norm transformer block. `foreign.blocks` extends it by what only imported models have.

    Args:
        n_embd: C.
        n_head: number of heads.
        head_dim: width of a head; 0 is C / n_head.
        attention_mask: which positions each may attend to; None for all up to itself.
        norm: `rms` or `layer`.
        mlp: as `MLP.kind`.
        hidden: as `MLP.hidden`.
        bias: whether linear layers have biases.
        qk_norm: whether queries and keys are normalised.
        attention_type: class of the attention.

    Raises:
        UserError: norm or mlp is unknown.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        head_dim: int = 0,
        attention_mask: AttentionMask | None = None,
        *,
        norm: str = "rms",
        mlp: str = "swiglu",
        hidden: int = 0,
        bias: bool = False,
        qk_norm: bool = True,
        attention_type: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        self.attention_norm = make_norm(norm, n_embd)
        self.attention = attention_type(
            n_embd, n_head, head_dim, bias=bias, qk_norm=qk_norm, attention_mask=attention_mask
        )
        self.mlp_norm = make_norm(norm, n_embd)
        self.mlp = MLP(n_embd, mlp, hidden, bias)

    def forward(self, x: Tensor, table: Tensor | None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Run the next positions.

        Args:
            x: (B, T, C).
            table: (T, 2, head_dim) rotary table of these positions, or None for no rotation.
            cache: keys and values of earlier positions; the new ones are stored in it.
            layer: index of this block in the cache.

        Returns:
            (B, T, C).
        """
        x = x + self.attention(self.attention_norm(x), table, cache, layer)
        return x + self.mlp(self.mlp_norm(x))
