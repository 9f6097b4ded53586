"""Configs: frozen dataclasses, each with its defaults. Imports no torch; `config_io` reads them from YAML."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """What only imported image tokenizers need to know."""

    stem: int = 128
    """`taming`: width before the first stage."""
    z_channels: int = 256
    """`taming`: width between the networks and the 1×1 convolutions around the quantizer."""
    attention: tuple[int, ...] = ()
    """`taming`: stages, finest 0, in which attention follows each block."""
    middle_attention: bool = True
    """`taming`: whether the two blocks of the middle have attention between them."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """`dalle-pytorch`: taken off pixels in [0, 1] before encoding."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """`dalle-pytorch`: what they are divided by after that."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of the VQ-VAE."""

    network: str = "ours"
    """`ours`, or an imported one: `taming`, `openai-dvae` or `dalle-pytorch`. These have quantizers of their own:
    `nearest`, `cosine` or `logits`."""

    image_size: int = 64
    """Side of the square training pictures in pixels; a multiple of `factor`."""
    factor: int = 8
    """Pixels per token along each side: 4, 8 or 16."""
    channels: tuple[int, ...] = (128, 256)
    """Width of each resolution stage, finest first; the last stage works on the token grid."""
    encoder_blocks: int = 1
    """Residual blocks per stage of the encoder."""
    decoder_blocks: int = 2
    """Residual blocks per stage of the decoder, which has the harder job."""
    quantizer: str = "vq"
    """`vq` (cosine-similarity EMA codebook), `simvq` (fixed codebook through a learned matrix), `fsq` (finite scalar
    quantization), `lfq` (signs) or `gumbel` (DALL-E 1's relaxed choice)."""
    codebook_size: int = 1024
    """K, number of image ids. With `fsq` it is the product of `fsq_levels`, with `lfq` a power of two."""
    embed_dim: int = 16
    """D, width of a codebook vector. With `fsq` it is the number of levels, with `lfq` log2 K."""
    fsq_levels: tuple[int, ...] = (8, 8, 4, 4)
    """Levels of each FSQ dimension; read with `fsq` only."""
    likelihood: str = "none"
    """`none` (the decoder gives pixels) or `laplace` (location and scale of each; DALL-E 1's dVAE)."""
    foreign: ForeignConfig = field(default_factory=ForeignConfig)
    """Read for imported networks only."""

    @property
    def grid(self) -> tuple[int, int]:
        """Token grid `(h, w)` at the training size."""
        return self.image_size // self.factor, self.image_size // self.factor


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Layout of the one stream `[BOS][text][image]`."""

    text_length: int
    """Text positions after BOS."""
    text_vocab: int
    """Number of text ids."""
    grid: tuple[int, int]
    """Image token grid `(h, w)`."""
    image_vocab: int
    """K, number of image ids."""
    bos_id: int = 2
    """Text id that opens every stream; -1 for none (minDALL-E)."""
    pad_id: int = -1
    """Text id in whose place the padding of its position stands, wherever captions have it; -1 for none."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a block of the transformer is made of. The defaults are ours; all else is for models like earlier ones."""

    norm: str = "rms"
    """`rms` (RMSNorm) or `layer` (LayerNorm)."""
    mlp: str = "swiglu"
    """`swiglu`, `geglu`, or `gelu` and `gelu-tanh`, which have no gate."""
    hidden: int = 0
    """Width inside the feed-forward layer; 0 is 8/3 C with `swiglu` and 4 C with the others."""
    bias: bool = False
    """Whether all linear layers add one."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    turn_values: bool = False
    """Turn values as well as queries and keys to their position (DALLE-pytorch)."""
    sandwich: bool = False
    """Normalise what a layer adds, too (Ding et al. 2021, CogView)."""
    shift: bool = False
    """See half of the channels of neighbours instead of one's own: of the id before, above or left (DALLE-pytorch)."""
    reversible: bool = False
    """Attention adds to one stream what it reads from another, and the feed-forward layer the other way round."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the decoder-only transformer."""

    n_layer: int = 8
    """Number of blocks."""
    n_head: int = 8
    """Attention heads per block."""
    n_embd: int = 256
    """C, width; a multiple of `4 * n_head` with `rope`."""
    head_dim: int = 0
    """Width of a head; 0 is `n_embd / n_head`."""
    position: str = "rope"
    """`rope` (rotary, 2-D in pictures), `table` (rotary, imported), `learned` (row, column) or `absolute` (place)."""
    attention: tuple[str, ...] = ("full",)
    """Masks of the blocks (`masks` tells them), over again where there are more blocks."""
    last_attention: str = ""
    """Mask of the last block, where it is another."""
    kernel: int = 11
    """Side of the square of the `conv` masks."""
    masks_from: str = "input"
    """Where the picture begins for the masks: at its first id (`input`), or one place before, which predicts it
    (`target`; ruDALL-E)."""
    block: BlockConfig = field(default_factory=BlockConfig)
    last_norms: int = 1
    """Norms behind the last block."""
    stable: bool = False
    """Divide what leaves the last block by its largest number (Ding et al. 2021, CogView)."""


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Shape of the CLIP scorer."""

    image_size: int = 64
    """Side of the pictures it looks at, in pixels; others are resized."""
    patch_size: int = 8
    """Side of a patch of the ViT image tower, in pixels."""
    n_embd: int = 256
    """Width of both towers."""
    n_head: int = 4
    """Attention heads in both towers."""
    image_layers: int = 6
    """Blocks of the image tower."""
    text_layers: int = 3
    """Blocks of the text tower."""
    text_length: int = 24
    """Text ids per caption, end-of-text included."""
    embed_dim: int = 256
    """D, width of the shared embedding space."""
    sigmoid: bool = False
    """Judge each pair by itself, with a learned bias (Zhai et al. 2023, SigLIP), instead of against the others."""


RANKS = ("likelihood", "clip", "both", "none")


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


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure."""

    what: str
    """What was measured, and on what."""
    value: float
    """The figure, in the unit that `what` names."""
    command: str
    """What prints it."""


@dataclass(frozen=True, kw_only=True)
class AboutConfig:
    """What a checkpoint says of itself that its weights cannot tell; what is empty is not said."""

    licence: str = ""
    """Of the weights, as an SPDX identifier such as `CC-BY-4.0`."""
    languages: tuple[str, ...] = ()
    """Codes of the captions' languages."""
    data: tuple[str, ...] = ()
    """What it was trained on: a line for each source, best with its licence."""
    quality: tuple[Figure, ...] = ()
    """What was measured."""
    measured_on: str = ""
    """Hash, as `dalle info` prints it, of the checkpoint that `quality` was measured on; of another it says nothing."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint's `config.yaml`."""

    name: str = ""
    """Of the model."""
    sampling: SamplingConfig
    """The settings it recommends."""
    about: AboutConfig = field(default_factory=AboutConfig)
    """What it says of itself."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = ""
    """A folder of pictures with captions, a JSONL/CSV file, or WebDataset tars (a folder or a glob)."""
    store: str = ""
    """Folder of decoded pictures, built from `source` when it does not exist yet."""
    store_size: int = 128
    """Side in pixels at which pictures are stored; about twice what the models see leaves room to crop."""
    validation: float = 0.05
    """Share of pictures held out, where the source does not say which."""
    skip_kinds: tuple[str, ...] = ()
    """Pictures to leave out by their `kind` detail (emoji: `flag`, `person-variant`)."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random variants of a picture."""

    scale: tuple[float, float] = (0.85, 1.0)
    """Range of the picture's size relative to the frame."""
    shift: float = 0.06
    """Largest shift in either direction, as a share of the frame."""
    flip: float = 0.5
    """Chance of mirroring pictures that may be mirrored."""
    background: float = 0.25
    """Chance of a random colour instead of white behind transparent pictures."""
    crop: bool = False
    """Of pictures larger than the frame (`scale` above 1) show any part, not the middle."""
