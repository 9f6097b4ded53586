"""Compiles the C code of this folder for this machine on first use, and loads it.

Compiled where it runs, it uses all instructions of this CPU, and the package stays one wheel for all machines. The
result is stored in the user's cache folder.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file

NAMES = ("step.c", "product.c", "norms.c", "attention.c", "next_id.c", "blocks.h", "team.h", "vectors.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in NAMES)
FLAGS = ("-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
COMPILER_TIMEOUT = 120
"""Seconds; compiling takes a few."""
MAX_LANES = 16
"""The largest `LANES` in `vectors.h`."""


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
        *((name, ctypes.c_void_p) for name in ("keys", "values", "channels", "prompt", "prompt_rows")),
        ("attention_masks", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("rows", "capacity", "length")),
    ]


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled functions, or None if there is no C compiler with OpenMP (`$CC`, else `cc`)."""
    try:
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS]
    except ValueError:
        return None
    folder = cache_folder()
    return (_load_stored(folder, _key(command)) if folder else None) or _compile(command, folder)


def _compile(command: list[str], folder: Path | None) -> ctypes.CDLL | None:
    """Compile in a temporary folder, store the result in the cache folder if that is possible, and load it."""
    sources = [str(source) for source in SOURCES if source.suffix == ".c"]
    if folder:
        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
    for place in (None, folder):  # the cache folder, if there is no place for temporary files
        try:
            with tempfile.TemporaryDirectory(dir=place) as temporary:
                path = Path(temporary, "native.so")
                subprocess.run(
                    [*command, "-o", str(path), *sources, "-lm"],
                    check=True,
                    capture_output=True,
                    timeout=COMPILER_TIMEOUT,
                    env={**os.environ, "TMPDIR": temporary},
                )
                library = folder and _store(folder, _key(command), path.read_bytes())
                return library or _declare(ctypes.CDLL(str(path)))
        except subprocess.SubprocessError:  # a compiler that fails, or never ends
            return None
        except OSError:  # no compiler, no space, or a place that nothing can be loaded from
            continue
    return None


def _store(folder: Path, key: str, content: bytes) -> ctypes.CDLL | None:
    """Store compiled functions in the cache folder and load them from there; None if that is impossible."""
    try:
        if not _is_private(os.stat(folder, follow_symlinks=False)):
            warnings.warn(
                f"expected {folder} to be a folder of yours that nobody else can write to, got another; compiled code "
                "is not kept there, so each run compiles it again",
                stacklevel=2,
            )
            return None
        path = folder / _file_name(key, content)
        path.unlink(missing_ok=True)  # a damaged file, or a pipe, which would not be replaced
        with replace_file(path) as temporary:
            temporary.write_bytes(content)
        path.chmod(0o600)
    except (OSError, UserError):
        return None
    return _load_stored(folder, key)


def _load_stored(folder: Path, key: str) -> ctypes.CDLL | None:
    """Load the compiled functions of this key from a folder that only this user can write to, or None.

    Their file has the digest of its content in its name, so that a damaged one is never loaded: that would end the
    process without a message. What was checked is what is loaded, even if the path leads elsewhere meanwhile.
    """
    try:
        if not _is_private(os.stat(folder, follow_symlinks=False)):
            return None
        for path in sorted(folder.glob(f"native-{key}-*.so")):
            file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            with open(file, "rb", closefd=False) as content:
                state = os.fstat(file)
                good = stat.S_ISREG(state.st_mode) and _is_private(state)
                good = good and path.name == _file_name(key, content.read())
            link = Path(f"/proc/self/fd/{file}")
            if good:
                # The descriptor stays open, as the loader knows libraries by their paths.
                return _declare(ctypes.CDLL(str(link if link.exists() else path)))
            os.close(file)
    except OSError:
        pass
    return None


def _is_private(state: os.stat_result) -> bool:
    """Whether a file or folder is no link, belongs to this user and can be written by nobody else."""
    if stat.S_ISLNK(state.st_mode):
        return False
    return not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & 0o022)


def _file_name(key: str, content: bytes) -> str:
    return f"native-{key}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.so"


def _key(command: list[str]) -> str:
    """A hash of the sources, the command and the CPU: several machines may share a home folder."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    text = "\0".join([*(source.read_text(encoding="utf-8") for source in SOURCES), *command, features])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cache_folder() -> Path | None:
    """`dalle-mini-impl` in the user's cache folder; None for a user without one, or if its path is not absolute."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return path / "dalle-mini-impl" if path.is_absolute() else None


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
    library.linear_workspace_size.argtypes = [number, number, number]
    library.linear_workspace_size.restype = ctypes.c_int64
    library.linear.argtypes = [matrix, pointer, number, number, number, pointer, pointer, number]
    library.linear.restype = None
    library.sampling_workspace_size.argtypes = [number, number]
    library.sampling_workspace_size.restype = ctypes.c_int64
    library.sample_ids.argtypes = [pointer, number, number, *[pointer] * 5, number]
    library.sample_ids.restype = None
    return library
