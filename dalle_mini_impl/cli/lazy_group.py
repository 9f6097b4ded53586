"""A group of commands whose modules are imported only when one of them is used."""

import importlib
import keyword
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Prints names and help of its commands without importing them, so that `--help` needs no torch.

    Args:
        package: dotted name of the package with one module per command.
        summaries: command name -> its line in the group's help. The command `zero-shot` is `zero_shot` in the module
            `zero_shot`; a Python keyword such as `import` has an underscore appended.
        **attributes: passed on to `click.Group`.
    """

    def __init__(self, *, package: str, summaries: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.package = package
        self.summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.summaries:
            return None
        name = cmd_name.replace("-", "_")
        if keyword.iskeyword(name):
            name += "_"
        return getattr(importlib.import_module(f"{self.package}.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))
