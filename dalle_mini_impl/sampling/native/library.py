"""Compiles the C code of this folder for this machine on first use, and loads it.

Compiled where it runs, it uses all instructions of this CPU, and the package stays one wheel for all machines. The
result is stored in the user's cache folder.
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

NAMES = ("step.c", "product.c", "norms.c", "attention.c", "next_id.c", "blocks.h", "vectors.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in NAMES)
FLAGS = ("-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
COMPILER_TIMEOUT = 120
"""Seconds; compiling takes a few."""


class MatrixStruct(ctypes.Structure):
    """`Matrix` of `blocks.h`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")]


class NormStruct(ctypes.Structure):
    """`Norm` of `blocks.h`."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class LayerStruct(ctypes.Structure):
    """`Layer` of `blocks.h`."""

    _fields_ = [
        *((name, MatrixStruct) for name in ("qkv", "out", "up", "down")),
        *((name, NormStruct) for name in ("attention_norm", "mlp_norm", "attention_post", "mlp_post")),
        ("rotary", ctypes.c_void_p),
    ]


class BlocksStruct(ctypes.Structure):
    """`Blocks` of `blocks.h`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("layers", "sources")),
        *((name, ctypes.c_int32) for name in ("count", "heads", "size", "width", "hidden", "activation")),
        *((name, ctypes.c_int32) for name in ("qk_norm", "rotate_values", "reversible", "unit_output")),
    ]


EPILOGUES = {"swiglu": 2, "geglu": 3, "gelu": 4, "gelu-tanh": 5}
"""`Epilogue` of `blocks.h`, by the kind of feed-forward layer."""


class MaskStruct(ctypes.Structure):
    """`AttentionMask` of `blocks.h`."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("slots", "runs", "starts")), ("most_scores", ctypes.c_int32)]


class CacheStruct(ctypes.Structure):
    """`Cache` of `blocks.h`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "channels", "prompt", "attention_masks")),
        *((name, ctypes.c_int32) for name in ("rows", "branches", "capacity", "length")),
    ]


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled functions, or None if there is no C compiler with OpenMP (`$CC`, else `cc`)."""
    with tempfile.TemporaryDirectory() as temporary:
        for folder in (_cache_folder(), Path(temporary)):
            try:
                return _declare(ctypes.CDLL(str(_compile(folder))))
            except subprocess.TimeoutExpired:
                return None
            # No compiler, one that fails, or a folder that cannot be written to or loaded from: try the next folder.
            except (subprocess.CalledProcessError, UserError, OSError, ValueError):
                continue
    return None


def _compile(folder: Path) -> Path:
    """Path of the compiled functions in a folder; compiles them if they are not there."""
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS]
    path = folder / f"native-{_key(command)}.so"
    if not path.is_file():
        with replace_file(path) as temporary:
            command += ["-o", str(temporary), *(str(source) for source in SOURCES if source.suffix == ".c"), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILER_TIMEOUT)
    return path


def _key(command: list[str]) -> str:
    """A hash of the sources, the command and the CPU: several machines may share a home folder."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    text = "\0".join([*(source.read_text(encoding="utf-8") for source in SOURCES), *command, features])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dalle-mini-impl"


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare argument and result types of each function; returns the same library."""
    blocks, cache, matrix = (ctypes.POINTER(kind) for kind in (BlocksStruct, CacheStruct, MatrixStruct))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.lanes.argtypes = []
    library.lanes.restype = number
    library.workspace_size.argtypes = [blocks, cache, number, number]
    library.workspace_size.restype = ctypes.c_int64
    library.step.argtypes = [blocks, cache, pointer, number, pointer, number]
    library.step.restype = None
    library.linear.argtypes = [matrix, pointer, number, number, number, pointer, pointer, number]
    library.linear.restype = None
    library.sample_ids.argtypes = [pointer, number, number, ctypes.c_float, number, pointer, pointer, pointer, number]
    library.sample_ids.restype = None
    return library
