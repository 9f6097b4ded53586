"""Settings of the training stages: one class per stage, whose keys a config file under `configs/` may set.

The docstring below an attribute is also its line in `dalle train STAGE --help`.
"""

from dataclasses import dataclass, field
from typing import Annotated

from dalle_mini_impl.config.checkpoint import AboutConfig
from dalle_mini_impl.config.data import AugmentConfig, DataConfig
from dalle_mini_impl.config.guiding import GuidingConfig
from dalle_mini_impl.config.model import ImageTokenizerConfig, PriorConfig, ScorerConfig, TransformerConfig
from dalle_mini_impl.config.ranges import (
    Batch,
    Count,
    Decay,
    Interval,
    Length,
    Natural,
    NonNegative,
    Positive,
    Share,
    Width,
)
from dalle_mini_impl.config.sampling import PriorSamplingConfig, SamplingConfig
from dalle_mini_impl.config.scenes import ScenesConfig
from dalle_mini_impl.config.tuning import TuneConfig

ORDERS = ("keyed", "permuted")
"""Values of `run.order`."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, optionally with Muon on the hidden matrices; linear warmup, constant rate, cosine decay."""

    learning_rate: NonNegative = 1e-3
    """Peak learning rate of AdamW."""
    muon_learning_rate: NonNegative = 0.0
    """Peak learning rate of Muon on hidden matrices and convolutions; 0 trains all weights with AdamW."""
    muon_every: Count = 2
    """Muon changes each hidden matrix in every so-manieth step, by as many times as much; matrices of one shape take
    turns."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    warmup_steps: Natural = 100
    """Steps in which the rate rises linearly to its peak."""
    decay_start: Share = 0.0
    """Share of the steps after which the cosine decay begins; between warmup and decay the rate is constant."""
    final_rate: NonNegative = 0.02
    """Learning rate at the last step, as a share of the peak."""
    clip: Positive = 1.0
    """Largest gradient norm; larger gradients are scaled down to it."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, batches, precision, logging and folders of a training run."""

    model_dir: str = ""
    """Checkpoint folder; each stage adds its part to it."""
    state_dir: str = ""
    """Folder for the log, sample pictures and resumable states."""
    steps: Count = 1000
    """Optimizer steps."""
    minutes: NonNegative = 0.0
    """If above 0, train for this many minutes, validation included, instead of for `steps`; schedules then follow the
    clock."""
    batch_size: Batch = 64
    """Pictures per optimizer step, over all processes."""
    accumulation: Batch = 1
    """Forward and backward passes per optimizer step, each over an equal part of the batch."""
    seed: Natural = 0
    """Seed of everything random."""
    order: str = ORDERS[0]
    """How the pictures of an epoch are ordered: `keyed`, in time that does not grow with the set, or `permuted`, as in
    version 0.1. A resumed run keeps its own."""
    precision: str = "auto"
    """`bf16` (autocast), `fp16` (autocast with loss scaling, for GPUs without bf16) or `fp32`; `auto` is the
    launcher's `mixed_precision`, or bf16 where that is `no`."""
    ema: Decay = 0.999
    """Decay of the exponential moving average of the weights (EMA), which is what is validated and saved; 0 uses the
    latest weights."""
    log_every: Natural = 20
    """Steps between lines of the log; 0 writes none."""
    validate_every: Natural = 500
    """Steps between validations; 0 makes none."""
    save_every: Natural = 200
    """Steps between resumable states. An image tokenizer whose loss diverges also returns to the last one."""
    keep_states: Count = 2
    """How many of the latest resumable states are kept."""
    keep_every: Natural = 0
    """Steps between states that are kept for good, in multiples of `save_every`; 0 keeps none."""
    workers: Annotated[int, Interval(0, 1024)] = 0
    """Processes, for each process of the training, that make batches ahead; 0 makes each when it is needed. The batches
    are the same. It pays beside a GPU, or where some cores are idle (Linux, macOS)."""
    patience: Annotated[float, Interval(1 / 60, 8760)] = 168.0
    """Hours that launched processes wait for each other: for the one that reads a large set, validates or writes. Once
    a set is read, fewer free the other machines sooner where one has vanished without a word."""
    sample_every: Natural = 1000
    """Steps between sheets of sample pictures; 0 writes none."""
    tracker: str = "none"
    """A tracker that gets the figures: one that accelerate knows, such as `tensorboard` (extra), `wandb` or `trackio`;
    `none` for none. log.jsonl is always written."""
    compile: bool = False
    """Use torch.compile; needs a C++ compiler."""


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """The discriminator that turns the VQ-VAE into a VQGAN (Esser et al. 2021); off by default."""

    weight: NonNegative = 0.0
    """Weight of the generator loss, with which the decoder learns from the discriminator; 0 trains without one."""
    adaptive: bool = True
    """Multiply the weight, in every step, by the ratio of the gradient norms of the reconstruction loss and of the
    generator loss at the decoder's last layer."""
    start: Share = 0.3
    """Share of the steps after which the decoder learns from the discriminator."""
    discriminator_warmup: Natural = 100
    """Steps before `start` in which only the discriminator learns."""
    learning_rate: NonNegative = 5e-4
    """Peak learning rate of the discriminator; same schedule as the image tokenizer's."""
    channels: tuple[Width, ...] = (64, 128, 256)
    """Width of each layer of the discriminator; each layer halves height and width."""
    r1: NonNegative = 0.0
    """Weight of the R1 penalty: squared gradient of the logits at real pictures (Mescheder et al. 2018)."""
    lecam: NonNegative = 0.0
    """Weight of LeCam regularization, for small sets (Tseng et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class DvaeConfig:
    """Schedule of DALL-E 1's dVAE (Ramesh et al. 2021, appendix A.2); used by the `gumbel` quantizer only."""

    temperature: tuple[Positive, Positive] = (1.0, 0.0625)
    """First and last temperature of the Gumbel-softmax relaxation."""
    temperature_share: Share = 0.05
    """Share of the steps over which the temperature falls."""
    kl_weight: NonNegative = 6.6
    """Final weight of the KL divergence from the uniform distribution over ids, with both losses summed over a picture
    as in the paper."""
    kl_share: Share = 0.0017
    """Share of the steps over which the weight rises from 0."""


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRun:
    """Stage 1: captions -> text tokenizer."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = ""
    """The SentencePiece model file to write."""
    vocab_size: Annotated[int, Interval(1, 2**24)] = 8192
    """Largest number of text ids, special and byte ids included; a small set may support fewer."""
    normalization: str = "nfkc_cf"
    """Unicode normalization: `nfkc`, or `nfkc_cf`, which also folds case."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun:
    """Stage 2: pictures -> image tokenizer."""

    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    start_from: str = ""
    """Checkpoint whose image tokenizer gives the initial weights and the settings in `model`: a shipped name, a folder
    or hf:USER/REPO. `model.image_size` may differ, and `model.factor` may be a multiple: the same ids for pictures
    that are as many times larger."""
    data: DataConfig = field(default_factory=DataConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    commitment: NonNegative = 0.25
    """Weight of the commitment loss, which pulls z towards its codebook vector (`vq`, `simvq`, `lfq`)."""
    entropy: tuple[NonNegative, NonNegative] = (0.1, 0.1)
    """Weights of low entropy per picture (each id is certain) and of high entropy over the batch (ids are varied), with
    the `lfq` quantizer."""
    edge: NonNegative = 0.5
    """Weight of the L1 loss on differences between neighbouring pixels, which keeps outlines sharp. Not used with
    `likelihood: laplace`."""
    dvae: DvaeConfig = field(default_factory=DvaeConfig)
    perceptual: str = "none"
    """Perceptual distance in the loss: `none`, `gradient-ssim` (needs no weights), `efficientnet-lite0` (extra `judge`)
    or `lpips` (extra `lpips`)."""
    perceptual_weight: NonNegative = 1.0
    """Weight of the perceptual distance."""
    gan: GanConfig = field(default_factory=GanConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True, kw_only=True)
class EncodeRun:
    """Stage 3: pictures + image tokenizer -> token cache."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model_dir: str = ""
    """Checkpoint folder with the image tokenizer."""
    out: str = ""
    """Folder of the token cache to write."""
    variants: Annotated[int, Interval(0, 10_000)] = 16
    """Augmented variants of each training picture; 0 encodes it once, unchanged. Validation pictures are never
    augmented."""
    first_unchanged: bool = False
    """Encode the first variant of each training picture unchanged, for the transformer's `augmented_share`."""
    batch_size: Batch = 128
    """Pictures per forward pass."""
    workers: Annotated[int, Interval(0, 1024)] = 0
    """Without `data.store`: processes, for each process of the stage, that read and augment pictures ahead; 0 reads
    them in between. The ids are the same (more than 0: Linux, macOS)."""
    ray: str = ""
    """Without `data.store`: address of a Ray cluster whose machines encode (extra `ray`), `auto`, `HOST:PORT`,
    `ray://HOST:PORT` or `local` for one that is started here; empty for this process and those of the launcher."""
    ray_workers: Annotated[int, Interval(0, 100_000)] = 0
    """Workers on it; 0 is one per GPU, or per machine."""
    precision: str = "auto"
    """`bf16` (autocast), which changes about one id in a hundred with no visible effect, `fp16` or `fp32`; `auto` is
    the launcher's `mixed_precision`, or bf16 where that is `no`."""
    seed: Natural = 0
    """Seed of the augmentation."""
    soft_ids: Natural = 0
    """Number of likeliest ids to store for each cell with their probabilities, for `image_targets` of the transformer;
    0 stores the chosen id alone."""
    soft_temperature: Positive = 1.0
    """Divides the quantizer's scores before the softmax that gives those probabilities. With `gumbel` 1 is its own
    distribution; the codebook vectors of `vq` lie close together, so about 0.02 fits. Used with `soft_ids` only."""
    image_embed: bool = False
    """Store an embedding of each variant as well, by the scorer in `model_dir`, for the transformer's `image_embed`."""


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """Halve the learning rate when the loss stops falling, as for DALL-E 1 (Ramesh et al. 2021, appendix B.2).

    Replaces the cosine decay: after the warmup, `optimizer.decay_start` and `optimizer.final_rate` are not used.
    """

    halvings: Natural = 0
    """Largest number of halvings; 0 uses the cosine decay."""
    loss: str = "training"
    """Which loss is compared: the mean `training` loss since the last validation, or the `validation` loss."""
    patience: Count = 4
    """Validations in a row without enough improvement after which the rate is halved."""
    min_gain: NonNegative = 0.002
    """Smallest improvement, as a share of the lowest loss so far."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Pictures of an earlier training, such as that of `start_from`, in every batch: fewer of them are forgotten."""

    cache: str = ""
    """Folder of their token cache, encoded with the same image tokenizer; empty for none."""
    share: Share = 0.25
    """Share of each batch that is taken from it."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2021): the matrices of the blocks stay those of `start_from`, and the product
    of two narrow matrices is learned beside each. The checkpoint gets their sum. Needs the extra `lora`.
    """

    rank: Annotated[int, Interval(0, 2**16)] = 0
    """Width of the narrow matrices; 0 trains all weights instead."""
    alpha: Positive = 16.0
    """The products are multiplied by `alpha / rank`."""
    embeddings: bool = True
    """Train embeddings and head, too. Needed where text pieces or image ids are new."""


@dataclass(frozen=True, kw_only=True)
class ImageEmbedConfig:
    """Embeddings of pictures by the scorer in `run.model_dir`, which tell the transformer what to draw, with and
    without a caption. They come from a cache encoded with `image_embed`, those of scenes from their pixels.
    """

    positions: Annotated[int, Interval(0, 2**10)] = 0
    """Positions of the stream, before BOS, that an embedding fills; 0 for a model without, 4 as DALL-E 2's decoder has
    (Ramesh et al. 2022). A run with 0 may be resumed with some."""
    dropout: Share = 0.5
    """Probability of training on no embedding, whether there is a caption or not."""
    other_share: Share = 0.0
    """Probability that an embedding is of another picture of the same concept (detail `concept`), or of a scene as
    another vendor draws it: then it says what to draw, and the caption how."""


@dataclass(frozen=True, kw_only=True)
class TransformerRun:
    """Stage 4: token cache + text tokenizer -> transformer."""

    model: TransformerConfig = field(default_factory=TransformerConfig)
    start_from: str = ""
    """Checkpoint whose transformer gives the initial weights, the settings in `model`, `text_length` and, if there are
    no others, text and image tokenizer: a shipped name, a folder or hf:USER/REPO. `model.tied_head` may differ, and
    from a transformer without patches `model.patch` and `model.depth_layers`."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Default sampling settings to write into the checkpoint."""
    about: AboutConfig = field(default_factory=AboutConfig)
    """Description to write into the checkpoint; languages and data that are not given are taken from the cache."""
    cache: str = ""
    """Folder of the token cache."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    image_embed: ImageEmbedConfig = field(default_factory=ImageEmbedConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    text_tokenizer: str = ""
    """SentencePiece model file."""
    text_length: Length = 24
    """Text positions of the stream, without BOS; longer captions are cut."""
    language_weights: dict[str, NonNegative] = field(default_factory=dict)
    """Relative frequency of captions by language code; languages not named have weight 1."""
    image_weight: NonNegative = 7.0
    """Weight of the image loss; the text loss has weight 1 (Ramesh et al. 2021, section 2.2)."""
    caption_dropout: Share = 0.1
    """Probability of training on an empty caption, which classifier-free guidance needs."""
    bpe_dropout: Share = 0.1
    """Probability of skipping a BPE merge in training captions (Provilkov et al. 2020)."""
    id_corruption: Share = 0.05
    """Share of input image ids that are replaced by those of another picture; reduces memorising."""
    id_dropout: Share = 0.5
    """Share of pictures in which a random share (0 to 1) of the input image ids, in whole patches, is hidden. The
    targets there can only be predicted from the caption, which is otherwise learned late (Bowman et al. 2016)."""
    augmented_share: Share = 0.0
    """Share of pictures that are augmented variants, which the model is told, so that it never draws such pictures (Jun
    et al. 2020, DistAug); 0: all variants alike, nothing told. Needs a cache encoded with `first_unchanged`."""
    random_order: tuple[Share, Share] = (0.0, 0.0)
    """Up to the first share of the run, pictures are learned in random orders; then in ever fewer steps, and from the
    second share on in the order in which they are drawn (Yu et al. 2024, RAR). Two zeros: always in that one."""
    image_targets: str = "argmax"
    """Image ids to learn from (Ramesh et al. 2021, footnote 6): `argmax`, the chosen ids; `sampled`, ids sampled anew
    each time from the image tokenizer's distribution; `soft`, sampled inputs and the whole distribution as the target.
    The latter two reduce memorising and need a cache encoded with `soft_ids`."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    recompute: bool = False
    """Compute each block again in the backward pass instead of storing its activations (Chen et al. 2016): less memory,
    more time."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample pictures; if empty, captions of a few training and of a few held-out pictures."""


@dataclass(frozen=True, kw_only=True)
class ScorerRun:
    """Stage 5: captioned pictures + text tokenizer -> CLIP scorer."""

    model: ScorerConfig = field(default_factory=ScorerConfig)
    start_from: str = ""
    """Checkpoint whose scorer gives the initial weights, the settings in `model` and, if none is named, the text
    tokenizer: a shipped name, a folder or hf:USER/REPO."""
    data: DataConfig = field(default_factory=DataConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text_tokenizer: str = ""
    """SentencePiece model file."""
    language_weights: dict[str, NonNegative] = field(default_factory=dict)
    """Relative frequency of captions by language code; languages not named have weight 1."""
    captions: Annotated[int, Interval(1, 1000)] = 1
    """Captions per picture and step. With a small text tower further captions cost little beside the picture."""
    bpe_dropout: Share = 0.1
    """Probability of skipping a BPE merge in training captions (Provilkov et al. 2020)."""
    validation_language: str = "en"
    """Language of the captions in validation, for pictures that have it."""
    reconstructed_share: Share = 0.0
    """Share of training pictures that are encoded and decoded by the image tokenizer first, as the pictures to be
    ranked are decoded by it too."""
    guiding: GuidingConfig = field(default_factory=GuidingConfig)


@dataclass(frozen=True, kw_only=True)
class PriorRun:
    """Stage 6: captioned pictures + scorer -> prior."""

    model: PriorConfig = field(default_factory=PriorConfig)
    sampling: PriorSamplingConfig = field(default_factory=PriorSamplingConfig)
    """How embeddings are drawn, in validation and wherever the prior is used."""
    data: DataConfig = field(default_factory=DataConfig)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    scorer: str = ""
    """Scorer whose embeddings are predicted: shipped name, checkpoint folder, hf:NAME or open_clip:MODEL:PRETRAINED; if
    empty, that of `run.model_dir`."""
    text_tokenizer: str = ""
    """SentencePiece model file; if empty, that of `run.model_dir`."""
    language_weights: dict[str, NonNegative] = field(default_factory=dict)
    """Relative frequency of captions by language code; languages not named have weight 1."""
    bpe_dropout: Share = 0.1
    """Probability of skipping a BPE merge in training captions (Provilkov et al. 2020)."""
    condition_dropout: Share = 0.1
    """Probability of training without caption and text embedding, which classifier-free guidance needs."""
    validation_language: str = "en"
    """Language of the captions in validation, for pictures that have it."""
