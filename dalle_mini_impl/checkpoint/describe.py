"""What a checkpoint consists of and says of itself, as plain values and in words."""

from pathlib import Path
from typing import Any

from dalle_mini_impl.checkpoint.parts import PART_FILES, PARTS, fingerprint, load_text_tokenizer, read_part
from dalle_mini_impl.checkpoint.settings import SETTINGS, load_settings
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZERS
from dalle_mini_impl.config.model import ImageTokenizerConfig, ScorerConfig, StreamConfig, TransformerConfig
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.util.errors import UserError


def describe(folder: Path) -> dict[str, Any]:
    """The parts of a checkpoint folder, as far as it has them yet, and what its `config.yaml` says.

    Returns:
        By name what each part is: `identity`, `megabytes`, and of all but the text tokenizer `numbers` (how many
        its weights are), `trained_with` and `config`. Beside them `checkpoint` (the hash of all), `sampling`, `about`.

    Raises:
        UserError: there is no part, or one is damaged.
    """
    facts: dict[str, Any] = {}
    if texts := [folder / name for name in TEXT_TOKENIZERS if (folder / name).is_file()]:
        tokenizer = load_text_tokenizer(folder)
        facts["checkpoint"] = fingerprint(folder)
        facts["text_tokenizer"] = {
            "identity": tokenizer.identity, "vocab_size": tokenizer.vocab_size,
            "megabytes": _megabytes(texts[0]),
        }  # fmt: skip
    for name in PARTS:
        if (folder / f"{name}.safetensors").is_file():
            part = read_part(folder, name)
            facts[name] = {
                "identity": part.identity, "numbers": sum(tensor.numel() for tensor in part.tensors.values()),
                "megabytes": _megabytes(part.path), "trained_with": part.trained_with, "config": part.config,
            }  # fmt: skip
    if (folder / SETTINGS).is_file():
        settings = load_settings(folder)
        facts |= {"sampling": to_dict(settings.sampling), "about": to_dict(settings.about)}
    elif not facts:
        raise UserError(
            f"{folder} has no part of a model; expected {', '.join(PART_FILES)} or some of them, "
            f"made by training or dalle import"
        )
    return facts


def describe_in_words(facts: dict[str, Any]) -> list[str]:
    """Lines about what `describe` found."""
    parts = [name for name in ("text_tokenizer", *PARTS) if name in facts]
    lines = [f"checkpoint: {facts['checkpoint']}"] if "checkpoint" in facts else []
    lines += [f"size: {sum(facts[name]['megabytes'] for name in parts):.1f} MB"]
    lines += [f"{name.replace('_', ' ')}: {_part(name, facts[name])}" for name in parts]
    if "sampling" in facts:
        lines.append("sampling: " + ", ".join(f"{name} {value}" for name, value in facts["sampling"].items()))
        lines += _about(facts["about"], facts.get("checkpoint"))
    return lines


def _part(name: str, facts: dict[str, Any]) -> str:
    words = {"text_tokenizer": _text, "image_tokenizer": _image, "transformer": _transformer, "scorer": _scorer}
    size = f"{facts['megabytes']} MB, identity {facts['identity']}"
    if "numbers" in facts:
        size = f"{facts['numbers']:,} weights, {size}"
    others = [f"{other.replace('_', ' ')} {identity}" for other, identity in facts.get("trained_with", {}).items()]
    return f"{words[name](facts)}; {size}" + (f"; trained with {' and '.join(others)}" if others else "")


def _text(facts: dict[str, Any]) -> str:
    return f"{facts['vocab_size']:,} ids"


def _image(facts: dict[str, Any]) -> str:
    config = from_dict(ImageTokenizerConfig, facts["config"], "image_tokenizer")
    kind = config.quantizer if config.network == "vqvae" else f"{config.network}, {config.quantizer}"
    size, (rows, columns) = config.image_size, config.grid
    return f"{size}×{size} pixels <-> {rows}×{columns} ids of {config.codebook_size:,} ({kind})"


def _transformer(facts: dict[str, Any]) -> str:
    config = from_dict(TransformerConfig, facts["config"].get("transformer"), "transformer")
    stream = from_dict(StreamConfig, facts["config"].get("stream"), "transformer: stream")
    image_length = stream.grid[0] * stream.grid[1]
    bos = "1 + " * (stream.bos_id >= 0)
    masks = f"; attention {', '.join(config.attention)}" if config.attention != ("full",) else ""
    last = f", at last {config.last_attention}" * bool(config.last_attention)
    return (
        f"{config.n_layer} layers of width {config.n_embd} with {config.n_head} heads over {bos}"
        f"{stream.text_length} text + {image_length} image ids{masks}{last}"
    )


def _scorer(facts: dict[str, Any]) -> str:
    config = from_dict(ScorerConfig, facts["config"], "scorer")
    return (
        f"CLIP of width {config.n_embd}, {config.image_layers} layers over {config.image_size}×{config.image_size} "
        f"pixels and {config.text_layers} over {config.text_length} text ids"
    )


def _about(about: dict[str, Any], checkpoint: str | None) -> list[str]:
    lines = [f"languages: {', '.join(about['languages']) or 'not said'}", f"licence: {about['licence'] or 'not said'}"]
    lines += _list("trained on", about["data"])
    quality = [f"{figure['what']}: {figure['value']:g} ({figure['command']})" for figure in about["quality"]]
    of_another = about["measured_on"] != checkpoint
    other = f" on another checkpoint ({about['measured_on'] or 'not said which'})" if quality and of_another else ""
    return lines + _list(f"measured{other}", quality)


def _list(title: str, items: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {item}" for item in items)] if items else [f"{title}: not said"]


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1)
