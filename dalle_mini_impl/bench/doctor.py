"""What this machine has of what the program needs and can use, and what to do about the rest (`dalle doctor`).

Nothing here fails: whatever goes wrong is a finding. PyTorch is imported late, because it may be what is broken.
"""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from dalle_mini_impl import __version__
from dalle_mini_impl.util.files import PACKAGE
from dalle_mini_impl.util.memory import available_memory
from dalle_mini_impl.util.threads import SPIN_COUNT

DISTRIBUTION = "dalle-mini-impl"
"""What pip calls this package."""
WAIT_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""What the user may have said of threads; see `util.threads`."""
MIN_FREE = 2 * 2**30
"""Bytes of free disk below which a training soon fails."""
COMPILER_SECONDS = 20
"""How long a compiler may take to say its version."""


@dataclass(frozen=True)
class Finding:
    """One thing that this machine has or lacks."""

    name: str
    value: str
    """What was found."""
    advice: str = ""
    """What to do; empty if all is well."""
    broken: bool = False
    """Whether the program cannot work as long as it stays so."""


def examine() -> dict[str, list[Finding]]:
    """All findings by heading."""
    groups: dict[str, tuple[Callable[[], Iterator[Finding]], ...]] = {
        "Program": (_program, _packages, _picture),
        "Compute": (_torch, _threads, _device, _memory, _compiler),
        "Extras": (_extras,),
        "Places": (_places,),
    }
    return {heading: [found for look in looks for found in _safely(look)] for heading, looks in groups.items()}


def _safely(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one function; if it fails, that is the finding."""
    try:
        yield from look()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        name = look.__name__.strip("_")
        yield Finding(name, f"fails: {reason}", "install the program anew in a fresh environment", broken=True)


def _program() -> Iterator[Finding]:
    yield Finding("program", f"{DISTRIBUTION} {__version__} in {PACKAGE}")
    yield Finding("Python", f"{platform.python_version()} in {sys.prefix}, {platform.platform(terse=True)}")


def _requirements() -> dict[str, list[str]]:
    """Extra -> its requirements, such as `torch>=2.9`; those without which nothing works under the empty name."""
    found: dict[str, list[str]] = {"": []}
    found |= {extra: [] for extra in importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra == ['"]([^'"]+)""", marker)
        found[extra[1] if extra else ""].append(requirement.strip())
    return found


def _installed(requirement: str) -> tuple[str, str | None, bool]:
    """Name of a requirement, its installed version or None, and whether that is new enough."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    try:
        version = importlib.metadata.version(match[0])
    except importlib.metadata.PackageNotFoundError:
        return match[0], None, False
    least = re.search(r"(?:>=|==)([\d.]+)", requirement)
    return match[0], version, least is None or _release(version) >= _release(least[1])


def _release(version: str) -> list[int]:
    """The numbers of a version: 2.9.1+cpu is 2, 9, 1."""
    start = re.match(r"[\d.]*", version)
    return [int(part) for part in (start[0] if start else "").split(".") if part]


def _packages() -> Iterator[Finding]:
    try:
        requirements = _requirements()[""]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "unknown, because the program was not installed by pip", "run: pip install .")
        return
    for requirement in requirements:
        name, version, is_new_enough = _installed(requirement)
        if version is None or not is_new_enough:
            value = f"{version or 'not installed'}, needed: {requirement}"
            yield Finding(name, value, f"run: pip install '{requirement}'", broken=True)
    found = [f"{name} {version}" for name, version, _ in map(_installed, requirements) if version]
    yield Finding("packages", ", ".join(found))


def _picture() -> Iterator[Finding]:
    """Whether the included model draws, with everything that takes."""
    start = time.perf_counter()
    from dalle_mini_impl.pipeline.dalle_mini import DalleMini

    dalle = DalleMini.from_pretrained("emoji")
    loaded = time.perf_counter()
    dalle.generate("a red heart", candidates=1)
    drawn = time.perf_counter()
    yield Finding(
        "a picture",
        f"drawn by emoji in {drawn - loaded:.1f} s, {dalle.source['precision']}, loaded in {loaded - start:.1f} s",
    )


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("PyTorch", f"{torch.__version__}, built {build}")


def _threads() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = f"set OMP_NUM_THREADS={cores}: more threads than cores wait for each other" if threads > cores else ""
    yield Finding("threads", f"{threads} on {cores} cores", advice)
    given = {name: os.environ[name] for name in WAIT_VARIABLES if name in os.environ}
    count = given.get("GOMP_SPINCOUNT", SPIN_COUNT)
    is_long = not count.isdigit() or int(count) > 10 * int(SPIN_COUNT)
    spins = is_long or given.get("OMP_WAIT_POLICY", "").lower() == "active"
    yield Finding(
        "waiting",
        ", ".join(f"{name}={value}" for name, value in given.items()) or "as the system has it",
        "unset them, or beside other busy programs threads may wait for milliseconds" if spins else "",
    )


def _device() -> Iterator[Finding]:
    import torch

    from dalle_mini_impl.util.devices import choose_device

    device = choose_device("auto")
    value, advice = device, ""
    if device == "cuda":
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        value = ", ".join(f"cuda:{index} {one.name}, {_gib(one.total_memory)}" for index, one in enumerate(names))
    elif shutil.which("nvidia-smi"):
        advice = "PyTorch does not see the NVIDIA GPU: install a build of it for CUDA, or see what nvidia-smi says"
    yield Finding("device", value, advice)


def _memory() -> Iterator[Finding]:
    yield Finding("memory", f"{_gib(available_memory())} free of {_gib(psutil.virtual_memory().total)}")


def _compiler() -> Iterator[Finding]:
    """The C compiler, and whether what it makes computes right."""
    command = os.environ.get("CC", "cc")
    try:
        words = [*shlex.split(command), "--version"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMPILER_SECONDS, check=True)
        yield Finding("C compiler", f"{command}: {done.stdout.splitlines()[0]}")
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        advice = "install one (Debian: apt-get install gcc libc6-dev): sampling on a CPU is then several times faster"
        yield Finding("C compiler", f"{command} does not work", advice)

    import torch

    from dalle_mini_impl.sampling.native.library import load
    from dalle_mini_impl.sampling.native.linear import NativeLinear, WeightAndBias

    library = load()
    if library is None:
        yield Finding("compiled code", "none; PyTorch computes instead", f"see whether {command} knows -fopenmp")
        return
    weight, x = torch.arange(96.0).view(3, 32) % 7 - 3, torch.arange(64.0).view(2, 32) % 5 - 2  # all products are exact
    right = torch.equal(NativeLinear(library, WeightAndBias(weight))(x), x @ weight.T)
    advice = "" if right else "set CC to another compiler, or to one that does not exist: PyTorch then computes instead"
    yield Finding("compiled code", "works" if right else "computes wrong numbers", advice, broken=not right)


def _extras() -> Iterator[Finding]:
    try:
        requirements = _requirements()
    except importlib.metadata.PackageNotFoundError:
        return
    for extra, needed in requirements.items():
        if not extra:
            continue
        found = [(requirement, *_installed(requirement)) for requirement in needed]
        have = ", ".join(f"{name} {version}" for _, name, version, is_new_enough in found if is_new_enough)
        missing = [f"'{requirement}'" for requirement, _, _, is_new_enough in found if not is_new_enough]
        line = f"; run: pip install {' '.join(missing)}" if missing else ""
        yield Finding(extra, f"{have or 'not installed'}{line}")


def _places() -> Iterator[Finding]:
    from dalle_mini_impl.interop.text.find_clip_merges import hub_cache
    from dalle_mini_impl.sampling.native.library import cache_folder

    places = {
        "current folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "code cache": cache_folder(),
        "hub cache": hub_cache(),
    }
    for name, path in places.items():
        if path is None:
            yield Finding(name, "no folder", "set XDG_CACHE_HOME to a folder of yours")
            continue
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        advice = "" if free >= MIN_FREE else "make room: trainings and downloads need gigabytes"
        if not os.access(there, os.W_OK):
            advice = "it cannot be written: change its access rights"
        yield Finding(name, f"{path}, {_gib(free)} free", advice)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
