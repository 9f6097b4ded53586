"""How image ids are sampled and candidates ranked, and in which number format."""

from dataclasses import dataclass

RANKS = ("likelihood", "clip", "both", "none")
"""What can order candidates."""
PRECISIONS = ("auto", "fp32", "bf16", "int8")
"""Number formats that a transformer can compute in; `auto` is the fastest whose pictures are as good."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How image ids are drawn and candidates ranked; also the defaults a checkpoint recommends."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest id."""
    top_k: int = 0
    """Keep this many likeliest image ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with at least this probability, in (0, 1]."""
    guidance: float = 3.0
    """Classifier-free guidance scale; 1 switches it off."""
    rank: str = "likelihood"
    """What orders candidates: `clip`, `likelihood`, `both` or `none`."""
    prune: bool = False
    """Give up the less likely candidates on the way, so that a quarter of them, or as many as are kept, is finished."""
    tile: bool = False
    """Draw pictures that can be laid side by side; takes four times as long."""
