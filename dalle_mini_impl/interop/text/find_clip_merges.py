"""Where CLIP's list of merges lies on this machine: in packages that ship it, or in the cache of Hugging Face's hub.

The packages are neither needed nor imported.
"""

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from dalle_mini_impl.interop.text import clip_bpe
from dalle_mini_impl.interop.text.json_format import read_text
from dalle_mini_impl.util.errors import UserError

SHIPPED_IN = {
    "dalle_pytorch": "data/bpe_simple_vocab_16e6.txt",
    "open_clip": "bpe_simple_vocab_16e6.txt.gz",
    "clip": "bpe_simple_vocab_16e6.txt.gz",
}
"""Name under which a package is imported -> place of the file in its folder."""
FILE_STEM = "bpe_simple_vocab_16e6"
"""Beginning of the file's name wherever a package ships it."""
INSTALL = f"{shlex.quote(sys.executable)} -m pip install --no-deps open_clip_torch"
"""Command that installs a small package which ships the file."""
CACHED_AS = "models--*[cC][lL][iI][pP]*/snapshots/*/merges.txt"
"""Place in the hub's cache of the same list, which CLIP models have; it may also be another model's."""
VOCAB_SIZE = 49408
"""Number of ids of CLIP's tokenizer."""


def find_clip_merges() -> Path | None:
    """The file with CLIP's merges, the first one that is whole; None if there is none."""
    return next((path for path in _places() if path.is_file() and _is_whole(path)), None)


def locate_merges(path: str | None) -> str:
    """The file of a text tokenizer, looked for on this machine where it is CLIP's and is not where it was said to be.

    Args:
        path: as given; None for CLIP's merges, wherever they are.

    Raises:
        UserError: CLIP's merges are nowhere; the message says how to get them.
    """
    if path is not None and (os.path.lexists(path) or not Path(path).name.startswith(FILE_STEM)):
        return path
    found = find_clip_merges()
    if found is None:
        raise UserError(
            f"expected CLIP's merges {f'in {path} or ' if path else ''}in a package that ships them "
            f"({', '.join(SHIPPED_IN)}) or in the cache of the hub, got none; first run: {INSTALL}"
        )
    return str(found)


def _places() -> Iterator[Path]:
    for package, name in SHIPPED_IN.items():
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a module that was made without a description of where it came from
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder) / name
    yield from sorted(hub_cache().glob(CACHED_AS))


def hub_cache() -> Path:
    """The folder of the hub's cache, as the hub's own library finds it."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _is_whole(path: Path) -> bool:
    """Whether a file has all of CLIP's merges, and not another model's."""
    try:
        return "</w>" in read_text(path) and len(clip_bpe.convert(path)["model"]["vocab"]) == VOCAB_SIZE
    except UserError:
        return False
