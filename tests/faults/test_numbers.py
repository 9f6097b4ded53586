"""Numbers of any size in options: a result, or one line, in bounded memory."""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Iterator
from unittest import mock

import click
import pytest
import torch
from helpers.commands import all_commands
from helpers.foreign_dalle_pytorch import dalle_file_content
from helpers.foreign_examples import DISCRETE_VAE, DVAE_DECODER, DVAE_ENCODER, LLAMAGEN, VQGAN
from helpers.hostile import in_small_child
from helpers.priors import take_embeddings
from helpers.training import draw_shape

from dalle_mini_impl.cli import dalle
from dalle_mini_impl.cli.options import CommaSeparated, Count, FiniteFloat
from dalle_mini_impl.util.command_line import run_program
from dalle_mini_impl.util.errors import UserError

ROW = "numbers of any size in options"
VALUES = {
    int: ("-1", "0", "1000000000", "1000000000000000000", "9223372036854775808", "9" * 30),
    float: ("-1", "0", "1e-308", "1e9", "1e308", "-1e308"),
}
TIMES = ("--steps", "--repeats", "--minutes")
"""Options for how long something takes, not for how much is held at the same time."""
OF_JUDGES = (
    "dalle evaluate generation",
    "dalle evaluate rerank",
    "dalle evaluate paint",
    "dalle evaluate sampling",
    "dalle evaluate scenes",
    "dalle evaluate unclip",
    "dalle data emoji",
    "dalle data openclipart",
    "dalle data scenes",
    "dalle train all",
)
"""Commands that need judges or drawings, or train; their numbers are those of commands that are walked."""


@pytest.fixture
def commands(tiny_model, trained, tmp_path, monkeypatch):
    """A call of each command that has options for numbers; works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    draw_shape("disc", (200, 30, 40)).save("one.png")
    shutil.copytree(trained.folder / "pictures", "pictures")
    for name, content in {
        "vae.pt": DISCRETE_VAE,
        "vq.pt": LLAMAGEN,
        "taming.pt": {"state_dict": VQGAN},
        "encoder.pt": DVAE_ENCODER,
        "decoder.pt": DVAE_DECODER,
        "dalle.pt": dalle_file_content(),
    }.items():
        torch.save(content, name)
    model, store = str(tiny_model), str(trained.folder / "store")
    told = str(take_embeddings(shutil.copytree(tiny_model, tmp_path / "told")))
    few = ["-n", "2"]
    return {
        "dalle sample": ["red", "-m", model, *few],
        "dalle complete": ["one.png", "red", "-m", model, *few],
        "dalle vary": ["one.png", "-m", told, *few],
        "dalle mix": ["one.png", "blue", "--steps", "2", "-m", told],
        "dalle edit": ["one.png", "--to", "blue", "--steps", "2", "-m", told],
        "dalle components": ["one.png", "one.png", "one.png", "-m", told],
        "dalle paint": ["red", "-m", model, "--steps", "1", "--cuts", "2", "--frames", "a.gif"],
        "dalle serve": ["--host", "192.0.2.7"],  # refused, as there are no keys
        "dalle app": ["--host", "192.0.2.7"],  # refused, as there is no password
        "dalle classify": ["one.png", "--labels", "a,b", "--scorer", model],
        "dalle index": ["pictures", "--scorer", model, "--out", "other"],
        "dalle search": ["pictures", "red", "--scorer", model],
        "dalle caption": ["one.png", "-m", model, *few],
        "dalle write": ["a", "-m", model, *few],
        "dalle data inspect": ["pictures"],
        "dalle data store": ["pictures", "--out", "store"],
        "dalle plan": [str(trained.folder / "transformer.yaml")],
        "dalle compare": ["configs/compare/vqgan.yaml"],
        "dalle bench": ["--quick", "--only", "startup", "--peer", "none"],
        "dalle import dalle-pytorch": ["dalle.pt", "--out", "out"],
        "dalle import taming-vqgan": ["taming.pt", "--out", "out"],
        "dalle import llamagen-vq": ["vq.pt", "--out", "out"],
        "dalle import openai-dvae": ["encoder.pt", "decoder.pt", "--out", "out"],
        "dalle import dalle-pytorch-vae": ["vae.pt", "--out", "out"],
        "dalle import rudalle": ["taming.pt", "--vae", "taming.pt", "--out", "out"],
        "dalle evaluate captions": [model, "--data", store, "--skip-kinds", "", "--pictures", "2"],
        "dalle evaluate precision": [model, "red", "--precisions", "fp32"],
        "dalle evaluate image-tokenizer": [model, "--data", store],
    }


def number_options() -> Iterator[tuple[str, click.Option, type]]:
    """Every option for a number, with the command that it belongs to."""
    for words, command in all_commands().items():
        for option in command.params:
            kind = option.type.item if isinstance(option.type, CommaSeparated) else option.type
            if isinstance(option, click.Option) and isinstance(kind, click.types.IntParamType):
                yield words, option, int
            elif isinstance(option, click.Option) and isinstance(kind, click.types.FloatParamType):
                yield words, option, float


def test_every_number_option_is_bounded():
    for words, option, kind in number_options():
        number_type = option.type.item if isinstance(option.type, CommaSeparated) else option.type
        if kind is float:
            assert isinstance(number_type, FiniteFloat), (words, option.name)
        elif option.name != "seed":
            assert isinstance(number_type, Count) or getattr(number_type, "max", None) is not None, (words, option.name)


def call(words: str, arguments: list[str]) -> None:
    """Run a command as a shell does.

    Raises:
        UserError: it was refused in one line, after whatever it had reported before.
    """
    errors = io.StringIO()
    output = io.TextIOWrapper(io.BytesIO())
    with (
        mock.patch.object(sys, "argv", ["dalle", *words.split()[1:], *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            run_program(dalle, "dalle")
            return
        except SystemExit as end:
            code = end.code
    last = re.split("[\r\n]", errors.getvalue().rstrip("\n"))[-1]  # a progress bar, if there was one, is gone
    assert code == 2, (code, errors.getvalue())
    assert last.startswith("error: "), errors.getvalue()
    raise UserError(last)


def with_value(arguments: list[str], option: click.Option, value: str) -> list[str]:
    """Arguments in which an option has a value, and what contradicts it is left out."""
    removed = {"--seeds": ["-n"], "--keep": [], "--keep-rows": []}.get(option.opts[0], [])
    kept: list[str] = []
    for index, argument in enumerate(arguments):
        if not {argument, *arguments[max(index - 1, 0) : index]} & {*option.opts, *removed}:
            kept.append(argument)
    if kept[:1] == ["one.png"] and "-m" in kept and option.opts[0] != "--keep-rows" and "red" in kept:
        kept.append("--variations")
    return [*kept, option.opts[0], *[value] * option.nargs]


def test_any_number_as_an_option(commands, tries, report):
    walked = [one for one in number_options() if one[0] not in OF_JUDGES]
    assert {words for words, _, _ in walked} == {*commands}

    def cases():
        for number, (words, option, kind) in enumerate(walked):
            values = VALUES[kind] if option.opts[0] not in TIMES else VALUES[kind][:2]
            for value in tries(values, [values[number % len(values)]] if number % 4 == 0 else []):
                arguments = with_value(commands[words], option, value)
                shutil.rmtree("out", ignore_errors=True)
                yield f"{words} {' '.join(arguments)}", lambda words=words, arguments=arguments: call(words, arguments)

    call("dalle index", ["pictures", "--scorer", commands["dalle search"][-1]])
    worked, refused, failures = in_small_child(cases())
    assert not failures, "\n".join(failures[:10])
    assert worked + refused >= len(walked) // 4
    report(ROW, f"{worked} results, {refused} refused in one line")
