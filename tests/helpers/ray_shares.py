"""Functions that workers of a Ray cluster call; they import them by name."""

import os
from pathlib import Path

from dalle_mini_impl.scorer.scorer import Scorer
from dalle_mini_impl.search.embedding import Embedded, PictureShare, embed_on_worker
from dalle_mini_impl.util.errors import UserError
from helpers.processes import kill_self


def make_state(folder: str) -> str:
    """Leaves a file for each worker that makes its state."""
    Path(folder, f"made-{os.getpid()}").touch()
    return folder


def square(folder: str, number: int) -> tuple[int, int]:
    """The square of a number, and the worker's process."""
    return number**2, os.getpid()


def square_at_second_try(folder: str, number: int) -> int:
    """The square of a number; the first worker that is asked for 3 is killed."""
    if number == 3:
        try:
            Path(folder, "asked").touch(exist_ok=False)
            kill_self()
        except FileExistsError:
            pass
    return number**2


def refuse(folder: str, number: int) -> int:
    """Raises the user's mistake."""
    raise UserError(f"expected another number, got {number}")


def always_killed(folder: str, number: int) -> None:
    """Ends the worker."""
    kill_self()


def embed_at_second_try(identity: str, own: tuple[Scorer, str], share: PictureShare) -> list[Embedded]:
    """As `embed_on_worker`; the first worker that is asked is killed."""
    try:
        Path(os.environ["KILLED_ONCE"]).touch(exist_ok=False)
        kill_self()
    except FileExistsError:
        pass
    return embed_on_worker(identity, own, share)
