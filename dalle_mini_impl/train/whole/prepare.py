"""What comes before the stages: the record of the run, a first look at the pictures, their store, the settings."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from dalle_mini_impl.config.data import DataConfig, size_settings
from dalle_mini_impl.config.presets import PresetConfig, PresetTable, find_preset, suited_presets
from dalle_mini_impl.data.picture_store import open_store, source_changes
from dalle_mini_impl.data.store_builder import build_store
from dalle_mini_impl.evaluate.reuse import image_tokenizer_fit
from dalle_mini_impl.text.sentencepiece_tokenizer import TextTokenizer
from dalle_mini_impl.train.whole.advice import FEW_HELD_OUT
from dalle_mini_impl.train.whole.folder import Record, Request, RunFolder
from dalle_mini_impl.train.whole.origin import Origin, find_origin
from dalle_mini_impl.train.whole.pictures import FirstLook, PictureFacts, facts_of, look_at
from dalle_mini_impl.train.whole.settings import (
    TRAINED,
    Settings,
    divide_settings,
    least_vocab,
    load_settings,
    picture_settings,
    preset_settings,
)
from dalle_mini_impl.util.errors import UserError

EXAMINED_CAPTIONS = 5000
"""Captions whose lengths are counted, evenly spaced over all."""


@dataclass(frozen=True)
class Composer:
    """Composes the settings of the stages for a preset."""

    folder: RunFolder
    request: Request
    table: PresetTable
    data: dict[str, Any]
    """Settings of the `data` section that were chosen for the source."""
    origin: Origin | None = None
    """The checkpoint to start from."""

    @property
    def user(self) -> Settings:
        """The user's settings by stage."""
        return divide_settings(self.request.settings)

    @property
    def fixed(self) -> dict[str, frozenset[str]]:
        """Keys of the user's settings by stage."""
        return {
            stage: frozenset(setting.partition("=")[0] for setting in settings) for stage, settings in self.user.items()
        }

    @property
    def replaced_sizes(self) -> Settings:
        """Settings that clear the sizes of square pictures in a preset where the user gives height and width."""
        fixed = self.fixed["image_tokenizer"]
        own_pictures = fixed & {"model.height", "model.width"}
        own_store = fixed & {"data.store_height", "data.store_width"}
        return divide_settings(
            [
                *(["image_tokenizer.model.image_size=0"] if own_pictures else []),
                *(["data.store_size=0"] if own_pictures or own_store else []),
            ]
        )

    def compose(self, preset: PresetConfig, facts: PictureFacts | None = None, processes: int = 1) -> dict[str, Any]:
        """The config of each stage, by file name, before the time has its say.

        Args:
            preset: the base.
            facts: about the pictures; None before they are decoded.
            processes: that train, each a part of a batch.

        Raises:
            UserError: a setting is wrong.
        """
        data = [f"data.{key}={value}" for key, value in self.data.items()]
        settings = [
            preset_settings(preset, facts.train if facts else 0),
            self.replaced_sizes,
            picture_settings(self.folder, self.request.source, data, facts.first_language if facts else ""),
        ]
        start_from: dict[str, str] = {}
        if self.origin:
            self.origin.check_settings(self.user)
            settings.append(divide_settings(self.table.start_from))
            start_from = dict.fromkeys(self.origin.parts, self.origin.name)
        configs = load_settings(preset, *settings, self.user, start_from=start_from)
        if facts or self.origin:
            settings.append(self._fitting(configs, facts))
            configs = load_settings(preset, *settings, self.user, start_from=start_from)
        self._check_used(configs)
        trained = [stage for stage in TRAINED if stage in configs]
        for stage in trained:
            run = configs[stage].run
            parts = processes * run.accumulation
            if "run.batch_size" not in self.fixed[stage]:
                configs[stage] = replace(
                    configs[stage], run=replace(run, batch_size=math.ceil(run.batch_size / parts) * parts)
                )
        sampling, ids = configs["transformer"].sampling, configs["image_tokenizer"].model.codebook_size
        if sampling.top_k > ids and "sampling.top_k" not in self.fixed["transformer"]:
            configs["transformer"] = replace(configs["transformer"], sampling=replace(sampling, top_k=ids))
        if configs["transformer"].image_embed.positions and not configs["encode"].image_embed:
            raise UserError(
                f"expected encode.image_embed=true with transformer.image_embed.positions "
                f"{configs['transformer'].image_embed.positions}, got false; set both"
            )
        precisions = {configs[stage].run.precision for stage in trained} | {configs["encode"].precision}
        if len(precisions) > 1:
            raise UserError(
                f"expected one precision for all stages, got {' and '.join(sorted(precisions))}; set both "
                f"run.precision and encode.precision"
            )
        return configs

    def _fitting(self, configs: dict[str, Any], facts: PictureFacts | None) -> Settings:
        """What follows from captions, scenes, and the picture size of a checkpoint that is started from."""
        own_size = configs["image_tokenizer"].model.image_size
        size = [f"model.image_size={own_size}"] if self.origin and own_size else []
        if facts is None:
            return {"scorer": size}
        vocab = max(configs["text_tokenizer"].vocab_size, least_vocab(facts, self.table))
        length = text_length(self.folder, configs["scorer"].data, self.table)
        scenes = self._scenes(configs)
        with_end = [f"model.text_length={length + 1}"] if length else []  # with the end-of-text id
        return {
            "text_tokenizer": [f"vocab_size={vocab}"],
            "image_tokenizer": scenes["image_tokenizer"],
            "transformer": [*scenes["transformer"], *([f"text_length={length}"] if length else [])],
            "scorer": [*size, *scenes["scorer"], *with_end],
            "prior": [*scenes["prior"], *with_end],
        }

    def _check_used(self, configs: dict[str, Any]) -> None:
        """Refuse settings of the user for stages that are not run.

        Raises:
            UserError: naming one.
        """
        for setting in self.request.settings:
            of_stages = divide_settings([setting])
            if not any(of_stages[stage] for stage in configs):
                raise UserError(
                    f"expected settings of {', '.join(configs)}, which are trained here, got {setting}; leave it out, "
                    f"or train a prior by a preset that has one and transformer.image_embed.positions"
                )

    def _scenes(self, configs: dict[str, Any]) -> Settings:
        """Where a preset has scenes, they are composed of the run's own pictures, unless the user names others."""
        store = f"scenes.store={json.dumps(str(self.folder.store))}"
        return {
            stage: [store]
            if stage in configs and configs[stage].scenes.store and "scenes.store" not in self.fixed[stage]
            else []
            for stage in TRAINED
        }


def text_length(folder: RunFolder, data: DataConfig, table: PresetTable) -> int:
    """Text positions that nearly all captions fit into; 0 before there is a text tokenizer."""
    if not folder.text_tokenizer.is_file():
        return 0
    tokenizer = TextTokenizer(folder.text_tokenizer)
    captions = sorted({caption.text for entry in open_store(data, "train").entries for caption in entry.captions})
    examined = captions[:: max(1, len(captions) // EXAMINED_CAPTIONS)]
    lengths = sorted(len(tokenizer.encode(caption)) for caption in examined)
    longest = lengths[min(len(lengths) - 1, int(table.caption_share * len(lengths)))]
    fewest, most = table.text_lengths
    return max(fewest, min(most, math.ceil(longest / 4) * 4))


def check_folder(source: str, out: Path) -> None:
    """Refuse a folder within the pictures, among which what is written there would count.

    Raises:
        UserError: it is one.
    """
    pictures = Path(source).expanduser()
    if pictures.is_dir() and out.resolve().is_relative_to(pictures.resolve()):
        raise UserError(f"expected --out outside of {source}, whose pictures are read, got {out}; name another folder")


def open_record(folder: RunFolder, request: Request, table: PresetTable, overwrite: bool) -> Record:
    """The record of the run that the folder holds, or of a new one.

    Raises:
        UserError: the folder holds something else, or a run that was begun with another request; or the pictures of a
            new run cannot be read.
    """
    record = None if overwrite else folder.load()
    if record is not None:
        if changed := describe_difference(record.asked, request):
            raise UserError(
                f"expected the command with which {folder.path} was begun, got {changed}; repeat that one to go on, or "
                f"add --overwrite to train anew"
            )
        return record
    look = look_at(request.source, table.looked_at)
    print("\n".join(look.lines))
    data = choose_data_settings(Composer(folder, request, table, {}, find_origin(request.start_from)), look)
    folder.set_aside()
    record = Record(
        request=asdict(request), data={"lines": look.lines, "side": look.side, "total": look.total, "settings": data}
    )
    folder.save(record)
    return record


def describe_difference(before: Request, now: Request) -> str:
    """What differs between two requests; empty if nothing does."""
    names = {"source": "SOURCE", "start_from": "--from", "settings": "settings"}
    return ", ".join(
        f"{names.get(field.name, f'--{field.name}')} {_shown(getattr(now, field.name))} instead of "
        f"{_shown(getattr(before, field.name))}"
        for field in fields(Request)
        if getattr(before, field.name) != getattr(now, field.name)
    )


def choose_data_settings(composer: Composer, look: FirstLook) -> dict[str, Any]:
    """Settings of the `data` section: how many pictures to use and to hold out, and how large to store them."""
    request, table = composer.request, composer.table
    largest = presets_for(request, table, look.total, look.side)[0]
    config = composer.compose(largest)["image_tokenizer"]
    readable = int(table.reading * 60 * request.minutes / look.seconds)
    every = max(1, math.ceil(look.total / max(readable, table.looked_at)))
    used = look.total // every
    return {
        **size_settings(config.data.frame_for(config.model.size)),
        "validation": round(min(table.validation, table.validation_pictures / used), 6),
        **({"every": every} if every > 1 else {}),
    }


def presets_for(request: Request, table: PresetTable, pictures: int, side: float) -> list[PresetConfig]:
    """Presets to try, the first one first."""
    if request.preset:
        return [find_preset(table, request.preset)]
    factor = table.accelerator_factor if torch.accelerator.is_available() else 1
    return suited_presets(table, request.minutes * factor, pictures, side)


def prepare_pictures(composer: Composer, record: Record) -> PictureFacts:
    """Decode the pictures, unless that is done.

    Raises:
        UserError: they have changed since they were decoded.
    """
    folder, request = composer.folder, composer.request
    preset = presets_for(request, composer.table, record.data["total"], record.data["side"])[0]
    config = composer.compose(preset)["image_tokenizer"].data
    if not Path(config.store).exists():
        if config.every > 1:
            print(
                f"there is time to read one of {config.every} pictures: {record.data['total'] // config.every:,} of "
                f"{record.data['total']:,} are used; more --minutes use more"
            )
        with folder.timed(record, "pictures"):
            build_store(config)
    elif changes := source_changes(folder.store, request.source):
        raise UserError(
            f"expected {request.source} to be as it was when {folder.path} was begun, got {changes}; put it back to go "
            f"on, or add --overwrite to train anew"
        )
    facts = facts_of(config)
    print(f"{facts.train:,} pictures to train on, {facts.held_out:,} held out to measure with")
    if facts.held_out < FEW_HELD_OUT:
        print("that is too few to judge by what was not seen: the report shows above all what was learned by heart")
    if composer.origin and "reuse" not in record.data:
        fit = image_tokenizer_fit(composer.origin.name, config)
        print(f"image tokenizer of {composer.origin.name} on {fit}")
        record.data |= {"reuse": fit.reuse, "fit": str(fit)}
        folder.save(record)
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
