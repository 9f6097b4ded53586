"""How image ids are sampled and candidates ranked, and in which number format."""

from dataclasses import dataclass

from dalle_mini_impl.config.ranges import Count, NonNegative, Share

RANKS = ("auto", "likelihood", "clip", "both", "none")
"""What can order candidates; `auto` is `both` where there is a scorer, otherwise `likelihood`."""
PRECISIONS = ("auto", "fp32", "bf16", "int8")
"""Number formats that a transformer can compute in; `auto` is the fastest whose pictures are as good."""
PRIORS = ("auto", "none", "text", "diffusion", "ar")
"""Where image embeddings for a prompt come from: nowhere, its text embedding, or a prior of a kind; `auto` is the prior
of the checkpoint, if it has one."""
SAMPLERS = ("ddpm", "ddim", "dpmsolver++")
"""Samplers of diffusion, of the library `diffusers`."""
DIFFUSION_STEPS = 1000
"""Steps of the diffusion process, and so the most that a sampler takes."""
DECODERS = ("tokens", "diffusion")
"""What draws pictures: the transformer, image id by image id, or a diffusion decoder."""
MAX_ZOOM = 16
"""How many times larger than they were drawn pictures may be written."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How image ids are sampled and candidates ranked; also the defaults that a checkpoint recommends."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest id (greedy)."""
    top_k: int = 0
    """Sample from this many likeliest image ids; 0 takes all."""
    top_p: float = 1.0
    """Sample from the smallest set of ids that together have at least this probability, in (0, 1]."""
    guidance: float = 3.0
    """Classifier-free guidance scale; 1 switches it off."""
    rank: str = "auto"
    """What orders candidates: `likelihood`, `clip`, `both`, `none`, or `auto`, which is `both` where there is a scorer
    and `likelihood` otherwise."""
    clip_weight: float = 1.0
    """How many times the scorer's scaled cosine counts against the likelihood where `both` rank."""
    diversity: float = 0.0
    """How much a kept picture should differ from those kept before it, where the scorer ranks; 0 keeps the best however
    alike they are."""
    prune: bool = False
    """Drop the less likely candidates while sampling, so that only a quarter of them, or `keep`, is finished."""
    tile: bool = False
    """Sample pictures that tile: left and right, and top and bottom edges match. Takes four times as long."""
    transparent: bool = False
    """Make the ground of pictures transparent where it is plain."""
    prior: str = "auto"
    """What gives each candidate an image embedding to draw: the checkpoint's prior (`diffusion` or `ar`, as it has),
    the prompt's own embedding (`text`), nothing (`none`), or `auto`: the prior, if there is one and the transformer
    was trained with embeddings."""
    decoder: str = DECODERS[0]
    """What draws pictures: `tokens` (the transformer), or `diffusion` (the diffusion decoder, which recommends its own
    guidance, sampler and steps)."""
    sampler: str = "ddim"
    """Sampler of a diffusion decoder: `ddim`, `dpmsolver++`, or `ddpm`, which adds noise in each step."""
    steps: Count = 50
    """Steps of that sampler, at most 1,000."""
    eta: Share = 0.0
    """How much noise `ddim` adds in each step; 1 is as much as `ddpm`."""


@dataclass(frozen=True, kw_only=True)
class PriorSamplingConfig:
    """How image embeddings are drawn from a prior; saved with it."""

    sampler: str = SAMPLERS[0]
    """Sampler of a diffusion prior: `ddpm`, which adds noise in each step, or `ddim` or `dpmsolver++`, which do not.
    All but `ddim` need the extra `unclip`."""
    steps: Count = 64
    """Steps of the sampler, at most 1,000."""
    guidance: NonNegative = 1.0
    """Classifier-free guidance scale; 1 switches it off."""
    draws: Count = 2
    """Embeddings drawn for each one that is needed; the one nearest to the text embedding is kept."""
    temperature: NonNegative = 1.0
    """Divides the logits of an autoregressive prior; 0 always takes the likeliest bucket."""
