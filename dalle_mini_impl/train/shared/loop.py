"""What the training stages share, as plain functions. Each stage is its own explicit `main`.

Everything random about step `s` follows from `(seed, s)` alone and is drawn for the whole global batch, of
which each process takes its rows. So a run resumes at any step exactly, and two processes do what one does.
"""

import importlib.util
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast
from tqdm import tqdm

from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.config.yaml_io import to_dict
from dalle_mini_impl.train.shared import fsdp
from dalle_mini_impl.train.shared.state import forget_states
from dalle_mini_impl.util.distributed import check_connected
from dalle_mini_impl.util.errors import UserError, need_extra
from dalle_mini_impl.util.files import replace_file


def processes(**options: Any) -> Accelerator:
    """The processes that were launched, as an Accelerator.

    Raises:
        UserError: several were launched, but here each would work alone.
    """
    # Unless told so, accelerate does not connect the processes of a machine that has nothing but a CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)
    check_connected(accelerator.num_processes)
    return accelerator


def mixed_precision(name: str, precision: str) -> str:
    """What accelerate calls a precision.

    Args:
        name: of the setting.
        precision: its value.

    Raises:
        UserError: it is unknown.
    """
    if precision not in ("bf16", "fp32"):
        raise UserError(f"{name} is {precision!r}; expected bf16 or fp32")
    return "bf16" if precision == "bf16" else "no"


def start(run: RunConfig, can_shard: bool = False) -> Accelerator:
    """Set up the processes, precision and seeds of a run.

    Args:
        run: its settings.
        can_shard: whether this stage can shard its model.

    Raises:
        UserError: a setting of the run is missing or does not divide, or the processes cannot do what they were
            launched for.
    """
    if fsdp.fsdp_requested() and not can_shard:
        raise UserError(
            "the launcher's file asks for FSDP, which is for transformers; this stage's model is small "
            "enough for a full copy in each process: use distributed_type MULTI_GPU"
        )
    if not run.model_dir or not run.state_dir:
        raise UserError(
            f"run.model_dir is {run.model_dir!r} and run.state_dir {run.state_dir!r}; both must name a folder"
        )
    if run.tracker not in ("none", "tensorboard"):
        raise UserError(f"run.tracker is {run.tracker!r}; expected none or tensorboard")
    if run.tracker == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise need_extra("tensorboard", "tensorboard")
    for name, least in (("steps", 1), ("batch_size", 1), ("accumulation", 1), ("seed", 0), ("minutes", 0)):
        if getattr(run, name) < least:
            raise UserError(f"run.{name} is {getattr(run, name)}; it must be at least {least}")
    accelerator = processes(
        mixed_precision=mixed_precision("run.precision", run.precision),
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
    return accelerator


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on the numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Indices of the pictures in the global batch of a step: shuffled in each epoch, none left out.

    Args:
        step: optimizer step, from 0.
        batch_size: pictures per step over all processes.
        count: pictures in the set.
        seed: of the run.

    Returns:
        (batch_size,) indices in [0, count).
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(places // count):
        order = np.random.default_rng([seed, int(epoch)]).permutation(count)
        mine = places // count == epoch
        indices[mine] = order[places[mine] % count]
    return indices


def passes(accelerator: Accelerator, run: RunConfig) -> list[slice]:
    """Rows of the global batch that this process takes, one slice per accumulated pass."""
    size = run.batch_size // (accelerator.num_processes * run.accumulation)
    first = accelerator.process_index * run.accumulation
    return [slice((first + number) * size, (first + number + 1) * size) for number in range(run.accumulation)]


class TrainingLog:
    """Progress on screen, `log.jsonl` on disk, and the tracker if one is set."""

    def __init__(self, accelerator: Accelerator, run: RunConfig, config: Any, first_step: int) -> None:
        self.accelerator, self.run, self.folder = accelerator, run, Path(run.state_dir)
        self.started, self.first_step = time.monotonic(), first_step
        self.bar = tqdm(initial=first_step, total=run.steps, disable=not accelerator.is_main_process, unit=" steps")
        if run.tracker != "none":
            accelerator.init_trackers(run.tracker)
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
            self._drop_lines_from(first_step)
            if first_step == 0:  # the state of an earlier run would be taken for this one's by --resume
                forget_states(self.folder)

    def steps(self) -> Iterator[tuple[int, RunConfig]]:
        """The steps still to be done, with a progress bar, and with each the run as it stands.

        With `run.minutes` its `steps` are those that the minutes allow at the speed so far. So a schedule over the
        share of the steps follows the clock, and the step that begins when the minutes are over is the last.
        """
        step, run = self.first_step, self.run
        while step < run.steps:
            if run.minutes:
                run = replace(run, steps=self._steps_by_the_clock(step))
                self.bar.total = run.steps
            yield step, run
            self.bar.update()
            step += 1
        self.bar.close()

    def log(self, step: int, **values: float) -> None:
        """Write one line of figures for a step."""
        if not self.accelerator.is_main_process:
            return
        seconds = time.monotonic() - self.started
        done = (step + 1 - self.first_step) * self.run.batch_size
        line = {
            "step": step,
            **values,
            "seconds": round(seconds, 1),
            "pictures_per_second": round(done / seconds, 1),
        }
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self.accelerator.log(values, step=step)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def close(self) -> None:
        """Wait for the other processes and close the tracker; all processes must call it, at the end of the run.

        `Accelerator.end_training` would also destroy the process group; see `leave_process_group` for why that has to
        wait until the model is gone.
        """
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _steps_by_the_clock(self, step: int) -> int:
        share = (time.monotonic() - self.started) / (60 * self.run.minutes)
        steps = step + 1 if share >= 1 else max(step + 2, round(step / max(share, 1e-9)))
        # No two clocks agree, but processes have to.
        return int(broadcast(torch.tensor(steps, device=self.accelerator.device)))

    def _drop_lines_from(self, step: int) -> None:
        path = self.folder / "log.jsonl"
        if path.is_file():
            # A kill may have left half a line, which is then the last one and belongs to a step to be done again.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            with replace_file(path) as temporary:
                temporary.write_text("".join(line for line in lines if json.loads(line)["step"] < step))


def due(step: int, every: int, run: RunConfig) -> bool:
    """Whether something done every so many steps is due after `step`; the last step always counts."""
    return every > 0 and ((step + 1) % every == 0 or step + 1 == run.steps)
