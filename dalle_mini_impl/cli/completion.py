"""`dalle completion`: the script with which a shell completes commands, options and file names of `dalle`."""

import click
from click.shell_completion import get_completion_class

from dalle_mini_impl.cli.options import examples

VARIABLE = "_DALLE_COMPLETE"
"""By this variable a shell asks `dalle` for completions; click derives the name from that of the program."""


@click.command(epilog=examples("dalle completion bash"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    \b
    bash, in ~/.bashrc:   eval "$(dalle completion bash)"
    zsh, in ~/.zshrc:     eval "$(dalle completion zsh)"
    fish:                 dalle completion fish > ~/.config/fish/completions/dalle.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    program = click.get_current_context().find_root().command
    click.echo(kind(program, {}, "dalle", VARIABLE).source())
