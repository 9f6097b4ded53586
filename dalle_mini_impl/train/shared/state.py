"""Resumable states: everything that is needed to continue a run exactly, written so that no kill leaves half a state.

    state.pt            a model that is not sharded; the main process writes it
    previous-state.pt   the one before
    state-00000200.pt   one after step 200, where more than two are kept
    state-00000200/     a sharded model after step 200; each process writes its own shards (`sharded_state.py`)

The newest states are kept (`run.keep_states`), and every so-manieth (`run.keep_every`). Each carries checksums and a
record of its run. A state that is damaged is named and passed over. Either kind can be read by any number of processes,
sharded or not. No pickle in them can name code that is run.
"""

import contextlib
import math
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dalle_mini_impl.checkpoint.check_weights import non_finite
from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared import sharded_state
from dalle_mini_impl.train.shared.added_weights import add_weights
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.fsdp import is_sharded, local_shard, shard_like
from dalle_mini_impl.train.shared.run_record import POSITIONS, RunRecord, added_settings, changed_settings, read_record
from dalle_mini_impl.train.shared.saved_tensors import DamagedState, check_seal, check_sizes, errors_as_damage, seal
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file

STATE_FILE = "state.pt"
"""Name of an unsharded state in `run.state_dir`."""
PREVIOUS_FILE = "previous-state.pt"
"""Name of the unsharded state before it."""
SHARDED_STATES = "state-*"
"""Names of sharded states there; `*` is the number of steps done, in eight digits."""
OLDER_FILES = "state-*.pt"
"""Names of unsharded states before that."""
EARLIER = "earlier"
"""Folder in `run.state_dir` for the states of an earlier run, when a new one starts there."""


def save_state(
    accelerator: Accelerator,
    run: RunConfig,
    step: int,
    model: nn.Module,
    optimizers: list[Any],
    ema: Ema,
    record: RunRecord,
    writer: sharded_state.Writer | None = None,
    /,
    **process_tensors: Tensor,
) -> None:
    """Write everything that `load_state` needs to continue exactly after `step`; all processes must call this.

    Args:
        accelerator: the processes of the run.
        run: settings of the run.
        step: the step just done, from 0.
        model: all that is trained.
        optimizers: those of the model.
        ema: of the model.
        record: what the state belongs to.
        writer: writes the state of a sharded model while the training goes on, and raises errors of that when it is
            used next; None waits.
        **process_tensors: further tensors to store, with values of each process's own.

    Raises:
        UserError: the folder cannot be written to, or weights are not finite; earlier states stay as they are.
    """
    model = accelerator.unwrap_model(model)
    folder = Path(run.state_dir)
    check_finite_weights(accelerator, model, step, folder)
    process_tensors = {name: value.cpu() for name, value in process_tensors.items()}
    if accelerator.device.type == "cuda":
        process_tensors["cuda_rng"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.scaler is not None:
        scaling = accelerator.scaler.state_dict()
        process_tensors["scaler"] = torch.tensor([scaling["scale"], scaling["_growth_tracker"]])
    if is_sharded(model):
        rank = accelerator.process_index
        tensors = sharded_state.named_tensors(model, optimizers, ema)
        for name, value in {"rng": torch.get_rng_state(), **process_tensors}.items():
            tensors[f"own.{rank}.{name}"] = value
        target = folder / SHARDED_STATES.replace("*", f"{step + 1:08d}")
        with contextlib.nullcontext(writer) if writer else sharded_state.Writer(accelerator) as used:
            used.begin(target, tensors, record, partial(remove_old_states, folder, target, run))
        return
    gathered = accelerator.gather_for_metrics([(torch.get_rng_state(), process_tensors)], use_gather_object=True)
    if accelerator.is_main_process:
        state = {
            "step": step + 1,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": ema.state,
            "rng": [rng for rng, _ in gathered],
            "own": [others for _, others in gathered],
            "record": record.as_json(),
        }
        _write_file(folder / STATE_FILE, state)
        remove_old_states(folder, folder / STATE_FILE, run)
    accelerator.wait_for_everyone()


def load_state(
    accelerator: Accelerator,
    run: RunConfig,
    model: nn.Module,
    optimizers: list[Any],
    ema: Ema,
    record: RunRecord,
    **process_tensors: Tensor,
) -> int:
    """Restore the last saved state, of either kind, in place; if it is damaged, the one before it.

    The settings of the optimizers are those of this run, not of the state. A run may go on from the unsharded state of
    one without what `ADDABLE` names; what that adds to the model is printed. With another number of processes than
    when it was saved, process i gets the tensors and the random state of process i modulo the former number.

    Args:
        accelerator: the processes of the run.
        run: settings of the run.
        model: all that is trained.
        optimizers: those of the model.
        ema: of the model.
        record: of this run; what may not differ from the state's is refused, what else differs is printed.
        **process_tensors: tensors to restore, by the names under which `save_state` got them; where the state has none,
            or one of another shape, they are left as they are.

    Returns:
        The step to continue with.

    Raises:
        UserError: there is no state, all are damaged, it is of another model or run, or the run goes by the clock.
    """
    if run.minutes:
        raise UserError(
            f"expected run.steps with --resume, got run.minutes={run.minutes:g}, whose time already spent is not "
            f"recorded; start without --resume, or set run.steps instead"
        )
    folder = Path(run.state_dir)
    model = accelerator.unwrap_model(model)
    paths = find_states(folder)
    if not paths:
        raise UserError(
            f"expected {STATE_FILE} or {SHARDED_STATES} in {folder} for --resume, got neither; start without --resume"
        )
    damages = []
    for path in paths:
        load = _load_file if path.suffix == ".pt" else sharded_state.load
        try:
            step, saved, changes = load(path, accelerator, model, optimizers, ema, record)
            break
        except DamagedState as damage:
            damages.append(f"{path} is damaged ({damage})")
    else:
        raise UserError(f"{'; '.join(damages)}; start without --resume")
    if accelerator.is_main_process:
        for damage_text in damages:
            warnings.warn(f"{damage_text}; going on from {path.name}, after step {step}", stacklevel=1)
        if changes:
            print(f"resumed with other settings from here on: {', '.join(changes)}")
    torch.set_rng_state(saved["rng"])
    if accelerator.device.type == "cuda" and "cuda_rng" in saved:
        torch.cuda.set_rng_state(saved["cuda_rng"], accelerator.device)
    if accelerator.scaler is not None and "scaler" in saved:
        scale, tracker = saved["scaler"].tolist()
        scaling = accelerator.scaler.state_dict()
        accelerator.scaler.load_state_dict({**scaling, "scale": scale, "_growth_tracker": int(tracker)})
    for name in process_tensors.keys() & saved.keys():
        if process_tensors[name].shape == saved[name].shape:
            process_tensors[name].copy_(saved[name])
    return step


def saved_record(folder: Path) -> RunRecord:
    """The record of the newest state in a folder that can be read; an empty one if there is none."""
    for path in find_states(folder):
        with contextlib.suppress(DamagedState):
            return sharded_state.read_run(path)[0] if path.is_dir() else read_file(path)["record"]
    return RunRecord()


def check_finite_weights(accelerator: Accelerator, model: nn.Module, step: int, folder: Path) -> None:
    """Refuse to save weights that are not finite; all processes must call this, and all raise.

    Args:
        accelerator: the processes of the run.
        model: what is trained.
        step: the last one.
        folder: of the run's states, for the message.

    Raises:
        UserError: a weight is infinite or not a number.
    """
    weights = model.state_dict()
    broken = non_finite({name: local_shard(value).cpu() for name, value in weights.items()})
    if float(accelerator.reduce(torch.tensor(float(bool(broken)), device=accelerator.device), "sum")):
        raise UserError(
            f"expected finite weights after step {step + 1}, got infinite ones or NaN, so nothing was saved; lower "
            f"optimizer.learning_rate or set run.precision to fp32, and {how_to_go_on(folder)}"
        )


def how_to_go_on(folder: Path) -> str:
    """What to do after a run that diverged: resume, if it has saved a state, else start again."""
    return "--resume from the last state" if find_states(folder) else "start again without --resume"


def find_states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    names = (folder / STATE_FILE, folder / PREVIOUS_FILE)
    files = [path for path in names if path.is_file()]
    files += [path for path in folder.glob(OLDER_FILES) if path.is_file() and path.stem.split("-")[1].isdecimal()]
    folders = [path for path in folder.glob(SHARDED_STATES) if path.is_dir() and path.name.split("-")[1].isdecimal()]
    return sorted(files + folders, key=lambda path: (_step_of(path), path.name == STATE_FILE), reverse=True)


def remove_old_states(folder: Path, newest: Path, run: RunConfig) -> None:
    """Remove all states from a folder but the latest `run.keep_states` and those of every `run.keep_every` steps."""
    for path in [path for path in find_states(folder) if path != newest][run.keep_states - 1 :]:
        if run.keep_every and _step_of(path) % run.keep_every == 0:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_earlier_run_aside(folder: Path) -> str:
    """Move what an earlier run left to a subfolder, which `--resume` does not read.

    Returns:
        A line that says so; empty if there was no state.
    """
    states = find_states(folder)
    if not states:
        return ""
    aside = folder / EARLIER
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in [*states, folder / "log.jsonl", folder / "config.yaml"]:
        if path.exists():
            path.rename(aside / path.name)
    return f"the state and log of an earlier run in {folder} were moved to {aside}; --resume will continue the new run"


def _step_of(path: Path) -> float:
    """Steps done in a state; infinity if it cannot be read, so that its damage is found and told."""
    if path.name not in (STATE_FILE, PREVIOUS_FILE):
        return int(path.stem.split("-")[1])
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:
        return float("inf")


def _write_file(path: Path, state: dict[str, Any]) -> None:
    with replace_file(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch reports that the disk is full
            raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}; make space") from error
        seal(temporary)
        previous = path.with_name(PREVIOUS_FILE)
        if previous.is_file() and math.isfinite(step := _step_of(previous)):
            os.replace(previous, path.with_name(OLDER_FILES.replace("*", f"{int(step):08d}")))
        if path.is_file():
            os.replace(path, previous)


def read_file(path: Path) -> dict[str, Any]:
    """Read an unsharded state and check that it is whole and has the right form.

    Raises:
        DamagedState: it is not.
    """
    with errors_as_damage():
        is_sealed = check_seal(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        moments = [value for optimizer in state["optimizers"] for value in optimizer["state"].values()]
        trained = [value for table in (state["model"], state["average"], *moments) for value in table.values()]
        own = [value for table in state.get("own", []) for value in table.values()]
        groups = [group["params"] for optimizer in state["optimizers"] for group in optimizer["param_groups"]]
        is_right = all(isinstance(value, Tensor) for value in (*trained, *own, *state["rng"]))
        is_right &= bool(state["rng"]) and all(value.dtype == torch.uint8 for value in state["rng"])
        is_right &= isinstance(state["step"], int) and state["step"] >= 0
        if "record" in state and not is_sealed:
            raise DamagedState("no checksum")
        if not is_right or not all(isinstance(group, list) for group in groups):
            raise DamagedState("not the form of a state")
        if non_finite({str(number): value for number, value in enumerate(trained)}):
            raise DamagedState("values that are not finite")
        state["record"] = read_record(state["record"]) if "record" in state else RunRecord()
        return {**state, "step": int(state["step"])}


def _load_file(
    path: Path, accelerator: Accelerator, model: nn.Module, optimizers: list[Any], ema: Ema, record: RunRecord
) -> tuple[int, dict[str, Tensor], list[str]]:
    """Restore model, optimizers and EMA from an unsharded state; returns what `sharded_state.load` does."""
    state = read_file(path)
    changes = changed_settings(state["record"], record, str(path))
    if new := added_settings(state["record"], record):
        added = add_weights(state, model, optimizers, ema, record.settings[POSITIONS] if POSITIONS in new else 0)
        if accelerator.is_main_process:
            print(f"new in the model, with initial values and without moments: {', '.join(added)}")
    weights = model.state_dict()
    check_sizes(
        path,
        _sizes(state["model"], state["average"], [saved["param_groups"] for saved in state["optimizers"]]),
        _sizes(weights, ema.state, [optimizer.param_groups for optimizer in optimizers]),
    )
    with errors_as_damage():
        model.load_state_dict({name: shard_like(value, weights.get(name)) for name, value in state["model"].items()})
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # with the settings of this run
            moments = _copied_moments(optimizer, saved_state["state"])
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for name, value in state["average"].items():
            ema.state[name].copy_(shard_like(value, ema.state[name]))
        rank = accelerator.process_index % len(state["rng"])
        process_tensors = state["own"][rank] if "own" in state else {}
    return state["step"], {"rng": state["rng"][rank], **process_tensors}, changes


def _sizes(model: dict[str, Tensor], average: dict[str, Tensor], optimizers: list[Any]) -> dict[str, list[int]]:
    """Sizes of weights and averages, and the number of weights in each group of each optimizer."""
    sizes = {f"model.{name}": list(value.shape) for name, value in model.items()}
    sizes |= {f"average.{name}": list(value.shape) for name, value in average.items()}
    groups = {number: [len(group["params"]) for group in groups] for number, groups in enumerate(optimizers)}
    return sizes | {f"optimizer {number}, weights per group": counts for number, counts in groups.items()}


def _copied_moments(optimizer: Any, saved: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Copies of an optimizer's saved moments, sharded like its parameters; the optimizer keeps the tensors it gets."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(
        value.ndim and value.shape != parameters[index].shape for index, row in saved.items() for value in row.values()
    ):
        raise DamagedState("moments of other sizes than the weights")
    return {
        index: {
            name: shard_like(value, parameter).to(parameter.device, copy=True) for name, value in saved[index].items()
        }
        for index, parameter in enumerate(parameters)
        if index in saved
    }
