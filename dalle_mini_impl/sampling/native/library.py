"""Compiles the C code beside it for this machine on first use and loads it.

Compiled where it runs, it uses what this very CPU has, and the package itself stays one wheel for all machines.
The result is kept in the user's cache folder.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file

NAMES = ("step.c", "product.c", "norms.c", "attention.c", "draw.c", "blocks.h", "vectors.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in NAMES)
FLAGS = ("-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
SECONDS = 120
"""More than any compiler needs."""


class Matrix(ctypes.Structure):
    """As in `blocks.h`; so the others."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")]


class Norm(ctypes.Structure):
    """A norm."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Layer(ctypes.Structure):
    """One block."""

    _fields_ = [
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, Norm) for name in ("attention_norm", "mlp_norm", "attention_post", "mlp_post")),
        ("turn", ctypes.c_void_p),
    ]


THEN = {"swiglu": 2, "geglu": 3, "gelu": 4, "gelu-tanh": 5}
"""`Then` there, by the kind of feed-forward layer."""


class Blocks(ctypes.Structure):
    """All blocks."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("layers", "sources")),
        *((name, ctypes.c_int32) for name in ("count", "heads", "size", "width", "hidden", "activation")),
        *((name, ctypes.c_int32) for name in ("qk_norm", "rotate_values", "reversible", "finish")),
    ]


class MaskParts(ctypes.Structure):
    """`AttentionMask` there."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("places", "runs", "starts")), ("most", ctypes.c_int32)]


class CacheParts(ctypes.Structure):
    """`Cache` there."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "channels", "prompt", "attention_masks")),
        *((name, ctypes.c_int32) for name in ("rows", "branches", "capacity", "length")),
    ]


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled functions, or None where there is no C compiler with OpenMP (`$CC`, else `cc`)."""
    with tempfile.TemporaryDirectory() as spare:
        for folder in (_cache_folder(), Path(spare)):
            try:
                return _declared(ctypes.CDLL(str(_compiled(folder))))
            except subprocess.TimeoutExpired:
                return None
            # No compiler or not a good one, or it cannot be written there, or not run from there.
            except (subprocess.CalledProcessError, UserError, OSError, ValueError):
                continue
    return None


def _compiled(folder: Path) -> Path:
    """Path of the compiled functions in a folder, where they are put if they are not there."""
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS]
    path = folder / f"native-{_key(command)}.so"
    if not path.is_file():
        with replace_file(path) as temporary:
            command += ["-o", str(temporary), *(str(source) for source in SOURCES if source.suffix == ".c"), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    return path


def _key(command: list[str]) -> str:
    """Changes with the source, the command and the CPU: home folders are shared between machines."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    text = "\0".join([*(source.read_text(encoding="utf-8") for source in SOURCES), *command, features])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dalle-mini-impl"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same, knowing what each function takes and returns."""
    blocks, cache, matrix = (ctypes.POINTER(kind) for kind in (Blocks, CacheParts, Matrix))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.lanes.argtypes, library.lanes.restype = [], number
    library.room.argtypes, library.room.restype = [blocks, cache, number, number], ctypes.c_int64
    library.step.argtypes, library.step.restype = [blocks, cache, pointer, number, pointer, number], None
    library.linear.argtypes = [matrix, pointer, number, number, number, pointer, pointer, number]
    library.linear.restype = None
    library.draw.argtypes = [pointer, number, number, ctypes.c_float, number, pointer, pointer, pointer, number]
    library.draw.restype = None
    return library
