"""The transformer of configs/300m.yaml at its own size: two processes with a share each do what two whole ones do.

`pytest -m slow -s tests/test_sharding_300m.py` prints how far apart they are. It takes some minutes and 10 GB of disk.
"""

import json
import resource
import shutil

import psutil
import pytest
import torch
from helpers.training import ROOT, TIMINGS, launch_two

from dalle_mini_impl.checkpoint.parts import read_part

SHARES, COPIES = "gpus-8-fsdp", "cpu-2"
NEEDED = 18
"""Gigabytes of free memory: two processes with weights, gradients, DDP's buckets, two moments and the average, each of
1.2 GB, and something to spare."""
CLOSENESS = {
    "text": 1e-5,
    "image": 1e-5,
    "validation_text": 1e-5,
    "validation_image": 1e-5,
    "gradient": 1e-4,
    "rate": 0,
}
"""For the norm torch adds up squares in float32, millions of a whole weight one after the other and half as many of a
share, and the longer sum loses more: float64 sides with the shares, and finds it up to 6e-5 short."""


@pytest.fixture
def room(tmp_path):
    """A folder whose gigabytes are gone after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def train(trained, folder, launcher, *extra):
    """Three steps of four small pictures. The rate is warm after two, not two thousand, so that the weights move."""
    settings = {
        "cache": trained.folder / "ids", "text_tokenizer": trained.folder / "words.model", "text_length": 11,
        "run.model_dir": folder / "model", "run.state_dir": folder / "state", "run.steps": 3, "run.batch_size": 4,
        "run.accumulation": 1, "run.precision": "fp32", "run.ema": 0.5, "run.log_every": 1,
        "run.validate_every": 3, "run.save_every": 3, "run.sample_every": 0, "optimizer.warmup_steps": 2,
    }  # fmt: skip
    (folder / "model").mkdir(parents=True, exist_ok=True)
    shutil.copy(trained.folder / "model" / "image_tokenizer.safetensors", folder / "model")
    launch_two(
        "-m",
        "dalle_mini_impl.train.transformer",
        "--config",
        str(ROOT / "configs/300m.yaml"),
        *extra,
        *(f"{name}={value}" for name, value in settings.items()),
        launcher=launcher,
    )
    return read_part(folder / "model", "transformer")


def log(folder):
    return [json.loads(line) for line in (folder / "state" / "log.jsonl").read_text().splitlines()]


def peak():
    """Gigabytes of the largest process that this one has started so far and waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


@pytest.mark.slow
def test_fsdp_matches_ddp_and_either_resumes_the_others_state(trained, room):
    free = psutil.virtual_memory().available / 2**30
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED} GB of free memory, of which there are {free:.0f}")
    parts, peaks = {}, {}
    for launcher in (SHARES, COPIES):  # the smaller processes first
        parts[launcher] = train(trained, room / launcher, launcher)
        peaks[launcher] = peak()
    report(room, parts, peaks)

    assert sum(value.numel() for value in parts[SHARES].tensors.values()) > 300e6
    assert len(log(room / COPIES)) == 4
    for line, expected in zip(log(room / SHARES), log(room / COPIES), strict=True):
        for name in expected.keys() - {"step", *TIMINGS}:
            assert line[name] == pytest.approx(expected[name], rel=CLOSENESS[name])
    for name, value in parts[COPIES].tensors.items():  # but for what storing them rounds
        torch.testing.assert_close(parts[SHARES].tensors[name], value, rtol=2**-7, atol=1e-5)

    for before, after in ((SHARES, COPIES), (COPIES, SHARES)):
        (room / before / "model" / "transformer.safetensors").unlink()
        assert train(trained, room / before, after, "--resume").identity == parts[before].identity


def report(room, parts, peaks):
    """Print how far apart the two are."""
    found, expected = (parts[launcher].tensors for launcher in (SHARES, COPIES))
    count = sum(value.numel() for value in expected.values())
    other = sum(int((found[name] != value).sum()) for name, value in expected.items())
    print(
        f"\n{count / 1e6:.0f} M weights, {other} of them stored otherwise; largest process "
        f"{peaks[SHARES]:.1f} GB with a share, {peaks[COPIES]:.1f} GB with a copy"
    )
    for line, like in zip(log(room / SHARES), log(room / COPIES), strict=True):
        apart = {name: abs(line[name] / like[name] - 1) for name in sorted(like.keys() - {"step", *TIMINGS})}
        print(f"step {line['step'] + 1}:", ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
