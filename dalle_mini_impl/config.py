"""Configs: frozen dataclasses, read strictly from YAML. Imports no torch.

A file says only what differs from the defaults. Unknown keys and wrong types are refused with the key's
full name, and `key=value` overrides from the command line go through the same checks.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.files import shipped

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


class _Loader(yaml.SafeLoader):
    """YAML in which only `true` and `false` are booleans: the language code `no` stays a word (as YAML 1.2 has it)."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text; raises `yaml.YAMLError` if it is none."""
    return yaml.load(text, _Loader)


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and `key=value` overrides into a config.

    Args:
        kind: the config class.
        path: the YAML file; `configs/…` also finds those that ship with the package.
        overrides: such as `run.steps=50`; the value is read as YAML.

    Raises:
        UserError: the file cannot be read, or a key or value does not fit; the message names it.
    """
    try:
        values = read_yaml(shipped(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {values!r}")
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise UserError(f"override {override!r} was given, expected key=value such as run.steps=50")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not YAML: {' '.join(str(error).split())}") from error
        _set(values, key.split("."), value, override)
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
    needed = [field.name for field in dataclasses.fields(kind)  # type: ignore[arg-type]
              if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]  # fmt: skip
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where}: {missing[0]!r} is missing")
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
