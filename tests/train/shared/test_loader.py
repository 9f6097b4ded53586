"""Batches made ahead: the same whoever makes them, and workers that end with the trainer."""

import multiprocessing
import os
import signal
import subprocess

import psutil
import pytest
import torch
from helpers.training import interrupt, outcome, python, wait_for_step

from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared.loader import passes
from dalle_mini_impl.util.command_line import LOST_WORKER
from dalle_mini_impl.util.errors import UserError

CPU = torch.device("cpu")
ROWS = [slice(0, 3), slice(3, 6)]
ENOUGH = 60
"""Seconds in which a process ends that has been told to."""


def made(make, workers, count, first_step=0, rows=ROWS):
    batches = passes(make, rows, first_step, RunConfig(workers=workers), CPU)
    return [next(batches) for _ in range(count)]


def numbers(step, rows):
    generator = torch.Generator().manual_seed(step)
    return torch.rand(6, 4, generator=generator)[rows], torch.tensor(step)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_from_any_number_of_workers(workers):
    batches = made(numbers, workers, 9, first_step=5)
    expected = [numbers(step, rows) for step in range(5, 10) for rows in ROWS][:9]
    for (values, step), (expected_values, expected_step) in zip(batches, expected, strict=True):
        assert torch.equal(values, expected_values)
        assert torch.equal(step, expected_step)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_generator_of_the_training_is_left_alone(workers):
    before = torch.get_rng_state()
    made(numbers, workers, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_comes_out_as_it_is(workers):
    def make(step, rows):
        if step == 1:
            raise UserError("expected a cat, got a dog; draw again")
        return torch.tensor(step)

    batches = passes(make, ROWS, 0, RunConfig(workers=workers), CPU)
    assert [int(next(batches)) for _ in ROWS] == [0, 0]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "expected a cat, got a dog; draw again"


def about_worker(step, rows):
    ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return torch.tensor([os.getpid(), torch.get_num_threads(), *ignores])


def test_workers_compute_with_one_thread_and_leave_signals_to_the_trainer():
    batches = passes(about_worker, ROWS, 0, RunConfig(workers=2), CPU)
    about = torch.stack([next(batches) for _ in range(8)])
    workers = set(about[:, 0].tolist())
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert (about[:, 1:] == 1).all()
    assert all(psutil.pid_exists(worker) for worker in workers)
    del batches
    assert not any(psutil.pid_exists(worker) for worker in workers)


LOST = """
import os, signal, click, torch
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared.loader import passes
from dalle_mini_impl.util.command_line import run_program

def make(step, rows):
    if step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor(step)

@click.command()
def train():
    for _ in passes(make, [slice(0, 1)], 0, RunConfig(workers=1), torch.device("cpu")):
        pass

run_program(train, "train")
"""
"""Has a worker that is killed. PyTorch's signal handler may raise anywhere in the program."""


def test_a_worker_that_is_killed_ends_the_training_with_one_line():
    process = python("-c", LOST, stderr=subprocess.PIPE)
    assert process.communicate(timeout=ENOUGH)[1] == f"error: {LOST_WORKER}\n"
    assert process.returncode == 2


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionError])
def test_a_bug_in_a_worker_is_not_hidden(kind):
    def make(step, rows):
        raise kind("shapes do not fit")

    with pytest.raises(kind, match="shapes do not fit"):
        made(make, 1, 1)


def test_workers_need_a_system_that_forks(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert len(made(numbers, 0, 1)) == 1
    with pytest.raises(UserError, match=r"expected run\.workers 0 .* cannot fork processes, got 2; leave it out"):
        made(numbers, 2, 1)


KILLED = """
import os, signal, torch
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared.loader import passes

def make(step, rows):
    if step:
        signal.pause()
    return torch.tensor(step)

batches = passes(make, [slice(0, 1)], 0, RunConfig(workers=2), torch.device("cpu"))
next(batches)
print("made", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""Dies with one worker that waits for work and one that works forever."""


def test_workers_end_with_a_trainer_that_is_killed():
    process = python("-c", KILLED, stdout=subprocess.PIPE)
    assert process.communicate(timeout=ENOUGH)[0] == "made\n"  # at the end of the file nobody has it open
    assert process.returncode == -signal.SIGKILL


# --- trainings


@pytest.mark.parametrize("stage", ["image_tokenizer", "transformer", "scorer"])
def test_a_training_is_the_same_with_any_number_of_workers(trained, tmp_path, monkeypatch, stage):
    home = trained.copy(tmp_path / "home", stage)
    (home.folder / "model" / f"{stage}.safetensors").unlink()
    interrupt(home, stage, 6, monkeypatch, "run.workers=2")
    home.run(stage, "--resume", "run.workers=1")
    assert outcome(home, stage) == outcome(trained, stage)


def test_ctrl_c_ends_a_training_with_workers_in_one_line(home):
    arguments = home.arguments("transformer", "run.workers=2", "run.steps=100000", "run.sample_every=0")
    command = ("-m", "dalle_mini_impl.train.transformer", *arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = python(*command, **pipes, start_new_session=True)  # a group of processes, as in a terminal
    wait_for_step(home.folder / "transformer" / "log.jsonl", 3, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=ENOUGH)
    assert process.returncode == 130
    assert errors.count("stopped; --resume continues from the last saved state\n") == 1
    assert "Traceback" not in errors
