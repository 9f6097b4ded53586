"""Configs: frozen dataclasses, read strictly from YAML. Imports no torch.

A file says only what differs from the defaults. Unknown keys and wrong types are refused with the key's
full name, and `key=value` overrides from the command line go through the same checks.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dalle_mini_impl.errors import UserError

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """Shape of the VQ-VAE."""

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
    """`vq` (cosine-similarity EMA codebook) or `fsq` (finite scalar quantization)."""
    codebook_size: int = 1024
    """K, number of image ids. With `fsq` it is the product of `fsq_levels`."""
    embed_dim: int = 16
    """D, width of a codebook vector. With `fsq` it is the number of levels."""
    fsq_levels: tuple[int, ...] = (8, 8, 4, 4)
    """Levels of each FSQ dimension; read with `fsq` only."""

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
    """Text id that opens every stream."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the decoder-only transformer."""

    n_layer: int = 8
    """Number of blocks."""
    n_head: int = 8
    """Attention heads per block."""
    n_embd: int = 256
    """C, width; a multiple of `4 * n_head` with `rope`."""
    position: str = "rope"
    """`rope` (rotary; 2-D on image positions) or `learned` (DALL-E's row and column embeddings)."""


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


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next image id is drawn; also the defaults a checkpoint recommends."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest id."""
    top_k: int = 0
    """Keep this many likeliest image ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with at least this probability, in (0, 1]."""
    guidance: float = 3.0
    """Classifier-free guidance scale; 1 switches it off."""


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


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, optionally with Muon on the hidden matrices; warmup, then cosine decay."""

    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    muon_learning_rate: float = 0.0
    """Peak rate of Muon on hidden 2-D matrices; 0 leaves everything to AdamW."""
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
    """Steps between resumable states."""
    sample_every: int = 1000
    """Steps between sample pictures; 0 makes none."""
    tracker: str = "none"
    """`none` or `tensorboard` (extra); JSONL is always written."""
    compile: bool = False
    """Use torch.compile; needs a C++ compiler."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRun:
    """Stage 1: pictures -> image tokenizer."""

    model: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    commitment: float = 0.25
    """Weight of the commitment loss (`vq` only)."""
    edge: float = 0.5
    """Weight of the loss on differences between neighbouring pixels, which keeps outlines sharp."""


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRun:
    """Stage 2: captions -> text tokenizer."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = ""
    """The SentencePiece model file to write."""
    vocab_size: int = 8192
    """Number of text ids, special and byte ids included."""
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
    """Augmented versions of each training picture; validation pictures are encoded plain."""
    batch_size: int = 128
    """Pictures per pass."""
    seed: int = 0
    """Draws the variants."""


@dataclass(frozen=True, kw_only=True)
class TransformerRun:
    """Stage 4: token cache + text tokenizer -> transformer."""

    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Defaults written into the checkpoint."""
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
    bpe_dropout: float = 0.1
    """Chance of skipping a BPE merge in training captions."""
    language: str = "en"
    """Language of the captions used in validation, where pictures have it."""
    reconstructed: float = 0.0
    """Share of pictures seen through the image tokenizer, as the ones to be ranked will be."""


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and `key=value` overrides into a config.

    Args:
        kind: the config class.
        path: the YAML file.
        overrides: such as `run.steps=50`; the value is read as YAML.

    Raises:
        UserError: the file cannot be read, or a key or value does not fit; the message names it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give an existing YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"override {override!r} was given, expected key=value such as run.steps=50")
        _set(values, key.split("."), yaml.safe_load(text), override)
    return from_dict(kind, values, where=str(path))


def from_dict(kind: type[C], values: Any, where: str = "config") -> C:
    """Build a config from nested plain values, strictly.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(hints)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    return kind(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested values that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {key!r} is a single value, it has no keys of its own")
    values[keys[-1]] = value


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise UserError(f"{where}: expected {len(arguments)} values, got {value!r}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_convert(kind, item, where) for kind, item in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3, which has no dot, as a string
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) if origin is None else str(hint)
    raise UserError(f"{where}: expected {name or hint}, got {value!r}")
