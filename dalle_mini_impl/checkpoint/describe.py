"""What a checkpoint consists of and says about itself, as plain values and as lines of text."""

import os
import warnings
from pathlib import Path
from typing import Any

from dalle_mini_impl.checkpoint.parts import IMAGE_IDS, PART_FILES, PARTS, UNKNOWN_IDENTITY, fingerprint, read_part
from dalle_mini_impl.checkpoint.settings import SETTINGS_FILE, load_settings
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILES, read_text_tokenizer
from dalle_mini_impl.config.diffusion import DiffusionDecoderConfig
from dalle_mini_impl.config.model import (
    ImageTokenizerConfig,
    PriorConfig,
    ScorerConfig,
    StreamConfig,
    TransformerConfig,
)
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file


def checkpoint_info(folder: Path) -> dict[str, Any]:
    """Describe the parts that a checkpoint folder has so far, and the content of its `config.yaml`.

    Returns:
        For each part by name: `identity`, `megabytes`, and for all but the text tokenizer `parameters` (their number),
        `trained_with` and `config`, and `mismatched`, if it was trained with another part than the one beside it: the
        names of such parts. Beside them `checkpoint` (hash of the whole), `sampling` and `about`.

    Raises:
        UserError: there is no part, or one is damaged.
    """
    info: dict[str, Any] = {}
    if text_files := [folder / name for name in TEXT_TOKENIZER_FILES if (folder / name).is_file()]:
        tokenizer = read_text_tokenizer(folder)
        info["checkpoint"] = fingerprint(folder)
        info["text_tokenizer"] = {
            "identity": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "megabytes": _megabytes(text_files[0]),
        }
    for name in PARTS:
        if os.path.lexists(folder / f"{name}.safetensors"):
            part = read_part(folder, name)
            info[name] = {
                "identity": part.identity,
                "parameters": sum(tensor.numel() for tensor in part.tensors.values()),
                "megabytes": _megabytes(part.path),
                "trained_with": part.trained_with,
                "config": part.config,
            }
    for name in PARTS:
        trained_with = info.get(name, {}).get("trained_with", {})
        if others := [other for other in trained_with if other in info and not _fits(info[other], trained_with[other])]:
            info[name]["mismatched"] = others
    if is_file(folder / SETTINGS_FILE):
        settings = load_settings(folder)
        info |= {"sampling": to_dict(settings.sampling), "about": to_dict(settings.about)}
    elif not info:
        raise UserError(
            f"{folder} has no part of a model; expected {', '.join(PART_FILES)} or some of them; "
            f"make them by training or dalle import"
        )
    return info


def info_lines(info: dict[str, Any]) -> list[str]:
    """Put the values of `checkpoint_info` into lines of text."""
    parts = [name for name in ("text_tokenizer", *PARTS) if name in info]
    lines = [f"checkpoint: {info['checkpoint']}"] if "checkpoint" in info else []
    lines += [f"size: {sum(info[name]['megabytes'] for name in parts):.1f} MB"]
    lines += [f"{name.replace('_', ' ')}: {_part_line(name, info[name])}" for name in parts]
    if "sampling" in info:
        lines.append("sampling: " + ", ".join(f"{name} {value}" for name, value in info["sampling"].items()))
        lines += _about_lines(info["about"], info.get("checkpoint"))
    return lines


def _part_line(name: str, part: dict[str, Any]) -> str:
    shape = {
        "text_tokenizer": _text_tokenizer_shape,
        "image_tokenizer": _image_tokenizer_shape,
        "transformer": _transformer_shape,
        "scorer": _scorer_shape,
        "prior": _prior_shape,
        "diffusion_decoder": _diffusion_shape,
        "upsampler": _diffusion_shape,
    }[name]
    size = f"{part['megabytes']} MB, identity {part['identity']}"
    if "numbers" in part:
        warnings.warn("'numbers' in a checkpoint's JSON is now called 'parameters'; rename it", stacklevel=3)
        part = {"parameters": part["numbers"], **part}
    if "parameters" in part:
        size = f"{part['parameters']:,} weights, {size}"
    warning = ", not the one here: the two cannot be used together"
    origin = part.get("trained_with", {}).get("start_from")
    size += f"; started from {name.replace('_', ' ')} {origin}" if origin else ""
    ids = part.get("trained_with", {}).get(IMAGE_IDS)
    size += f", with another decoder only: the image ids are those of {ids}" if ids else ""
    trained_with = [
        f"{other.replace('_', ' ')} {identity}{warning if other in part.get('mismatched', ()) else ''}"
        for other, identity in part.get("trained_with", {}).items()
        if other not in ("start_from", IMAGE_IDS)
    ]
    return f"{shape(part)}; {size}" + (f"; trained with {' and '.join(trained_with)}" if trained_with else "")


def _fits(part: dict[str, Any], identity: str) -> bool:
    return identity in (part["identity"], part.get("trained_with", {}).get(IMAGE_IDS), UNKNOWN_IDENTITY)


def _text_tokenizer_shape(part: dict[str, Any]) -> str:
    return f"{part['vocab_size']:,} ids"


def _image_tokenizer_shape(part: dict[str, Any]) -> str:
    config = from_dict(ImageTokenizerConfig, part["config"], "image_tokenizer")
    kind = config.quantizer if config.network == "vqvae" else f"{config.network}, {config.quantizer}"
    (height, width), (rows, columns) = config.size, config.grid
    return f"{height}×{width} pixels <-> {rows}×{columns} ids of {config.codebook_size:,} ({kind})"


def _transformer_shape(part: dict[str, Any]) -> str:
    config = from_dict(TransformerConfig, part["config"].get("transformer"), "transformer")
    stream = from_dict(StreamConfig, part["config"].get("stream"), "transformer: stream")
    image_length = stream.grid[0] * stream.grid[1]
    embed = f"an image embedding in {stream.embed_positions} positions + " if stream.embed_positions else ""
    bos = "1 + " if stream.bos_id >= 0 else ""
    masks = f"; attention {', '.join(config.attention_masks)}" if config.attention_masks != ("full",) else ""
    last = f", at last {config.last_attention_mask}" if config.last_attention_mask else ""
    return (
        f"{config.n_layer} layers of width {config.n_embd} with {config.n_head} heads over {embed}{bos}"
        f"{stream.text_length} text + {image_length} image ids{masks}{last}"
    )


def _scorer_shape(part: dict[str, Any]) -> str:
    config = from_dict(ScorerConfig, part["config"], "scorer")
    return (
        f"CLIP of width {config.n_embd}, {config.image_layers} layers over {config.image_size}×{config.image_size} "
        f"pixels and {config.text_layers} over {config.text_length} text ids"
    )


def _prior_shape(part: dict[str, Any]) -> str:
    config = from_dict(PriorConfig, part["config"].get("prior"), "prior")
    quantised = f" and {config.components} components of {config.buckets} buckets" if config.kind == "ar" else ""
    return (
        f"{config.kind} prior of {config.n_layer} layers of width {config.n_embd} with {config.n_head} heads over "
        f"{config.text_length} text ids{quantised}"
    )


def _diffusion_shape(part: dict[str, Any]) -> str:
    config = from_dict(DiffusionDecoderConfig, part["config"].get("decoder"), "decoder")
    widths = f"U-Net of widths {', '.join(map(str, config.channels))}"
    if config.kind == "upsampler":
        return f"{widths} that enlarges pictures of {config.low_size} pixels to {config.image_size}"
    what = "codebook vectors" if config.space == "latents" else f"{config.image_size}×{config.image_size} pixels"
    captions = f" and {config.text_length} text ids" if config.text_length else ""
    return f"{widths} over {what}, given an image embedding{captions}"


def _about_lines(about: dict[str, Any], checkpoint: str | None) -> list[str]:
    quality = [f"{figure['what']}: {figure['value']:g} ({figure['command']})" for figure in about["quality"]]
    elsewhere = ""
    if quality and about["measured_on"] != checkpoint:
        elsewhere = f" on another checkpoint ({about['measured_on'] or 'not said which'})"
    return [
        f"languages: {', '.join(about['languages']) or 'not said'}",
        f"licence: {about['licence'] or 'not said'}",
        *_list_lines("trained on", about["data"]),
        *_list_lines(f"measured{elsewhere}", quality),
    ]


def _list_lines(title: str, items: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {item}" for item in items)] if items else [f"{title}: not said"]


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1)
