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
        sections: heading -> the part of `summaries` to list under it; one section, "Commands", unless given.
        **attributes: passed on to `click.Group`.
    """

    def __init__(
        self,
        *,
        package: str,
        summaries: Mapping[str, str],
        sections: Mapping[str, Mapping[str, str]] | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(**attributes)
        self.package = package
        self.summaries = summaries
        self.sections = sections or {"Commands": summaries}

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
        width = max(map(len, self.summaries))  # the same in all sections, so that their texts are aligned
        for heading, summaries in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in summaries.items()])
