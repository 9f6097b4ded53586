"""The compiled code under AddressSanitizer and UBSan: odd shapes, 1 to 8 threads, each instruction set of this CPU."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_mini_impl.sampling.native import library

TESTS = Path(__file__).parent.parent
FEATURES = {"x86-64": "", "x86-64-v2": "sse4_2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}
"""Instruction set -> a feature without which a CPU cannot run it."""
MARCHES = ["native", *(FEATURES if platform.machine() == "x86_64" else ())]


def sanitizer_library(name):
    """Path of a runtime library of gcc, or None."""
    if shutil.which("gcc") is None:
        return None
    command = ["gcc", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if os.path.isabs(path) else None


RUNTIMES = [sanitizer_library(name) for name in ("libasan.so", "libubsan.so")]
pytestmark = [
    pytest.mark.skipif(None in RUNTIMES, reason="there is no gcc with AddressSanitizer and UBSan"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sanitizers are preloaded as Linux does it"),
]


def run_driver(cache, march, tries, seed):
    """Run the driver under sanitizers; returns what the process printed and ended with."""
    environment = {
        **os.environ,
        "CC": "gcc",
        "LD_PRELOAD": ":".join(RUNTIMES),
        "ASAN_OPTIONS": "detect_leaks=0",  # those of Python itself
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(cache),
    }
    command = [sys.executable, "-m", "helpers.native_driver", f"-march={march}", str(tries), str(seed)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for compiled code, so that each kind is compiled once."""
    return tmp_path_factory.mktemp("cache")


def can_run(march):
    cpu = Path("/proc/cpuinfo")
    return march == "native" or (cpu.exists() and FEATURES[march] in cpu.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("march", MARCHES)
def test_the_compiled_code_is_clean_under_sanitizers(march, cache, tmp_path, tries, report):
    if march != MARCHES[0] and tries(1, 0) == 0:
        pytest.skip("only with make test-faults")
    if not can_run(march):
        sources = [str(source) for source in library.SOURCES if source.suffix == ".c"]
        command = ["gcc", f"-march={march}", *library.FLAGS[2:], "-o", str(tmp_path / "native.so"), *sources, "-lm"]
        assert subprocess.run(command, check=False).returncode == 0
        report("compiled code under address and undefined-behaviour sanitizers", f"{march} only compiled")
        return
    seeds = range(tries(4, 1))
    compared = 0
    for seed in seeds:
        result = run_driver(cache, march, tries(100, 8), seed)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "runtime error" not in result.stderr
        compared += int(result.stdout)
    figure = f"{march} {compared} of {compared} calls clean and equal to the reference"
    report("compiled code under address and undefined-behaviour sanitizers", figure)


def test_the_sanitizers_notice_what_is_written_behind_a_workspace(cache, tmp_path):
    small = tmp_path / "sitecustomize.py"
    small.write_text(
        "import torch\n"
        "empty = torch.empty\n"
        "torch.empty = lambda *size, **rest: empty(*size, **rest) if rest.get('dtype') is not torch.uint8 "
        "else empty(size[0] - 4, **rest)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        result = run_driver(cache, "native", 1, 0)
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer" in result.stderr
