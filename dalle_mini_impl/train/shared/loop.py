"""What the training loops have in common, as plain functions. Each stage has its own explicit `main`.

Everything random about step `s` follows from `(seed, s)` alone and is sampled for the whole global batch, of which each
process takes its rows. So a run resumes exactly at any step, and two processes compute what one does.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from accelerate import Accelerator, tracking
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dalle_mini_impl.config.ranges import check_ranges
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.train.shared import fsdp
from dalle_mini_impl.train.shared.launch_settings import check_launch_settings, mixed_precision
from dalle_mini_impl.train.shared.order import check_order
from dalle_mini_impl.train.shared.state import how_to_go_on, set_earlier_run_aside
from dalle_mini_impl.util.command_line import check_interruption
from dalle_mini_impl.util.distributed import PATIENCE, check_connected
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import os_errors_for_user, replace_file

T = TypeVar("T")

PROJECT = "dalle_mini_impl"
"""Name under which a tracker files runs; TensorBoard's own is the name of a folder."""
LOOK_EVERY = 100
"""Largest number of steps after which a training looks at its losses, whatever else is due."""


def make_accelerator(patience: timedelta = PATIENCE, **options: Any) -> Accelerator:
    """Connect the launched processes.

    Args:
        patience: how long they wait for each other.
        **options: of `Accelerator`.

    Raises:
        UserError: several were launched, but on this device they would not be connected; or it cannot compute in the
            precision.
    """
    # Without `cpu=True`, accelerate does not connect the processes of a machine without a GPU.
    handlers = [InitProcessGroupKwargs(timeout=patience)]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=handlers, **options)
    check_connected(accelerator.num_processes)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("expected bf16 or fp32 on a CPU, got fp16; choose bf16, which is as fast")
    return accelerator


def start_run(run: RunConfig, can_shard: bool = False) -> Accelerator:
    """Check the settings of a run, connect its processes, and seed torch.

    Args:
        run: its settings.
        can_shard: whether this stage can train with FSDP.

    Raises:
        UserError: a setting is missing or out of range, or this stage cannot be launched in that way.
    """
    check_launch_settings(run.accumulation)
    is_sharded = fsdp.fsdp_requested()
    if is_sharded and not can_shard:
        raise UserError(
            "the launcher's file requests FSDP, which only the transformer stage supports; this stage's model is small "
            "enough for every process: use distributed_type MULTI_GPU"
        )
    if not run.model_dir or not run.state_dir:
        raise UserError(
            f"run.model_dir is {run.model_dir!r} and run.state_dir {run.state_dir!r}; both must name a folder"
        )
    check_tracker(run.tracker)
    check_ranges(run, "run")
    check_order(run)
    precision = mixed_precision("run.precision", run.precision)
    if is_sharded and precision == "fp16":
        raise UserError(
            "expected bf16 or fp32 with a sharded model, got fp16; choose bf16, which needs no loss scaling"
        )
    accelerator = make_accelerator(
        timedelta(hours=run.patience),
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=None if run.tracker == "none" else run.tracker,
        project_dir=run.state_dir,
    )
    parts = accelerator.num_processes * run.accumulation
    if run.batch_size % parts:
        raise UserError(
            f"run.batch_size {run.batch_size} cannot be split over {accelerator.num_processes} processes "
            f"× {run.accumulation} passes; make it a multiple of {parts}"
        )
    torch.manual_seed(run.seed)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # what is still in float32 goes through the tensor cores, as TF32
        torch.backends.cudnn.benchmark = True
    return accelerator


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot be used.

    Raises:
        UserError: accelerate knows none of this name, or it is not installed.
    """
    known = sorted(tracking.LOGGER_TYPE_TO_CLASS)
    if name not in ("none", *known):
        raise UserError(f"run.tracker is {name!r}; expected none, {', '.join(known)}")
    if name != "none" and name not in map(str, tracking.get_available_trackers()):
        if name == "tensorboard":
            raise need_extra("tensorboard", "tensorboard")
        raise UserError(f"expected {name} to be installed for run.tracker, got no such package; pip install {name}")


def generator_for(*seeds: int) -> torch.Generator:
    """A CPU generator seeded with a sequence of integers."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def pass_rows(accelerator: Accelerator, run: RunConfig) -> list[slice]:
    """Rows of the global batch that this process takes: one slice per forward and backward pass of a step."""
    size = run.batch_size // (accelerator.num_processes * run.accumulation)
    first = accelerator.process_index * run.accumulation
    return [slice((first + index) * size, (first + index + 1) * size) for index in range(run.accumulation)]


def exchanging_in_last(items: Sequence[T], *networks: Any) -> Iterator[T]:
    """The items of a step's passes; replicated networks exchange their gradients in the pass of the last item only.

    A sharded network exchanges them in every pass, as none of its processes has room for all; but between machines that
    hold the same shards it does so in the last pass only.

    Args:
        items: one for each pass. Its forward and backward pass must be done before the next item is asked for.
        networks: what is trained, as wrapped for several processes; compiled or not.
    """
    networks = tuple(getattr(network, "_orig_mod", network) for network in networks)
    for item in items[:-1]:
        with contextlib.ExitStack() as stack:
            for network in networks:
                if isinstance(network, DistributedDataParallel):
                    stack.enter_context(network.no_sync())
                elif isinstance(network, FSDPModule):
                    network.set_requires_all_reduce(False)
            yield item
    for network in networks:
        if isinstance(network, FSDPModule):
            network.set_requires_all_reduce(True)
    yield items[-1]


class TrainingLog:
    """Progress bar and messages on screen, `log.jsonl` and `config.yaml` in `run.state_dir`, and the tracker if any.

    Only the main process prints and writes.

    Args:
        accelerator: the processes of the run.
        run: settings of the run.
        config: the stage's whole config, written to `config.yaml`.
        first_step: 0, or the step that a resumed run continues with. Lines of later steps are removed from the log; at
            0 an earlier run's states and log are moved aside, because `--resume` would take them for this run's.
    """

    def __init__(self, accelerator: Accelerator, run: RunConfig, config: Any, first_step: int) -> None:
        self.accelerator = accelerator
        self.run = run
        self.folder = Path(run.state_dir)
        self.started = time.monotonic()
        self.first_step = first_step
        self.bar = tqdm(initial=first_step, total=run.steps, disable=not accelerator.is_main_process, unit=" steps")
        if run.tracker != "none":
            accelerator.init_trackers("tensorboard" if run.tracker == "tensorboard" else PROJECT)
        if accelerator.is_main_process:
            with os_errors_for_user(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                if first_step == 0 and (notice := set_earlier_run_aside(self.folder)):
                    self.message(notice)
            with replace_file(self.folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
            self._drop_lines_from(first_step)

    def steps(self) -> Iterator[tuple[int, RunConfig]]:
        """The steps still to be done, each with the settings of the run, behind a progress bar.

        With `run.minutes`, `steps` in the settings is an estimate of how many fit into the minutes, made anew before
        each step. So schedules over a share of the steps follow the clock, and the step that begins after the minutes
        are over is the last.
        """
        step = self.first_step
        run = self.run
        while step < run.steps:
            check_interruption()
            if run.minutes:
                run = replace(run, steps=self._steps_by_the_clock(step))
                self.bar.total = run.steps
            yield step, run
            self.bar.update()
            step += 1
        self.bar.close()

    def record(self, step: int, **values: float) -> None:
        """Append one line of figures for a step to the log, and send them to the tracker.

        Raises:
            UserError: as `check_finite`.
        """
        self.check_finite(step, **values)
        if not self.accelerator.is_main_process:
            return
        seconds = time.monotonic() - self.started
        pictures = (step + 1 - self.first_step) * self.run.batch_size
        line = {
            "step": step,
            **values,
            "seconds": round(seconds, 3),
            "pictures_per_second": round(pictures / seconds, 1),
        }
        with os_errors_for_user(self.folder / "log.jsonl"), (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self.accelerator.log(values, step=step)

    def check_finite(self, step: int, **values: float) -> None:
        """End a run whose figures are no numbers any more, before they reach a file.

        Raises:
            UserError: a figure is not finite; in all processes, if they pass the same figures.
        """
        if broken := [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise UserError(
                f"expected finite figures at step {step + 1}, got {', '.join(broken)}: the training has diverged; "
                f"lower optimizer.learning_rate or set run.precision to fp32, and {how_to_go_on(self.folder)}"
            )

    def message(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def close(self) -> None:
        """Wait for the other processes and close the tracker; all processes must call this at the end of the run.

        `Accelerator.end_training` would also destroy the process group; see `util.command_line.leave_process_group` for
        why that has to wait until the model is freed.
        """
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _steps_by_the_clock(self, step: int) -> int:
        share = (time.monotonic() - self.started) / (60 * self.run.minutes)
        steps = step + 1 if share >= 1 else max(step + 2, round(step / max(share, 1e-9)))
        if self.accelerator.num_processes == 1:
            return steps
        # The clocks of processes differ, but they must make the same number of steps: that of the main process.
        return int(broadcast(torch.tensor(steps, device=self.accelerator.device)))

    def _drop_lines_from(self, step: int) -> None:
        path = self.folder / "log.jsonl"
        if path.is_file():
            with path.open("rb") as lines:
                kept = [line for line in lines if _step_of_line(line) < step]
            with replace_file(path) as temporary:
                temporary.write_bytes(b"".join(kept))


def _step_of_line(line: bytes) -> float:
    """The step of a line of the log; infinity if a kill or a crash of the machine left it cut off or garbled."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf


def is_looked_at(step: int, run: RunConfig) -> bool:
    """Whether the figures of the steps so far are read after `step`; only then is the device waited for."""
    intervals = (run.log_every, run.validate_every, run.sample_every, run.save_every, LOOK_EVERY)
    return any(is_due(step, every, run) for every in intervals)


def is_due(step: int, every: int, run: RunConfig) -> bool:
    """Whether an action that is done every `every` steps (0: never) is due after `step`; the last step always is."""
    return every > 0 and ((step + 1) % every == 0 or step + 1 == run.steps)
