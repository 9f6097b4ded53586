"""A checkpoint's `config.yaml`: recommended sampling settings, and languages, licence, data and measured quality."""

from dataclasses import replace
from pathlib import Path

import yaml

from dalle_mini_impl.config.checkpoint import AboutConfig, CheckpointConfig
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.config.yaml_io import from_dict, read_yaml_file, to_dict
from dalle_mini_impl.util.files import replace_file

SETTINGS_FILE = "config.yaml"


def save_settings(model_dir: str | Path, sampling: SamplingConfig, about: AboutConfig | None = None) -> None:
    """Write `config.yaml` of a checkpoint folder; the folder's name becomes the model's name."""
    config = CheckpointConfig(name=Path(model_dir).name, sampling=sampling, about=about or AboutConfig())
    _write(Path(model_dir), config)


def save_sampling(model_dir: str | Path, sampling: SamplingConfig) -> Path:
    """Replace the recommended sampling settings in `config.yaml` of a checkpoint folder, and nothing else.

    Returns:
        The file.

    Raises:
        UserError: it is missing or damaged, or cannot be written.
    """
    folder = Path(model_dir)
    _write(folder, replace(load_settings(folder), sampling=sampling))
    return folder / SETTINGS_FILE


def load_settings(folder: Path) -> CheckpointConfig:
    """Read `config.yaml` of a checkpoint folder.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / SETTINGS_FILE
    values = read_yaml_file(path, "settings", "copy the file again, or train the transformer")
    return from_dict(CheckpointConfig, values, str(path))


def _write(folder: Path, config: CheckpointConfig) -> None:
    with replace_file(folder / SETTINGS_FILE) as temporary:
        temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
