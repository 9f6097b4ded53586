"""Settings of the training stages: what each config file under `configs/` may say."""

from dataclasses import dataclass, field

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.data import AugmentConfig, DataConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig, ScorerConfig, TransformerConfig
from dalle_mini_impl.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, optionally with Muon on the hidden matrices; warmup, then cosine decay."""

    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    muon_learning_rate: float = 0.0
    """Peak rate of Muon on hidden matrices and convolutions; 0 leaves everything to AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    warmup_steps: int = 100
    """Steps of linear warmup."""
    decay_start: float = 0.0
    """Share of the steps after which the cosine decay begins; before that the rate is constant."""
    final_rate: float = 0.02
    """Rate at the last step, as a share of the peak."""
    clip: float = 1.0
    """Largest gradient norm."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training stage shares."""

    model_dir: str = ""
    """Checkpoint folder; each stage adds its part to it."""
    state_dir: str = ""
    """Folder for logs, samples and resumable state."""
    steps: int = 1000
    """Optimizer steps."""
    minutes: float = 0.0
    """Train for so many minutes instead, validation included; schedules then follow the clock. 0: `steps` count."""
    batch_size: int = 64
    """Pictures per optimizer step over all processes."""
    accumulation: int = 1
    """Passes that one optimizer step is split into."""
    seed: int = 0
    """Everything random follows from it."""
    precision: str = "bf16"
    """`bf16` (autocast) or `fp32`."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved and validated; 0 switches averaging off."""
    log_every: int = 20
    """Steps between log lines."""
    validate_every: int = 500
    """Steps between validation rounds."""
    save_every: int = 200
    """Steps between resumable states, to which an image tokenizer also returns when its loss runs away."""
    sample_every: int = 1000
    """Steps between sample pictures; 0 makes none."""
    tracker: str = "none"
    """`none` or `tensorboard` (extra); JSONL is always written."""
    compile: bool = False
    """Use torch.compile; needs a C++ compiler."""


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """The discriminator that makes a VQGAN of the VQ-VAE (Esser et al. 2021), off by default."""

    weight: float = 0.0
    """Weight of what the decoder learns from the discriminator; 0 trains without one."""
    adaptive: bool = True
    """Multiply the weight by the ratio of both losses' gradient norms at the decoder's last layer, in every step."""
    start: float = 0.3
    """Share of the steps after which the decoder learns from the discriminator."""
    discriminator_warmup: int = 100
    """Steps before that in which the discriminator learns, but the decoder not yet from it."""
    learning_rate: float = 5e-4
    """Peak rate of the discriminator; it follows the same schedule."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Width of each layer of the discriminator; each halves the sides."""
    r1: float = 0.0
    """Weight of the penalty on the discriminator's slopes at real pictures (Mescheder et al. 2018)."""
    lecam: float = 0.0
    """Weight of LeCam regularization, for few pictures (Tseng et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class DvaeConfig:
    """Schedule of DALL-E 1's dVAE (Ramesh et al. 2021, appendix A.2); read with the `gumbel` quantizer only."""

    temperature: tuple[float, float] = (1.0, 0.0625)
    """First and last temperature of the relaxation."""
    temperature_share: float = 0.05
    """Share of the steps in which it falls."""
    kl_weight: float = 6.6
    """Final weight of the divergence from uniform ids, counted over whole pictures as in the paper."""
    kl_share: float = 0.0017
    """Share of the steps in which it rises from 0."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun:
    """Stage 1: pictures -> image tokenizer."""

    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    commitment: float = 0.25
    """Weight of the loss that keeps z near its codebook vector (`vq`, `simvq`, `lfq`)."""
    entropy: tuple[float, float] = (0.1, 0.1)
    """Weights of what makes each id sure and of what makes ids varied (`lfq`)."""
    edge: float = 0.5
    """Weight of the loss on differences between neighbouring pixels, which keeps outlines sharp. Not read with
    `likelihood: laplace`."""
    dvae: DvaeConfig = field(default_factory=DvaeConfig)
    perceptual: str = "none"
    """`none`, `gradient-ssim` (no weights), `efficientnet-lite0` (extra `judge`) or `lpips` (extra)."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance."""
    gan: GanConfig = field(default_factory=GanConfig)


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRun:
    """Stage 2: captions -> text tokenizer."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = ""
    """The SentencePiece model file to write."""
    vocab_size: int = 8192
    """Most text ids to use, special and byte ids included; few captions may support fewer."""
    normalization: str = "nfkc_cf"
    """`nfkc`, or `nfkc_cf` which also folds case."""


@dataclass(frozen=True, kw_only=True)
class EncodeRun:
    """Stage 3: pictures + image tokenizer -> token cache."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model_dir: str = ""
    """Checkpoint folder with the image tokenizer."""
    out: str = ""
    """Folder of the token cache."""
    variants: int = 16
    """Augmented versions of each training picture; 0 keeps it as it is. Validation pictures are encoded plain."""
    batch_size: int = 128
    """Pictures per pass."""
    precision: str = "bf16"
    """`bf16` (autocast), which changes one id in a hundred and the pictures by nothing to speak of, or `fp32`."""
    seed: int = 0
    """Draws the variants."""
    soft: int = 0
    """Likeliest ids to keep for each place with their probabilities, for `image_targets`; 0 keeps the chosen one."""
    temperature: float = 1.0
    """What scores are divided by to make probabilities of them: 1 for `gumbel`, whose own they then are. The vectors of
    `vq` are so near to each other that about 0.02 is right. Read with `soft` only."""


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """Halving the learning rate when the loss falls no more, as for DALL-E 1 (Ramesh et al. 2021, appendix B.2).

    It takes the place of the cosine: after the warmup, `optimizer.decay_start` and `final_rate` are not read.
    """

    halvings: int = 0
    """How often the rate is halved at most; 0 leaves it to the cosine."""
    loss: str = "training"
    """Whose mean is watched: `training`, over all steps since the last validation, or `validation`."""
    patience: int = 4
    """Validations in a row without enough gain after which the rate is halved."""
    least_gain: float = 0.002
    """Share of its lowest value by which the loss must fall for a gain."""


@dataclass(frozen=True, kw_only=True)
class TransformerRun:
    """Stage 4: token cache + text tokenizer -> transformer."""

    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Defaults written into the checkpoint."""
    about: AboutConfig = field(default_factory=AboutConfig)
    """Also written into it; languages and data follow from the cache where they are not given."""
    cache: str = ""
    """Folder of the token cache."""
    text_tokenizer: str = ""
    """SentencePiece model file."""
    text_length: int = 24
    """Text positions of the stream."""
    languages: dict[str, float] = field(default_factory=dict)
    """Relative frequency of each caption language; languages not named get 1."""
    image_weight: float = 7.0
    """Weight of the image loss; the text loss has weight 1 (DALL-E 1, section 2.2)."""
    caption_dropout: float = 0.1
    """Chance of an empty caption, which is what guidance is measured against."""
    bpe_dropout: float = 0.1
    """Chance of skipping a BPE merge in training captions."""
    id_corruption: float = 0.05
    """Share of image ids that are replaced by random ones on the input side; holds off memorising."""
    id_dropout: float = 0.5
    """Share of pictures of which a random share of image ids, up to all, is hidden on the input side. What comes next
    must then be told from the caption, which a strong decoder otherwise learns to use late (Bowman et al. 2016)."""
    image_targets: str = "argmax"
    """Image ids to learn from (Ramesh et al. 2021, footnote 6): `argmax`, the chosen ones; `sampled`, drawn each time
    from the image tokenizer's distribution; `soft`, drawn as well, but judged by all of the distribution. The latter
    two hold off memorising, and need a cache encoded with `soft`."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    recompute: bool = False
    """Compute each block a second time in the backward pass instead of keeping what it computed (Chen et al. 2016)."""
    prompts: tuple[str, ...] = ("a red heart", "a cat", "a yellow star", "a green apple")
    """Prompts for the sample pictures."""


@dataclass(frozen=True, kw_only=True)
class ScorerRun:
    """Stage 5: captioned pictures + text tokenizer -> CLIP scorer."""

    model: ScorerConfig = field(default_factory=ScorerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text_tokenizer: str = ""
    """SentencePiece model file."""
    languages: dict[str, float] = field(default_factory=dict)
    """Relative frequency of each caption language; languages not named get 1."""
    captions: int = 1
    """Captions drawn for each picture and step; small text towers make them cheap beside the picture."""
    bpe_dropout: float = 0.1
    """Chance of skipping a BPE merge in training captions."""
    language: str = "en"
    """Language of the captions used in validation, where pictures have it."""
    reconstructed: float = 0.0
    """Share of pictures seen through the image tokenizer, as the ones to be ranked will be."""
