"""Devices and waits on a GPU, checked with fake tensors on a machine without one; see `helpers/fake_cuda.py`.

Nothing here shows that a GPU computes the right numbers, or how fast.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.training import DEADLINE, environment

COMPILER = shutil.which("c++")
SOURCE = Path(__file__).parent / "helpers" / "stand_in_cuda.cpp"
TRAINERS = ("transformer", "masks", "order", "image-tokenizer", "gan", "scorer", "prior")
LOOK = "train/shared/figures.py"
"""Where a trainer waits for the device after the last of its steps, to read all its losses."""
OTHERS = {
    "sample": {"sampling/generate.py": 2, "model/stream.py": 1},
    "embed": {"sampling/generate.py": 1, "model/stream.py": 1},
    "graph": {"sampling/generate.py": 2},
    "decode": {"model/stream.py": 1},
    "draw-embeddings": {},
    "tune": {LOOK: 1, "util/pixels.py": 2, "model/quantizers/learned.py": 2},
    "score": {"scorer/scorer.py": 3},
    "paint": {"painting/painter.py": 3},
}
"""Checks besides training -> where they wait, and how often: drawing once for each of its two chunks, not for each id;
a painting once in each of its three steps; a tuned decoder where pictures are encoded, in each of two steps."""
PLANTED = ("tensor:transformer", "wait:transformer")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="needs PyTorch for CPUs"),
]


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    """For each check, where it waited for the device, and the error if it failed."""
    folder = tmp_path_factory.mktemp("fake_cuda")
    library, torch_folder = folder / "stand_in.so", Path(torch.__file__).parent
    command = [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", str(SOURCE), "-o", library]
    subprocess.run([*command, f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"], check=True, timeout=DEADLINE)
    home = trained.copy(folder / "home")
    checks = [*TRAINERS, *OTHERS, *PLANTED]
    program = [sys.executable, "-m", "helpers.fake_cuda", str(library), str(home.folder), *checks]
    done = subprocess.run(program, env=environment(), text=True, capture_output=True, timeout=DEADLINE, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(checks), done.stderr[-3000:]
    return dict(zip(checks, lines, strict=True))


@pytest.mark.parametrize("check", TRAINERS)
def test_trainers_keep_to_the_device_and_do_not_wait_for_it_in_a_step(found, check):
    assert found[check] == {"waits": [LOOK], "error": ""}


@pytest.mark.parametrize("check", OTHERS)
def test_the_rest_keeps_to_the_device_and_waits_no_more_than_it_must(found, check):
    assert found[check]["error"] == ""
    assert Counter(found[check]["waits"]) == OTHERS[check]


def test_a_tensor_on_the_wrong_device_is_found(found):
    assert "at least two devices, cuda:0 and cpu" in found["tensor:transformer"]["error"]


def test_a_wait_in_each_pass_is_found(found):
    assert found["wait:transformer"]["error"] == ""
    assert len(found["wait:transformer"]["waits"]) == 2 * 2 + 1  # steps, passes, the look
