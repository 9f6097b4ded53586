"""The `dalle` command itself, and rules that hold for all of its commands."""

import re
import shlex
import subprocess
import sys
import warnings

import click
import pytest
from click.testing import CliRunner
from helpers.commands import all_commands, one_line

import dalle_mini_impl
from dalle_mini_impl.cli import COMMANDS, SECTIONS, dalle, main

ALL_COMMANDS = all_commands()
LEAVES = {words: command for words, command in ALL_COMMANDS.items() if not isinstance(command, click.Group)}
OTHER_FORMS = {
    "--candidates": "-n", "--keep": "-k", "--out": "-o", "--model": "-m", "--seed": "-s",
    "--prompts-file": "--texts-file",  # which may also hold settings, unlike the files of texts of other commands
}  # fmt: skip
FREE_TEXT = {
    "--beginning", "--box", "--config", "--device", "--from", "--host", "--labels", "--message", "--model", "--name",
    "--negative", "--noise-prompt", "--other-prior", "--other-scorer", "--own-source", "--password", "--preset",
    "--prompt", "--scorer", "--ray", "--second-scorer", "--size", "--template", "--to", "--url",
}  # fmt: skip
"""Options whose values are not a few words, so that they are no choice."""
SYNONYMS = {
    "--top": "--keep", "--shown": "--keep", "--best": "--keep",
    "--labels-file": "--texts-file", "--captions": "--texts-file", "--output": "--out", "--num": "--candidates",
}  # fmt: skip
"""Names that an option must not have -> the name that it has everywhere."""


def help_of(words):
    result = CliRunner().invoke(dalle, [*words.split()[1:], "--help"], prog_name="dalle")
    assert result.exit_code == 0, result.output
    return result.output


def examples_in(text):
    """The commands that a help text shows below "Example:" or "Examples:"."""
    block = re.search(r"^ *Examples?:\n((?: +\S.*\n)+)", text, re.MULTILINE)
    lines = block[1].replace("\\\n", " ").splitlines() if block else []
    return [" ".join(line.split()) for line in lines]


# --- help


def test_help_lists_every_command_under_its_heading():
    blocks = {block.partition(":\n")[0]: block for block in help_of("dalle").split("\n\n")}
    for heading, commands in SECTIONS.items():
        lines = blocks[heading].splitlines()[1:]
        assert [line.split(maxsplit=1) for line in lines] == [[name, text] for name, text in commands.items()]
    assert dalle_mini_impl.__version__ in CliRunner().invoke(dalle, ["--version"]).output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_same_summary_in_its_own_help(name):
    assert ALL_COMMANDS[f"dalle {name}"].get_short_help_str(limit=1000) == COMMANDS[name]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_no_line_of_help_is_cut(words):
    usage, *rest = help_of(words).splitlines()
    assert usage.startswith(f"Usage: {words} ")
    assert not [line for line in rest if "..." in line or "None" in line]


@pytest.mark.parametrize("words", [words for words in ALL_COMMANDS if words not in LEAVES])
def test_each_command_of_a_group_has_one_line(words):
    group = ALL_COMMANDS[words]
    assert isinstance(group, click.Group)
    names = group.list_commands(click.Context(group))
    listed = [line.split()[0] for line in help_of(words).splitlines() if re.match(r"  [a-z]", line)]
    assert [name for name in listed if name != "dalle"][-len(names) :] == names
    assert not re.search(r"^    +[^ -]", help_of(words).partition("Commands:")[2], re.MULTILINE), "continuation lines"


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_shows_an_example_that_parses(words):
    examples = examples_in(help_of(words))
    assert examples
    for example in examples:
        assert f"{example} ".startswith(f"{words} "), example
        arguments = shlex.split(example, comments=True)[len(words.split()) :]
        LEAVES[words].make_context(words, arguments)


# --- options


def options_of(words):
    """Name -> option."""
    return {option.opts[0]: option for option in LEAVES[words].params if isinstance(option, click.Option)}


@pytest.mark.parametrize("words", LEAVES)
def test_options_with_a_few_words_are_choices(words):
    texts = {name for name, option in options_of(words).items() if option.type is click.STRING and not option.is_flag}
    assert texts <= FREE_TEXT


@pytest.mark.parametrize("words", LEAVES)
def test_options_have_the_same_name_and_short_form_everywhere(words):
    options = options_of(words)
    assert not {name: SYNONYMS[name] for name in options if name in SYNONYMS}
    assert not [name for name, option in options.items() if not option.help]
    for name, option in options.items():
        assert option.opts[1:] == ([OTHER_FORMS[name]] if name in OTHER_FORMS else []), name
    if "--device" in options:
        assert options["--device"].default == "auto"
    if "--json" in options:
        assert options["--json"].type.allow_dash
        assert options["--json"].metavar == "FILE"


# --- errors and warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint-it-black"], "no such command 'paint-it-black'; see dalle --help"),
        (["evaluate", "beauty"], "no such command 'beauty'; see dalle evaluate --help"),
        (["info", "a", "b"], "got unexpected extra argument (b); see dalle info --help"),
        (["push", "runs"], "missing argument 'hf:USER/REPO'; see dalle push --help"),
    ],
)
def test_usage_errors_are_one_line_that_names_the_help(refused, arguments, message):
    assert one_line(refused(*arguments)) == f"error: {message}\n"


def test_a_group_without_command_prints_its_help(refused):
    assert refused("data").startswith("Usage: dalle data ")


def test_warnings_are_one_line_without_code(monkeypatch):
    @click.command()
    def warn():
        warnings.warn("be careful", stacklevel=1)

    monkeypatch.setattr(dalle, "get_command", lambda context, name: warn)
    before = warnings.showwarning
    assert CliRunner().invoke(dalle, ["warn"]).stderr == "warning: be careful\n"
    assert warnings.showwarning is before


def test_ctrl_c_ends_with_one_word(monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(dalle, "main", stop)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_closed_pipe_ends_without_traceback(monkeypatch, capsys):
    def close(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr(dalle, "main", close)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == ""


def test_python_m_runs_the_same_command(tmp_path):
    command = [sys.executable, "-m", "dalle_mini_impl", "sample"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert one_line(done.stderr) == 'error: expected at least one prompt, got none; try: dalle sample "a red heart"\n'
