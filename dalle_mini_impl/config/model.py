"""Shapes of the model parts: image tokenizer, stream, transformer, scorer. Frozen dataclasses; imports no torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ImportedNetworkConfig:
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

    network: str = "vqvae"
    """`vqvae` (trained here), or an imported one: `taming`, `openai-dvae` or `dalle-pytorch`. Imported networks have
    their own quantizers: `nearest`, `cosine` or `logits`."""

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
    imported: ImportedNetworkConfig = field(default_factory=ImportedNetworkConfig)
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
    rotate_values: bool = False
    """Turn values as well as queries and keys to their position (DALLE-pytorch)."""
    sandwich: bool = False
    """Normalise what a layer adds, too (Ding et al. 2021, CogView)."""
    token_shift: bool = False
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
    attention_masks: tuple[str, ...] = ("full",)
    """Masks of the blocks (`masks` tells them), over again where there are more blocks."""
    last_attention_mask: str = ""
    """Mask of the last block, where it is another."""
    mask_kernel: int = 11
    """Side of the square of the `conv` masks."""
    mask_origin: str = "input"
    """Where the picture begins for the masks: at its first id (`input`), or one place before, which predicts it
    (`target`; ruDALL-E)."""
    block: BlockConfig = field(default_factory=BlockConfig)
    last_norms: int = 1
    """Norms behind the last block."""
    divide_by_max: bool = False
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
