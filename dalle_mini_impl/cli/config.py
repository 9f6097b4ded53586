"""`dalle config`: the config files that ship with the package."""

import contextlib
from pathlib import Path
from typing import Any

import click
import yaml

from dalle_mini_impl.cli.options import examples
from dalle_mini_impl.config.shipped import configs_folder, copy_configs, find_configs, purpose, shipped_configs
from dalle_mini_impl.config.yaml_io import load, to_dict
from dalle_mini_impl.train.stages import STAGES
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.tables import aligned_table


@click.group()
def config() -> None:
    """List, print and copy the configs that ship with the package.

    \b
    Example:
      dalle config copy small my_configs
      dalle train text-tokenizer --config my_configs/text_tokenizer.yaml data.source=my_pictures
    """


@config.command("list", epilog=examples("dalle config list"))
def list_command() -> None:
    """Print the name of each shipped config, and what it is for."""
    stages = [stage.file_name for stage in STAGES.values()]
    configs = shipped_configs()
    # Files of one folder in the order in which the stages are run.
    names = sorted(configs, key=lambda name: stages.index(configs[name].stem) if configs[name].stem in stages else -1)
    names.sort(key=lambda name: ("/" not in name, name.rpartition("/")[0]))
    click.echo(aligned_table([(name, purpose(configs[name])) for name in names]))
    click.echo(f"\nAll lie in {configs_folder()}; dalle config show NAME prints one.")


@config.command(epilog=examples("dalle config show emoji/transformer --all"))
@click.argument("name")
@click.option("--all", "show_all", is_flag=True, help="Print the value of every key, defaults included.")
def show(name: str, show_all: bool) -> None:
    """Print the shipped config NAME, such as emoji/transformer."""
    files = find_configs(name)
    if len(files) > 1:
        raise UserError(f"{name!r} is a folder; expected one file, so name one of: {', '.join(files)}")
    ((full_name, path),) = files.items()
    click.echo(effective_values(full_name, path) if show_all else path.read_text(encoding="utf-8"), nl=False)


@config.command(epilog=examples("dalle config copy small configs/mine"))
@click.argument("name")
@click.argument("folder", metavar="DIR")
def copy(name: str, folder: str) -> None:
    """Copy a shipped config, or a folder of them, into DIR.

    No file is overwritten.
    """
    for path in copy_configs(name, Path(folder)):
        click.echo(path)


def effective_values(name: str, path: Path) -> str:
    """Every key of a training stage's config with the value it has, as YAML.

    Raises:
        UserError: the file is no training stage's.
    """
    return yaml.safe_dump(to_dict(load_stage_config(name, path)), sort_keys=False, allow_unicode=True)


def load_stage_config(name: str, path: Path) -> Any:
    """Load the config of whichever training stage a file is for."""
    by_file_name = {stage.file_name: stage for stage in STAGES.values()}
    if path.stem in by_file_name:
        return load(by_file_name[path.stem].config, path)
    for stage in ("transformer", "prior", "diffusion-decoder"):  # of which there are files with other names, as 300m
        with contextlib.suppress(UserError):
            return load(STAGES[stage].config, path)
    raise UserError(f"{name} is no training stage's config, and only those have defaults; leave out --all")
