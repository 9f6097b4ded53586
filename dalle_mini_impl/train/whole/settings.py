"""The settings of the stages of a whole training: those of the preset, changed as the pictures and the user want.

Later changes win: the preset's files, its rules for the number of pictures, what follows from the pictures, the user's.
"""

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dalle_mini_impl.config.keys import config_sections
from dalle_mini_impl.config.presets import PresetConfig, PresetTable
from dalle_mini_impl.config.shipped import FOLDER
from dalle_mini_impl.config.training import EncodeRun
from dalle_mini_impl.config.yaml_io import build_checked, read_values, to_dict
from dalle_mini_impl.train.shared.start import complete_settings
from dalle_mini_impl.train.stages import WHOLE_STAGES, Stage
from dalle_mini_impl.train.whole.folder import RunFolder
from dalle_mini_impl.train.whole.pictures import PictureFacts
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import find_shipped, replace_file

Settings = dict[str, list[str]]
"""File name of a stage -> `KEY=VALUE` each."""
BASE_IDS = 260
"""Text ids of a tokenizer without any character: special and byte ids."""
TRAINED = ("image_tokenizer", "transformer", "scorer", "prior")
"""File names of the stages that train in steps; not every preset has a prior."""
PATHS = (
    "data.source", "data.store", "out", "model_dir", "cache", "run.model_dir", "run.state_dir",
)  # fmt: skip
"""Settings that follow from the folder."""
PATH_OF_STAGE = dict.fromkeys(("transformer", "scorer", "prior"), ("text_tokenizer",))
"""Further ones, by stage."""
CLOCK = ("run.minutes",)
"""Settings with which a run cannot be resumed."""


def divide_settings(settings: Iterable[str]) -> Settings:
    """The user's settings by stage: `STAGE.KEY=VALUE` is for one, `KEY=VALUE` for each that has this key.

    Raises:
        UserError: one names no setting, or one that follows from the folder or the time.
    """
    divided: Settings = {stage.file_name: [] for stage in WHOLE_STAGES.values()}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise UserError(f"expected KEY=VALUE such as transformer.model.n_layer=6, got {setting!r}; write it so")
        first, _, rest = key.partition(".")
        name = first.replace("-", "_")
        stages = [name] if name in divided and rest else list(divided)
        key = rest if name in divided and rest else key
        having = [stage for stage in stages if has_key(stage, key)]
        if not having:
            raise UserError(
                f"expected a setting of a stage, got {setting.partition('=')[0]!r}; {_closest(stages, key)}"
            )
        for stage in having:
            if key in (*PATHS, *CLOCK, *PATH_OF_STAGE.get(stage, ())):
                raise UserError(
                    f"expected settings of the stages, got {setting}, which follows from SOURCE, --out and --minutes; "
                    f"leave it out"
                )
            divided[stage].append(f"{key}={value}")
    return divided


def has_key(stage: str, key: str) -> bool:
    """Whether a stage has a setting, or one that holds it."""
    return any(f"{key}.".startswith(f"{name}.") for name in keys_of(stage))


@functools.cache
def keys_of(stage: str) -> tuple[str, ...]:
    """All settings of a stage, with dots."""
    return tuple(key.name for section in config_sections(stage_of(stage).config) for key in section.keys)


def stage_of(file_name: str) -> Stage:
    """The stage whose files have that name."""
    return WHOLE_STAGES[file_name.replace("_", "-")]


def preset_settings(preset: PresetConfig, pictures: int) -> Settings:
    """What a preset sets for a number of training pictures."""
    chosen = [
        setting
        for rule in preset.sizes
        if rule.least <= pictures and (pictures <= rule.most or not rule.most)
        for setting in rule.settings
    ]
    return divide_settings(chosen)


def picture_settings(folder: RunFolder, source: str, data: list[str], language: str) -> Settings:
    """What follows from the folder and the pictures.

    Args:
        folder: of the run.
        source: of the pictures.
        data: settings `data.KEY=VALUE` that were chosen for this source.
        language: of most captions; empty if it is unknown.
    """
    data = [*data, f"data.source={json.dumps(source)}", f"data.store={json.dumps(str(folder.store))}"]
    model, words = json.dumps(str(folder.model)), json.dumps(str(folder.text_tokenizer))
    runs = {
        name: [f"run.model_dir={model}", f"run.state_dir={json.dumps(str(folder.path / name))}"] for name in TRAINED
    }
    validated = [f"validation_language={json.dumps(language)}"] if language else []
    return {
        "text_tokenizer": [*data, f"out={words}"],
        "image_tokenizer": [*data, *runs["image_tokenizer"]],
        "encode": [*data, f"model_dir={model}", f"out={json.dumps(str(folder.ids))}"],
        "transformer": [f"cache={json.dumps(str(folder.ids))}", f"text_tokenizer={words}", *runs["transformer"]],
        **{name: [*data, f"text_tokenizer={words}", *runs[name], *validated] for name in ("scorer", "prior")},
    }


def least_vocab(facts: PictureFacts, table: PresetTable) -> int:
    """Text ids that captions with so many distinct characters need at the least."""
    return BASE_IDS + math.ceil(table.vocab_per_character * facts.characters)


def load_settings(
    preset: PresetConfig, *changes: Settings, start_from: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The config of each stage, by file name.

    Args:
        preset: its folder has a file for each stage. One for a prior is used only if it is there, and the transformer
            takes image embeddings.
        *changes: settings that differ; later ones win.
        start_from: stage -> checkpoint whose part it starts from, and whose settings of the model it takes over.

    Raises:
        UserError: a file is missing, or a setting is wrong.
    """
    home = Path(preset.name) if "/" in preset.name else Path(FOLDER) / preset.name
    configs: dict[str, Any] = {}
    for stage in WHOLE_STAGES.values():
        path = find_shipped(home / f"{stage.file_name}.yaml")
        if stage.file_name == "prior" and not (path.is_file() and configs["transformer"].image_embed.positions):
            continue
        values = read_values(
            stage.config, path, [setting for change in changes for setting in change.get(stage.file_name, ())]
        )
        origin = (start_from or {}).get(stage.file_name)
        if origin:
            values = {name: value for name, value in values.items() if name not in ("model", "text_length")}
            values["start_from"] = origin
        config: Any = build_checked(stage.config, values, str(path))
        configs[stage.file_name] = complete_settings(config, values) if origin else config
    _check_grid(configs["image_tokenizer"].model.grid, configs["transformer"].model.patch)
    _check_variants(configs["encode"], configs["transformer"].augmented_share)
    return configs


def _check_grid(grid: tuple[int, int], patch: int) -> None:
    """Refuse a token grid that is not of whole patches, which the fourth stage would find out.

    Raises:
        UserError: naming both.
    """
    if any(side % patch for side in grid):
        raise UserError(
            f"expected a token grid of whole patches of {patch} × {patch} ids, got {grid[0]} × {grid[1]} ids; change "
            f"image_tokenizer.model.image_size, or set transformer.model.patch=1"
        )


def _check_variants(encode: EncodeRun, augmented_share: float) -> None:
    """Refuse variants of which the transformer cannot be told which are augmented.

    Raises:
        UserError: naming the setting.
    """
    if augmented_share and not encode.first_unchanged:
        raise UserError(
            f"expected encode.first_unchanged=true with transformer.augmented_share {augmented_share:g}, got false; "
            f"set it"
        )
    if encode.first_unchanged and encode.variants < 2:
        raise UserError(
            f"expected encode.variants of 2 or more with encode.first_unchanged, got {encode.variants}; set it"
        )


def write_config(path: Path, stage: str, config: Any) -> None:
    """Write a stage's config, without the settings that have their default.

    Raises:
        UserError: the file cannot be written.
    """
    number = [known.file_name for known in WHOLE_STAGES.values()].index(stage) + 1
    lines = [
        f"# Stage {number} as dalle train all planned it. The same by hand:",
        f"# dalle train {stage_of(stage).name} --config {path}",
    ]
    text = yaml.safe_dump(without_defaults(config), sort_keys=False, allow_unicode=True, width=120)
    with replace_file(path) as temporary:
        temporary.write_text("\n".join([*lines, text]), encoding="utf-8")


def without_defaults(config: Any) -> dict[str, Any]:
    """The settings of a config that differ from the defaults, as plain nested values."""
    values = to_dict(config)
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if inner := without_defaults(value):
                changed[field.name] = inner
        elif (
            (field.default is not dataclasses.MISSING and value != field.default)
            or (field.default_factory is not dataclasses.MISSING and value != field.default_factory())
            or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        ):
            changed[field.name] = values[field.name]
    return changed


def _closest(stages: list[str], key: str) -> str:
    names = sorted({name for stage in stages for name in keys_of(stage)})
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "dalle train STAGE --help lists them"
