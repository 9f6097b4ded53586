"""What tests of the command line share."""

from collections.abc import Iterator

import click

from dalle_mini_impl.cli import dalle


def one_line(error: str) -> str:
    """Assert that standard error is one line about an error, and return it."""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


def all_commands() -> dict[str, click.Command]:
    """Every command and group by the words that call it, such as `dalle evaluate scorer`."""
    return dict(walk("dalle", dalle))


def walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and, of a group, all below it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None, name
            yield from walk(f"{words} {name}", subcommand)
