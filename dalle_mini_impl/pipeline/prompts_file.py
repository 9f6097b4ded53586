"""Files of prompts, read line by line: texts, or JSON Lines with settings of their own, of any number."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dalle_mini_impl.config.yaml_io import from_dict
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.read_files import open_regular
from dalle_mini_impl.util.text import encoding_of, without_surrogates

JSON_ENDING = ".jsonl"
"""How the name of a file of JSON Lines ends, in lower case; any other file has one prompt per line."""
MAX_LINE = 1 << 20
"""Characters of the longest line that is read."""


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """What a line of JSON may say: the prompt, and arguments of `DalleMini.generate` that differ from the others'.

    Only what a line has counts, not the defaults here.
    """

    prompt: str
    negative: str = ""
    candidates: int = 1
    keep: int = 1
    seed: int = 0
    seeds: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    rank: str = "auto"
    clip_weight: float = 1.0
    diversity: float = 0.0
    prune: bool = False
    tile: bool = False
    transparent: bool = False
    prior: str = "auto"
    decoder: str = "tokens"
    sampler: str = "ddim"
    steps: int = 50
    eta: float = 0.0


def read_prompts(path: Path | str, *, allow_pipe: bool = False) -> Iterator[dict[str, Any]]:
    """The prompts of a file, one after the other, each as arguments of `DalleMini.generate`; empty lines are left out.

    Args:
        path: of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        allow_pipe: see `util.read_files.open_regular`.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object with a `prompt` and known settings; the message
            names the line.
    """
    is_json = Path(path).suffix.lower() == JSON_ENDING
    number = 0
    try:
        with open_regular(path, allow_pipe=allow_pipe) as file:
            start = cast(io.BufferedReader, file).peek(4)[:4]
            for line in _lines(io.TextIOWrapper(file, encoding_of(start))):
                number += 1
                if text := line.strip():
                    yield _parse(text) if is_json else {"prompt": text}
    except (OSError, ValueError) as error:
        kind = "JSON object" if is_json else "text"
        place = f"line {number}: " if number else ""
        raise UserError(
            f"expected a UTF-8 file with one {kind} per line, got {path} ({place}{error}); name another file"
        ) from error


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    r"""The lines of a text file, which end in `\n`, `\r\n` or `\r`."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE:,} characters")
        if "\0" in line:
            raise ValueError("a NUL character, as UTF-16 without byte order mark has; save it as UTF-8")
        yield line


def _parse(text: str) -> dict[str, Any]:
    """A line of JSON as arguments of `DalleMini.generate`."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError('expected an object such as {"prompt": "a red heart", "seed": 3}, got another value')
    line = from_dict(PromptLine, values, "a prompt")
    given = {name: getattr(line, name) for name in values}
    given["prompt"] = without_surrogates(line.prompt)
    if "seeds" in given:
        return {"candidates": len(line.seeds), "keep": len(line.seeds), **given, "seeds": list(line.seeds)}
    # The line's own numbers, not the seeds that all other prompts have.
    return {**given, "seeds": None} if {"seed", "candidates"} & set(given) else given
