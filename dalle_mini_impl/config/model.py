"""Shapes of the parts: image tokenizer, stream, transformer, scorer, prior. Frozen dataclasses; imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated

from dalle_mini_impl.config.ranges import Depth, Interval, Length, NotEmpty, Side, Width
from dalle_mini_impl.util.errors import UserError

DEFAULT_IMAGE_SIZE = 64
"""Side of square training pictures in pixels where a config gives no size."""


@dataclass(frozen=True, kw_only=True)
class ImportedNetworkConfig:
    """Settings of imported image tokenizers."""

    stem: Width = 128
    """`taming`: width before the first stage."""
    z_channels: Width = 256
    """`taming`: width between the networks and the 1×1 convolutions around the quantizer."""
    attention: tuple[int, ...] = ()
    """`taming`: indices of the stages, the finest being 0, in which attention follows each block."""
    middle_attention: bool = True
    """`taming`: whether there is attention between the two blocks after the last stage."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """`dalle-pytorch`: subtracted from pixels in [0, 1] before encoding."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """`dalle-pytorch`: divides pixels after `mean` is subtracted."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of the VQ-VAE."""

    network: str = "vqvae"
    """`vqvae` (trained here), or an imported one: `taming`, `openai-dvae` or `dalle-pytorch`. Imported networks have
    their own quantizers: `nearest`, `cosine` or `logits`."""

    image_size: Annotated[int, Interval(0, 2**14)] = 0
    """Side of square training pictures in pixels, a multiple of `factor`; 64 where nothing is given, and 0 with
    `height` and `width`."""
    height: Annotated[int, Interval(0, 2**14)] = 0
    """With `width`, the size of training pictures that are not square, in place of `image_size`; a multiple of
    `factor`."""
    width: Annotated[int, Interval(0, 2**14)] = 0
    """See `height`."""
    factor: Side = 8
    """Pixels per token along each side: 4, 8 or 16."""
    channels: Annotated[tuple[Width, ...], NotEmpty()] = (128, 256)
    """Width of each resolution stage, finest first; the last stage works on the token grid."""
    encoder_blocks: Depth = 1
    """Residual blocks per stage of the encoder."""
    decoder_blocks: Depth = 2
    """Residual blocks per stage of the decoder. It has the harder task, so more than in the encoder pay off."""
    quantizer: str = "vq"
    """`vq` (cosine-similarity EMA codebook), `simvq` (fixed codebook through a learned matrix), `fsq` (finite scalar
    quantization), `lfq` (lookup-free: signs) or `gumbel` (DALL-E 1's Gumbel softmax)."""
    codebook_size: Width = 1024
    """K, number of image ids. With `fsq` it is the product of `fsq_levels`, with `lfq` a power of two."""
    embed_dim: Width = 16
    """D, width of a codebook vector. With `fsq` it is the number of levels, with `lfq` log2 K."""
    fsq_levels: tuple[Width, ...] = (8, 8, 4, 4)
    """Levels of each FSQ dimension; read with `fsq` only."""
    likelihood: str = "none"
    """`none` (the decoder outputs pixels) or `laplace` (location and scale of each pixel, as in DALL-E 1's dVAE)."""
    imported: ImportedNetworkConfig = field(default_factory=ImportedNetworkConfig)
    """Used by imported networks only."""

    def __post_init__(self) -> None:
        """Take the default size where none is given.

        Raises:
            UserError: one of height and width is missing, or both and `image_size` are given.
        """
        if self.height == self.width and self.width:  # one way to write each size, so that configs can be compared
            if self.image_size not in (0, self.width):
                raise UserError(self._two_sizes())
            object.__setattr__(self, "image_size", self.width)
            object.__setattr__(self, "height", 0)
            object.__setattr__(self, "width", 0)
        if bool(self.height) != bool(self.width) or (self.height and self.image_size):
            raise UserError(self._two_sizes())
        if not (self.image_size or self.height):
            object.__setattr__(self, "image_size", DEFAULT_IMAGE_SIZE)

    def _two_sizes(self) -> str:
        return (
            f"expected model.image_size, or model.height and model.width, got {self.image_size}, {self.height} and "
            f"{self.width}; set the one or the others to 0"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training pictures in pixels."""
        return (self.image_size, self.image_size) if self.image_size else (self.height, self.width)

    @property
    def grid(self) -> tuple[int, int]:
        """Token grid `(h, w)` at the training size.

        Raises:
            UserError: `factor` is not positive.
        """
        if self.factor < 1:
            raise UserError(f"expected factor of 1 or more, got {self.factor}; change it")
        return self.size[0] // self.factor, self.size[1] // self.factor


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Layout of the one stream `[BOS][text][image]`, before which an image embedding may stand."""

    text_length: Length
    """Text positions after BOS."""
    text_vocab: int
    """Number of text ids."""
    grid: tuple[int, int]
    """Image token grid `(h, w)`."""
    image_vocab: int
    """K, number of image ids."""
    bos_id: int = 2
    """Text id at the beginning of every stream; -1 for none (minDALL-E)."""
    pad_id: int = -1
    """Text id that is replaced by the padding id of its position wherever it occurs in captions; -1 for none."""
    patch: Side = 1
    """Side in cells of the patches of image ids, as `TransformerConfig.patch`. Image ids are in raster order of the
    patches, and in raster order within a patch."""
    embed_positions: Annotated[int, Interval(0, 2**10)] = 0
    """Positions before BOS that an image embedding fills; 0 for none."""
    embed_dim: Annotated[int, Interval(0, 2**20)] = 0
    """D, width of that embedding; 0 with no such positions."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The parts of a transformer block. The defaults are those of models trained here.

    `rotate_values`, `sandwich`, `token_shift` and `reversible` are for imported models.
    """

    norm: str = "rms"
    """`rms` (RMSNorm) or `layer` (LayerNorm)."""
    mlp: str = "swiglu"
    """Feed-forward layer: `swiglu` or `geglu` (gated), `gelu` or `gelu-tanh` (without a gate)."""
    hidden: Annotated[int, Interval(0, 2**22)] = 0
    """Hidden width of the feed-forward layer; 0 is about 8/3 C with `swiglu`, 4 C with the others."""
    bias: bool = False
    """Whether linear layers have biases."""
    qk_norm: bool = True
    """Normalise queries and keys."""
    rotate_values: bool = False
    """Rotate values to their positions like queries and keys (DALLE-pytorch)."""
    sandwich: bool = False
    """Normalise the output of each layer as well, before it is added (Ding et al. 2021, CogView)."""
    token_shift: bool = False
    """Take a quarter of the channels from the cell above and a quarter from the cell on the left; at text positions
    both from the position before (DALLE-pytorch)."""
    reversible: bool = False
    """Reversible residual blocks (two residual streams): attention reads the second stream and adds to the first, the
    feed-forward layer reads the first and adds to the second (Gomez et al. 2017)."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the decoder-only transformer."""

    n_layer: Annotated[int, Interval(1, 10_000)] = 8
    """Number of blocks."""
    n_head: Width = 8
    """Attention heads per block."""
    n_embd: Width = 256
    """C, width; a multiple of `4 * n_head` with `rope`."""
    head_dim: Annotated[int, Interval(0, 2**20)] = 0
    """Width of a head; 0 is `n_embd / n_head`."""
    position: str = "rope"
    """`rope` (rotary, 2-D in pictures), `learned` (an embedding per row and per column), `absolute` (an embedding per
    position) or `table` (rotary with an imported table)."""
    attention_masks: Annotated[tuple[str, ...], NotEmpty()] = ("full",)
    """Attention masks of the blocks, repeated if there are more blocks: `full`, `row`, `column`, `conv`, `conv_torus`,
    `conv_square`, `axial_row`, `axial_col` or `conv_like`; see `model/masks.py`."""
    last_attention_mask: str = ""
    """Attention mask of the last block, if it is another one."""
    mask_kernel: Side = 11
    """Side of the square of the `conv` masks in cells."""
    mask_origin: str = "input"
    """Where the picture begins for the masks: at its first id (`input`), or at the position before, which predicts that
    id (`target`; ruDALL-E)."""
    block: BlockConfig = field(default_factory=BlockConfig)
    patch: Side = 1
    """Side in cells of the square patches of image ids that are one position each; 1 for one position per id, 2 for
    four ids at a time (Lee et al. 2022, RQ-Transformer; Yu et al. 2023, MEGABYTE)."""
    depth_layers: Annotated[int, Interval(1, 10_000)] = 1
    """Blocks of the depth transformer, which predicts the ids of a patch one after another; used with `patch` only."""
    tied_head: bool = False
    """Use the embedding's weights in the output head as well (Press and Wolf 2017); the head then has no bias."""
    last_norms: Width = 1
    """Number of norms after the last block; more than one for imported models."""
    divide_by_max: bool = False
    """Divide the output of the last block by its largest channel (Ding et al. 2021, CogView); for imported models."""


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Shape of the CLIP scorer."""

    image_size: Side = 64
    """Side of the square pictures in pixels; other pictures are resized."""
    patch_size: Side = 8
    """Side of a patch of the ViT image tower, in pixels."""
    n_embd: Width = 256
    """Width of both towers."""
    n_head: Width = 4
    """Attention heads in both towers."""
    image_layers: Depth = 6
    """Blocks of the image tower."""
    text_layers: Depth = 3
    """Blocks of the text tower."""
    text_length: Length = 24
    """Text ids per caption, end-of-text included."""
    embed_dim: Width = 256
    """D, width of the shared embedding space."""
    fit: str = "crop"
    """How other pictures are made square: `crop` (their middle) or `squash` (all of them, in other proportions).
    Trained on pictures that are not square, a scorer is saved with `squash`."""
    sigmoid: bool = False
    """Train with the sigmoid loss, which treats each pair separately and has a learned bias (Zhai et al. 2023, SigLIP),
    instead of the contrastive loss over the batch."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Shape of the prior, which draws image embeddings of a scorer for captions (Ramesh et al. 2022, DALL-E 2)."""

    kind: str = "diffusion"
    """`diffusion`, or `ar`: autoregressive over the principal components of embeddings."""
    n_layer: Annotated[int, Interval(1, 10_000)] = 4
    """Number of blocks."""
    n_head: Width = 4
    """Attention heads per block."""
    n_embd: Width = 256
    """C, width; even, and a multiple of `n_head`."""
    text_length: Length = 24
    """Text ids per caption, end-of-text included; longer captions are cut."""
    components: Width = 64
    """`ar`: how many principal components are predicted, in the order of their variance; at most D."""
    buckets: Annotated[int, Interval(2, 2**16)] = 256
    """`ar`: into how many equally frequent intervals each component is divided."""
