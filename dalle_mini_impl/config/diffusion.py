"""The diffusion decoder and its upsampler: shapes, sampling, training (Ramesh et al. 2022, DALL-E 2, section 2.1)."""

from dataclasses import dataclass, field
from typing import Annotated

from dalle_mini_impl.config.data import DataConfig
from dalle_mini_impl.config.ranges import Count, Interval, NonNegative, NotEmpty, Share, Width
from dalle_mini_impl.config.training import OptimizerConfig, RunConfig

KINDS = ("decoder", "upsampler")
"""Networks of the stage: what draws pictures of image embeddings, and what enlarges them."""
SPACES = ("pixels", "latents")
"""What a decoder diffuses: pixels, or the codebook vectors of an image tokenizer."""
PREDICTIONS = ("v_prediction", "epsilon")
"""What a U-Net predicts, as `diffusers` names it: v (Salimans and Ho 2022), or the noise."""


@dataclass(frozen=True, kw_only=True)
class DiffusionDecoderConfig:
    """Shape of the U-Net that draws pictures of image embeddings, or of the one that enlarges these."""

    kind: str = KINDS[0]
    """`decoder`, or `upsampler`, which draws larger pictures of those of a decoder of pixels."""
    space: str = SPACES[0]
    """What a decoder diffuses: `pixels`, or `latents`, the codebook vectors of the image tokenizer in `run.model_dir`.
    """
    image_size: Annotated[int, Interval(0, 2**14)] = 64
    """Side of the square pictures in pixels; with `latents` it is that of the image tokenizer, whatever stands here."""
    low_size: Annotated[int, Interval(1, 2**14)] = 64
    """`upsampler`: side in pixels of the pictures that it enlarges."""
    low_noise: Share = 0.1
    """`upsampler`: largest standard deviation of the noise that is added to those in training, where pixels are in
    [-1, 1]; so it also takes pictures that are not quite right. In sampling it is half as much."""
    channels: Annotated[tuple[Width, ...], NotEmpty()] = (96, 192, 288)
    """Width of each resolution stage, finest first; each further stage halves height and width."""
    blocks: Annotated[int, Interval(1, 100)] = 1
    """Residual blocks per stage."""
    attention_stages: Annotated[int, Interval(0, 100)] = 2
    """`decoder`: in how many of the stages, coarsest first, attention follows each block."""
    head_dim: Width = 32
    """`decoder`: width of an attention head; divides the width of each stage with attention."""
    context_dim: Width = 256
    """`decoder`: width of the positions that attention reads: those of the image embedding and of the caption."""
    positions: Annotated[int, Interval(1, 2**10)] = 4
    """`decoder`: positions among these that an image embedding fills."""
    text_length: Annotated[int, Interval(0, 2**16)] = 0
    """`decoder`: text ids per caption, end-of-text included; longer captions are cut. 0 for no captions."""
    prediction: str = PREDICTIONS[0]
    """`v_prediction` or `epsilon` (the noise)."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSamplingConfig:
    """How pictures are drawn by a diffusion decoder, or enlarged; saved with it."""

    sampler: str = "ddim"
    """`ddim`, `dpmsolver++`, or `ddpm`, which adds noise in each step."""
    steps: Count = 50
    """Steps of the sampler, at most 1,000."""
    guidance: NonNegative = 2.0
    """`decoder`: classifier-free guidance scale; 1 switches it off."""


@dataclass(frozen=True, kw_only=True)
class DiffusionDecoderRun:
    """Stage 7: captioned pictures + scorer -> diffusion decoder, or its upsampler."""

    model: DiffusionDecoderConfig = field(default_factory=DiffusionDecoderConfig)
    sampling: DiffusionSamplingConfig = field(default_factory=DiffusionSamplingConfig)
    """How pictures are drawn, in sample sheets and wherever the decoder is used."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    language_weights: dict[str, NonNegative] = field(default_factory=dict)
    """Relative frequency of captions by language code; languages not named have weight 1."""
    bpe_dropout: Share = 0.1
    """Probability of skipping a BPE merge in training captions (Provilkov et al. 2020)."""
    embed_dropout: Share = 0.1
    """Probability of training without the image embedding, which classifier-free guidance needs."""
    caption_dropout: Share = 0.5
    """Probability of training without the caption."""
