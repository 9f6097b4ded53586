"""Resumable states: everything that is needed to continue a run exactly, written so that no kill leaves half a state.

    state.pt          a model that is not sharded; the main process writes it
    state-00000200/   a sharded model after step 200; each process writes its own shards

Either kind can be read by any number of processes, sharded or not. The second is in the format of
torch.distributed.checkpoint. Its index is a pickle, so resume only from states that you trust.
"""

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from dalle_mini_impl.config.training import RunConfig
from dalle_mini_impl.train.shared.ema import Ema
from dalle_mini_impl.train.shared.fsdp import is_sharded, shard_like
from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import replace_file

STATE_FILE = "state.pt"
"""Name of an unsharded state in `run.state_dir`."""
SHARDED_STATES = "state-*"
"""Names of sharded states there; `*` is the number of steps done, in eight digits."""
READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, CheckpointException)
"""What reading a truncated or altered state raises."""


def save_state(
    accelerator: Accelerator,
    run: RunConfig,
    step: int,
    model: nn.Module,
    optimizers: list[Any],
    ema: Ema,
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
        **process_tensors: further CPU tensors to store, with values of each process's own.

    Raises:
        UserError: the folder cannot be written to.
    """
    model = accelerator.unwrap_model(model)
    if accelerator.device.type == "cuda":
        process_tensors["cuda_rng"] = torch.cuda.get_rng_state(accelerator.device)
    if is_sharded(model):
        rank = accelerator.process_index
        tensors = _named_tensors(model, optimizers, ema)
        for name, value in {"rng": torch.get_rng_state(), **process_tensors}.items():
            tensors[f"own.{rank}.{name}"] = value
        _write_sharded(accelerator, Path(run.state_dir) / SHARDED_STATES.replace("*", f"{step + 1:08d}"), tensors)
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
        }
        with replace_file(Path(run.state_dir) / STATE_FILE) as temporary:
            torch.save(state, temporary)
        remove_states(Path(run.state_dir), except_for=STATE_FILE)
    accelerator.wait_for_everyone()


def load_state(
    accelerator: Accelerator,
    run: RunConfig,
    model: nn.Module,
    optimizers: list[Any],
    ema: Ema,
    **process_tensors: Tensor,
) -> int:
    """Restore the last saved state, of either kind, in place.

    With another number of processes than when it was saved, process i gets the tensors and the random state of process
    i modulo the former number.

    Args:
        accelerator: the processes of the run.
        run: settings of the run.
        model: all that is trained.
        optimizers: those of the model.
        ema: of the model.
        **process_tensors: tensors to restore, by the names under which `save_state` got them.

    Returns:
        The step to continue with.

    Raises:
        UserError: there is no state, it is damaged, it is of another model, or the run goes by the clock.
    """
    if run.minutes:
        raise UserError(
            f"expected run.steps with --resume, got run.minutes={run.minutes:g}, whose time already spent is not "
            f"recorded; start without --resume, or set run.steps instead"
        )
    folder = Path(run.state_dir)
    model = accelerator.unwrap_model(model)
    # A kill may leave both kinds, the sharded one partly removed; either leads to the same result.
    path = folder / STATE_FILE if (folder / STATE_FILE).is_file() else max(folder.glob(SHARDED_STATES), default=None)
    if path is None:
        raise UserError(
            f"expected {STATE_FILE} or {SHARDED_STATES} in {folder} for --resume, got neither; start without --resume"
        )
    load = _load_file if path.name == STATE_FILE else _load_sharded
    step, saved = load(path, accelerator.process_index, model, optimizers, ema)
    torch.set_rng_state(saved["rng"])
    if accelerator.device.type == "cuda" and "cuda_rng" in saved:
        torch.cuda.set_rng_state(saved["cuda_rng"], accelerator.device)
    for name in process_tensors.keys() & saved.keys():
        process_tensors[name].copy_(saved[name])
    return step


def remove_states(folder: Path, except_for: str = "") -> None:
    """Remove all states from a folder, except for the one of that name."""
    if except_for != STATE_FILE:
        (folder / STATE_FILE).unlink(missing_ok=True)
    for path in folder.glob(SHARDED_STATES):
        if path.name != except_for:
            shutil.rmtree(path)


def _load_file(
    path: Path, rank: int, model: nn.Module, optimizers: list[Any], ema: Ema
) -> tuple[int, dict[str, Tensor]]:
    """Restore model, optimizers and EMA from an unsharded state; returns the next step and the process's tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except READ_ERRORS as error:
        raise _damaged(path, error) from error
    weights = model.state_dict()
    try:
        model.load_state_dict({name: shard_like(value, weights.get(name)) for name, value in state["model"].items()})
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict({**saved, "state": _copied_moments(optimizer, saved["state"])})
    except (RuntimeError, ValueError) as error:
        raise _other_model(path, str(error).splitlines()[0]) from error
    for name, value in state["average"].items():
        ema.state[name].copy_(shard_like(value, ema.state[name]))
    rank %= len(state["rng"])
    process_tensors = state["own"][rank] if "own" in state else {}
    return int(state["step"]), {"rng": state["rng"][rank], **process_tensors}


def _copied_moments(optimizer: Any, saved: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Copies of an optimizer's saved moments, sharded like its parameters; the optimizer keeps the tensors it gets."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {
            name: shard_like(value, parameter).to(parameter.device, copy=True) for name, value in saved[index].items()
        }
        for index, parameter in enumerate(parameters)
        if index in saved
    }


def _named_tensors(model: nn.Module, optimizers: list[Any], ema: Ema) -> dict[str, Tensor]:
    """All tensors that training changes, by unique names. They are the run's own, so loading into them restores it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in ema.state.items()}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():  # Muon's matrices of convolutions have no name
            tensors |= {f"moments.{names.get(parameter)}.{name}": value for name, value in moments.items()}
    return tensors


def _create_moments(optimizers: list[Any]) -> None:
    """Have optimizers create their moments, by a step with zero gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _write_sharded(accelerator: Accelerator, target: Path, tensors: dict[str, Tensor]) -> None:
    """Write a state into a folder that gets its name once all processes have written; then remove earlier states."""
    partial = target.with_name(".state.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        checkpoint.save(tensors, checkpoint_id=partial)
    except CheckpointException as error:
        raise UserError(f"cannot write {target}: {_first_cause(error)}; choose a writable path") from error
    if accelerator.is_main_process:
        partial.rename(target)
        remove_states(target.parent, except_for=target.name)
    accelerator.wait_for_everyone()


def _load_sharded(
    path: Path, rank: int, model: nn.Module, optimizers: list[Any], ema: Ema
) -> tuple[int, dict[str, Tensor]]:
    """Restore model, optimizers and EMA from a sharded state; returns the next step and the process's tensors."""
    try:
        saved: dict[str, Any] = checkpoint.FileSystemReader(path).read_metadata().state_dict_metadata
    except READ_ERRORS as error:
        raise _damaged(path, error) from error
    saved_sizes = {name: list(entry.size) for name, entry in saved.items() if not name.startswith("own.")}
    _create_moments(optimizers)
    tensors = _named_tensors(model, optimizers, ema)
    sizes = {name: list(value.size()) for name, value in tensors.items()}
    for name in sorted(saved_sizes.keys() | sizes.keys()):
        if saved_sizes.get(name) != sizes.get(name):
            difference = f"{saved_sizes.get(name, 'nothing')}, expected {sizes.get(name, 'nothing')}"
            raise _other_model(path, f"{name} is {difference}")
    processes = 1 + max(int(name.split(".")[1]) for name in saved if name.startswith("own."))
    prefix = f"own.{rank % processes}."
    process_tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith(prefix)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as expected with one process
            checkpoint.load({**tensors, **process_tensors}, checkpoint_id=path)
    except READ_ERRORS as error:
        raise _damaged(path, error) from error
    step = int(path.name.split("-")[1])
    return step, {name.removeprefix(prefix): value for name, value in process_tensors.items()}


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged ({type(_first_cause(error)).__name__}); start without --resume")


def _other_model(path: Path, difference: str) -> UserError:
    return UserError(
        f"{path} is the state of another model or optimizer ({difference}); resume with the config it was started with"
    )


def _first_cause(error: BaseException) -> BaseException:
    """The first of the errors that a CheckpointException collects from the processes."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
