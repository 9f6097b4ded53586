"""Hostile files: mutations of good ones, and a child process with little memory in which they are tried."""

import json
import os
import random
import resource
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from dalle_mini_impl.util.errors import UserError
from helpers.processes import fork

MEMORY = 3 * 2**30
"""Bytes that the child process can allocate in addition to what it has."""
MAX_MESSAGE = 1500

JSON_VALUES = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**40, 2**63, 10**30, -(10**30), 0.5, -1e300, float("nan"), float("inf"), "",
    "full", "row", "x" * 1000, "../../etc/passwd", "\x1b[2J", "a\nb", [], [[]], [1] * 1000, ["full"] * 3, {}, {"a": 1},
)  # fmt: skip


def in_small_child(cases: Iterable[tuple[str, Callable[[], object]]]) -> tuple[int, int, list[str]]:
    """Run cases in a child process: how many worked, how many were refused in one line, and what else happened."""
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        try:
            os.close(reading)
            limit = psutil.Process().memory_info().vms + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with os.fdopen(writing, "w") as file:
                json.dump(_run(cases), file)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    assert text, "the child process ended without a result"
    worked, refused, failures = json.loads(text)
    return worked, refused, failures


def _run(cases: Iterable[tuple[str, Callable[[], object]]]) -> tuple[int, int, list[str]]:
    worked = refused = 0
    failures = []
    for name, case in cases:
        try:
            case()
            worked += 1
        except UserError as error:
            refused += 1
            message = str(error)
            if "\n" in message or "\x1b" in message or len(message) > MAX_MESSAGE:
                failures.append(f"{name}: {message[:300]!r} of {len(message)} characters")
        except BaseException:
            failures.append(f"{name}: {traceback.format_exc()[-700:]}")
    return worked, refused, failures


def mutate_json(values: Any, choose: random.Random) -> Any:
    """A copy of nested values in which one is replaced, removed or added."""
    values = json.loads(json.dumps(values))
    node = values
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = choose.choice(keys)
        if not (isinstance(node[key], (dict, list)) and node[key] and choose.random() < 0.8):
            break
        node = node[key]
    action = choose.random()
    if action < 0.8:
        node[key] = choose.choice(JSON_VALUES)
    elif action < 0.9:
        del node[key]
    elif isinstance(node, dict):
        node["more"] = choose.choice(JSON_VALUES)
    else:
        node.append(choose.choice(JSON_VALUES))
    return values


def mutate_bytes(content: bytes, choose: random.Random) -> bytes:
    """Bytes with some of them flipped, removed, repeated or replaced."""
    damaged = bytearray(content)
    for _ in range(choose.choice((1, 1, 2, 5, 20))):
        place = choose.randrange(len(damaged) or 1)
        action = choose.randrange(5)
        if action == 0 and damaged:
            damaged[place] ^= 1 << choose.randrange(8)
        elif action == 1:
            del damaged[place : place + choose.choice((1, 3, 100))]
        elif action == 2:
            damaged[place:place] = damaged[place : place + choose.choice((1, 10, 300))] * choose.choice((1, 5))
        elif action == 3:
            damaged[place : place + 1] = choose.choice(
                (
                    b"\xff",
                    b"\0",
                    b"[" * 50,
                    b"{" * 50,
                    b"*a ",
                    b"&a ",
                    b"\n- ",
                    b": ",
                    b"9" * 40,
                    b"\xe2\x80\xa8",
                    b"!!int ",
                )
            )
        else:
            damaged[place:place] = choose.randbytes(choose.choice((1, 4, 30)))
    return bytes(damaged)


class MakesFolder:
    """Makes a folder when it is unpickled, as a malicious file would run a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
