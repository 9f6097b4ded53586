"""Training that starts from the weights of a checkpoint (`start_from`) instead of random ones."""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.find import find_checkpoint
from dalle_mini_impl.checkpoint.parts import IMAGE_IDS, check_trained_with, copy_part, load_module, read_part
from dalle_mini_impl.checkpoint.settings import SETTINGS_FILE, load_settings
from dalle_mini_impl.checkpoint.text_tokenizer import TEXT_TOKENIZER_FILE, read_text_tokenizer
from dalle_mini_impl.config.model import ImageTokenizerConfig, ScorerConfig, StreamConfig
from dalle_mini_impl.config.training import ImageTokenizerRun, ScorerRun, TransformerRun
from dalle_mini_impl.config.yaml_io import from_dict, to_dict
from dalle_mini_impl.model.build import build_clip, load_transformer
from dalle_mini_impl.model.clip import CLIP
from dalle_mini_impl.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from dalle_mini_impl.model.patches import PatchTransformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.model.vqvae import enlarged_weights, stem_factor
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer, matching_ids
from dalle_mini_impl.train.shared.run_record import RunRecord
from dalle_mini_impl.train.shared.state import saved_record
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import is_file

AnyRun = ImageTokenizerRun | TransformerRun | ScorerRun
ORIGIN = "start_from"
"""Name under which the identity of the part that a training started from is kept: in `trained_with` of the part that it
makes, and in the record of its states."""
PARTS = {ImageTokenizerRun: "image_tokenizer", TransformerRun: "transformer", ScorerRun: "scorer"}
"""The part that a config's stage trains."""
FREE_SETTINGS = (
    "image_tokenizer.image_size", "image_tokenizer.height", "image_tokenizer.width", "transformer.tied_head",
)  # fmt: skip
"""Settings in `model` that may differ from the checkpoint's: no weight depends on them, or one follows from another."""
PATCH_SETTINGS = ("transformer.patch", "transformer.depth_layers")
"""Those that may differ if the checkpoint has no patches: their weights are then new."""
SIZE_SETTINGS = ("image_size", "height", "width")
"""Settings in `model` for the size of pictures."""


@dataclass(frozen=True)
class Start:
    """The part whose weights a training starts from."""

    identity: str = ""
    """Identity of the part; empty where a training starts from random weights."""
    folder: Path | None = None
    """The checkpoint; None without one, and in a resumed run, whose state holds all weights."""
    data: tuple[str, ...] = ()
    """What the checkpoint was trained on, a line per source, for the description of the new one."""
    image_ids: str = ""
    """Of an image tokenizer that keeps its ids (`tune.decoder_only`): the identity by which other parts know them."""

    @property
    def identities(self) -> dict[str, str]:
        """What to add to the identities of the parts that a run trains with."""
        identities = {ORIGIN: self.identity, IMAGE_IDS: self.image_ids}
        return {name: identity for name, identity in identities.items() if identity}


def complete_settings(settings: Any, given: dict[str, Any], resume: bool = False) -> Any:
    """Take settings that were not given over from the checkpoint that `start_from` names.

    These are the settings in `model`, and `text_length` of a transformer.

    Args:
        settings: the config of a stage.
        given: the nested values that it was made of.
        resume: take them from the run's saved state, so that the checkpoint is not needed any more.

    Raises:
        UserError: there is no such checkpoint, or it lacks the part.
    """
    record = saved_record(Path(settings.run.state_dir)) if resume and settings.run.state_dir else RunRecord()
    if record.stage:
        model, text_length = record.section("model"), record.settings.get("text_length")
    else:
        model, text_length = _settings_of(find_checkpoint(settings.start_from), PARTS[type(settings)])
    kind = type(settings.model)
    own = given.get("model", {})
    model = to_dict(from_dict(kind, model, settings.start_from))
    if {*SIZE_SETTINGS} & own.keys():  # one way to give the size replaces the other
        model = {name: value for name, value in model.items() if name not in SIZE_SETTINGS}
    model = _overlaid(model, own)
    settings = replace(settings, model=from_dict(kind, model, "model"))
    if isinstance(settings, TransformerRun) and "text_length" not in given and isinstance(text_length, int):
        settings = replace(settings, text_length=text_length)
    return settings


def open_start(config: AnyRun, resume: bool) -> Start:
    """Find the part that a training starts from, and check that the run's settings describe it.

    Args:
        config: settings of the stage.
        resume: whether the run continues; then its saved state knows the part.

    Raises:
        UserError: there is no such part, or a setting in `model` contradicts it.
    """
    if not config.start_from:
        return Start()
    if resume:
        parts = saved_record(Path(config.run.state_dir)).parts
        return Start(parts.get(ORIGIN, ""), None, _start_data(config, None), parts.get(IMAGE_IDS, ""))
    part = PARTS[type(config)]
    folder = find_checkpoint(config.start_from)
    values, _ = _settings_of(folder, part)
    expected = _flat(to_dict(from_dict(type(config.model), values, config.start_from)))
    free = FREE_SETTINGS + (PATCH_SETTINGS if expected.get("patch") == 1 else ())
    for name, got in _flat(to_dict(config.model)).items():
        is_enlarged = name == "factor" and got % max(1, expected[name]) == 0
        if got != expected[name] and not is_enlarged and f"{part}.{name}" not in free:
            raise UserError(
                f"expected model.{name} {expected[name]} as in the {part.replace('_', ' ')} of start_from "
                f"{config.start_from}, got {got}; leave model.{name} out, or start_from"
            )
    if isinstance(config.model, ImageTokenizerConfig) and config.model.network != "vqvae":
        raise UserError(
            f"expected an image tokenizer trained here in start_from {config.start_from}, got network "
            f"{config.model.network}, which can only be imported; name another checkpoint"
        )
    origin = read_part(folder, part, weights=False)
    keeps_ids = isinstance(config, ImageTokenizerRun) and config.tune.decoder_only
    return Start(origin.identity, folder, _start_data(config, folder), origin.image_ids if keeps_ids else "")


def _start_data(config: AnyRun, folder: Path | None) -> tuple[str, ...]:
    """What the checkpoint in a folder was trained on; None for a resumed run, which may have written it down."""
    prefix = f"{config.start_from}: "
    own = Path(config.run.model_dir)
    if folder is None and is_file(own / SETTINGS_FILE):
        return tuple(line for line in load_settings(own).about.data if line.startswith(prefix))
    with contextlib.suppress(UserError):  # it need not describe itself, and may be gone when a run resumes
        return tuple(prefix + line for line in load_settings(folder or find_checkpoint(config.start_from)).about.data)
    return ()


def text_tokenizer_file(config: TransformerRun | ScorerRun, start: Start) -> str | Path:
    """The SentencePiece model of a run: the one that its config names, or else that of the checkpoint it starts from.

    Raises:
        UserError: the checkpoint has an imported text tokenizer, with which nothing can be trained.
    """
    if config.text_tokenizer or not config.start_from:
        return config.text_tokenizer
    folder = start.folder or Path(config.run.model_dir)  # a run that is resumed has copied it
    _trainable_text_tokenizer(folder)
    return folder / TEXT_TOKENIZER_FILE


def add_image_tokenizer(model_dir: str | Path, start: Start) -> None:
    """Copy the image tokenizer of the checkpoint that a run starts from into a checkpoint folder without one.

    Raises:
        UserError: the checkpoint has none either, or the folder cannot be written.
    """
    if start.folder and not os.path.lexists(Path(model_dir) / "image_tokenizer.safetensors"):
        copy_part(start.folder, "image_tokenizer", model_dir)


def load_image_tokenizer_weights(tokenizer: ImageTokenizer, start: Start) -> None:
    """Give an image tokenizer the weights of the one it starts from, if there is one.

    With twice the factor, or more, it has the same ids for pictures that are as many times larger.
    """
    if start.folder:
        old = load_image_tokenizer(start.folder)[0]
        stem = stem_factor(old.config.factor, len(old.config.channels))
        times = tokenizer.config.factor // old.config.factor
        tokenizer.load_state_dict(enlarged_weights(old.state_dict(), stem, times))


def load_transformer_weights(
    transformer: Transformer, stream: Stream, tokenizer: TextTokenizer, config: TransformerRun, start: Start
) -> str:
    """Give a transformer the weights of the one it starts from, if there is one.

    Rows of embedding and head that stand for the same text piece are copied; a piece that the old text tokenizer does
    not have gets the mean of the pieces that spell it. Rows of image ids are copied if the ids mean the same: if the
    image tokenizer is the old one, or was itself trained from it. So is what the positions of an image embedding need
    if there are as many of them and the scorer is the old one. Otherwise they stay as they are. Where patches are new,
    a patch is first seen as the mean of its ids, and its first id predicted as the only one was before. A head that is
    no longer tied, or newly so, begins with the rows of the embedding.

    Args:
        transformer: with the settings of the old one, for `stream`.
        stream: layout of the new stream.
        tokenizer: the new text tokenizer.
        config: settings of the stage; its `run.model_dir` has the new image tokenizer.
        start: where the weights come from.

    Returns:
        A line on what was copied; empty if there is nothing to start from.

    Raises:
        UserError: the checkpoint is incomplete or damaged, has tables of positions that do not fit the stream, or rows
            would be neither copied nor trained.
    """
    if not start.folder:
        return ""
    old, old_config = load_transformer(start.folder)
    old_stream = Stream(old_config)
    old_tokenizer = _trainable_text_tokenizer(start.folder)
    if (old_config.bos_id, old_config.pad_id) != (old_tokenizer.bos_id, -1):
        raise UserError(f"expected a transformer trained here in {start.folder}, got an imported one; name another")
    text = matching_ids(tokenizer, old_tokenizer)
    last = old_config.text_length - 1
    sources = text + [[old_config.text_vocab + min(place, last)] for place in range(stream.config.text_length)]
    image_tokenizer = read_part(Path(config.run.model_dir), "image_tokenizer", weights=False)
    old_image_tokenizer = read_part(start.folder, "image_tokenizer", weights=False)
    same = {image_tokenizer.image_ids, image_tokenizer.trained_with.get(ORIGIN)}
    same_image_ids = not same.isdisjoint({old_image_tokenizer.image_ids, old_image_tokenizer.identity})
    if same_image_ids := same_image_ids and stream.config.image_vocab == old_config.image_vocab:
        sources += [[old_stream.image_offset + number] for number in range(old_config.image_vocab)]
    sources += [[]] * (stream.embed_offset - len(sources))
    same_embed = _same_embeddings(stream, old_config, start.folder, Path(config.run.model_dir))
    if same_embed:
        sources += [[old_stream.embed_offset + number] for number in range(old_config.embed_positions)]
    new = [] if same_image_ids else ["an image tokenizer"]
    new += ["image embeddings"] if stream.config.embed_positions and not same_embed else []
    if config.lora.rank and not config.lora.embeddings and new:
        raise UserError(
            f"expected lora.embeddings with {' and '.join(new)} that {start.folder} was not trained with, got false; "
            f"leave it out, so that their rows are learned"
        )
    added = stream.config.embed_positions - old_config.embed_positions
    left: tuple[str, ...] = () if same_embed else ("image_prefix.project.weight",)
    if isinstance(transformer, PatchTransformer) and not isinstance(old, PatchTransformer):
        transformer.start_as_single_ids()
        left += ("merge.", "depth.")
    _copy_weights(transformer, old, ("embed.weight", "head.weight", "head.bias"), sources, left, added)
    pictures = "kept" if same_image_ids else "learned anew: another image tokenizer made them"
    known = f"{sum(len(ids) == 1 for ids in text)} of {len(text)} text pieces are known"
    embed = f", image embeddings {'kept' if same_embed else 'learned anew'}" if stream.config.embed_positions else ""
    length, old_length = stream.config.text_length, old_config.text_length
    moved = ""
    if length != old_length:
        moved = f", text_length {length} in place of {old_length} moves pictures away from what it knows of captions"
    return f"started from transformer {start.identity}: {known}, image ids are {pictures}{embed}{moved}"


def _same_embeddings(stream: Stream, old: StreamConfig, folder: Path, model_dir: Path) -> bool:
    """Whether a transformer in `folder` has learned from the image embeddings that the new one in `model_dir` gets."""
    if not stream.config.embed_positions or stream.config.embed_positions != old.embed_positions:
        return False
    scorer = read_part(model_dir, "scorer", weights=False).identity
    return read_part(folder, "transformer", weights=False).trained_with.get("scorer") == scorer


def load_scorer_weights(clip: CLIP, tokenizer: TextTokenizer, config: ScorerConfig, start: Start) -> str:
    """Give a scorer the weights of the one it starts from, if there is one, with text pieces as in a transformer.

    Returns:
        A line on what was copied; empty if there is nothing to start from.

    Raises:
        UserError: the checkpoint is incomplete or damaged.
    """
    if not start.folder:
        return ""
    old_tokenizer = _trainable_text_tokenizer(start.folder)
    part = read_part(start.folder, "scorer")
    check_trained_with(part, "text_tokenizer", old_tokenizer.identity)
    vocab, special = old_tokenizer.vocab_size, {"pad_id": old_tokenizer.pad_id, "eos_id": old_tokenizer.eos_id}
    old = load_module(lambda: build_clip(config, vocab, **special), part, "cpu")
    text = matching_ids(tokenizer, old_tokenizer)
    _copy_weights(clip, old, ("text_tower.tokens.weight",), text)
    known = sum(len(ids) == 1 for ids in text)
    return f"started from scorer {start.identity}: {known} of {len(text)} text pieces are known"


@torch.no_grad()
def _copy_weights(
    new: nn.Module,
    old: nn.Module,
    row_names: tuple[str, ...],
    sources: list[list[int]],
    left: tuple[str, ...] = (),
    added: int = 0,
) -> None:
    """Copy all weights but those in `left`.

    Args:
        new: gets them.
        old: has them.
        row_names: weights that are copied row by row.
        sources: for each of their rows, the old rows of which it gets the mean; none for one that stays as it is.
        left: beginnings of the names of weights that stay as they are.
        added: how many positions more the new transformer has for an image embedding.
    """
    weights = old.state_dict()
    if "embed.weight" in weights:  # a head that was tied to it
        weights = {"head.weight": weights["embed.weight"], **weights}
    known = [row for row, ids in enumerate(sources) if ids]
    for name, value in new.state_dict().items():
        if name.startswith(left):
            continue
        if name in row_names:
            value[known] = _mean_rows(weights[name], [sources[row] for row in known])
        elif name.startswith("positions.") and added and len(value) == len(weights[name]) + added:
            rows = min(len(value), len(weights[name]))  # those of an image embedding are the last ones
            value[:rows] = weights[name][:rows]
        elif value.shape != weights[name].shape:
            raise UserError(
                f"expected {name} of shape {tuple(weights[name].shape)} as in start_from, got {tuple(value.shape)}; "
                f"keep picture size, factor and text_length, on which it depends"
            )
        else:
            value.copy_(weights[name])


def _mean_rows(table: Tensor, sources: list[list[int]]) -> Tensor:
    return torch.stack([table[ids].mean(0) if len(ids) != 1 else table[ids[0]] for ids in sources])


def _settings_of(folder: Path, part: str) -> tuple[Any, Any]:
    """The values of `model` of a part, and its `text_length` if it is a transformer."""
    config = read_part(folder, part, weights=False).config
    if part != "transformer":
        return config, None
    stream = config.get("stream")
    return config.get("transformer"), stream.get("text_length") if isinstance(stream, dict) else None


def _trainable_text_tokenizer(folder: Path) -> TextTokenizer:
    tokenizer = read_text_tokenizer(folder)
    if not isinstance(tokenizer, TextTokenizer):
        raise UserError(
            f"expected a checkpoint with {TEXT_TOKENIZER_FILE} for start_from, got an imported text tokenizer in "
            f"{folder}; name a checkpoint trained here"
        )
    return tokenizer


def _overlaid(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Nested values in which those of `others` replace the same keys."""
    inner = {
        key: _overlaid(values[key], value)
        for key, value in others.items()
        if isinstance(value, dict) and isinstance(values.get(key), dict)
    }
    return {**values, **others, **inner}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows
