"""The state from which a run resumes exactly. It is written completely or not at all.

    state.pt          full state, written by the main process
    state-00000200/   sharded state after step 200; each process writes and reads its shards

Either is read by any number of processes, with a full or a sharded model. The second has the format of
torch.distributed.checkpoint, whose index is a pickle: resume only from states of your own.
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

WHOLE, SHARES = "state.pt", "state-*"
DAMAGE = (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, CheckpointException)
"""Exceptions of reading a file that is truncated or altered."""


def save_state(
    accelerator: Accelerator,
    run: RunConfig,
    step: int,
    model: nn.Module,
    optimizers: list[Any],
    average: Ema,
    **own: Tensor,
) -> None:
    """Write everything that `load_state` needs to continue after `step` as if nothing had happened.

    `own` are further CPU tensors to keep, of which each process has its own.

    Raises:
        UserError: the place cannot be written to.
    """
    model = accelerator.unwrap_model(model)
    if accelerator.device.type == "cuda":
        own["cuda_rng"] = torch.cuda.get_rng_state(accelerator.device)
    if is_sharded(model):
        mine = {"rng": torch.get_rng_state(), **own}
        shares = _by_name(model, optimizers, average)
        shares |= {f"own.{accelerator.process_index}.{name}": value for name, value in mine.items()}
        _save_shares(accelerator, Path(run.state_dir) / SHARES.replace("*", f"{step + 1:08d}"), shares)
        return
    states = accelerator.gather_for_metrics([(torch.get_rng_state(), own)], use_gather_object=True)
    if accelerator.is_main_process:
        state = {
            "step": step + 1,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "average": average.state,
            "rng": [rng for rng, _ in states],
            "own": [others for _, others in states],
        }
        with replace_file(Path(run.state_dir) / WHOLE) as temporary:
            torch.save(state, temporary)
        forget_states(Path(run.state_dir), but=WHOLE)
    accelerator.wait_for_everyone()


def load_state(
    accelerator: Accelerator,
    run: RunConfig,
    model: nn.Module,
    optimizers: list[Any],
    average: Ema,
    **own: Tensor,
) -> int:
    """Restore the last saved state, full or sharded, in place, and return the step to continue with.

    With another number of processes, the states that each process has of its own are redistributed.

    Raises:
        UserError: there is no state, it is damaged, or it belongs to another model; or the run is limited by time.
    """
    if run.minutes:
        raise UserError(
            f"--resume was given with run.minutes={run.minutes:g}; a run that is limited by time cannot be resumed; "
            f"start without --resume, or set run.steps instead"
        )
    folder, process, model = Path(run.state_dir), accelerator.process_index, accelerator.unwrap_model(model)
    # A kill may leave both, the sharded one half deleted; they hold the same step.
    path = folder / WHOLE if (folder / WHOLE).is_file() else max(folder.glob(SHARES), default=None)
    if path is None:
        raise UserError(f"--resume was given but {folder} has neither {WHOLE} nor {SHARES}; start without it")
    load = _load_whole if path.name == WHOLE else _load_shares
    step, others = load(path, process, model, optimizers, average)
    torch.set_rng_state(others["rng"])
    if accelerator.device.type == "cuda" and "cuda_rng" in others:
        torch.cuda.set_rng_state(others["cuda_rng"], accelerator.device)
    for name in own.keys() & others.keys():
        own[name].copy_(others[name])
    return step


def forget_states(folder: Path, but: str = "") -> None:
    """Remove all states from a folder, or all but the one of that name."""
    if but != WHOLE:
        (folder / WHOLE).unlink(missing_ok=True)
    for shares in folder.glob(SHARES):
        if shares.name != but:
            shutil.rmtree(shares)


def _load_whole(
    path: Path, process: int, model: nn.Module, optimizers: list[Any], average: Ema
) -> tuple[int, dict[str, Tensor]]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    weights = model.state_dict()
    try:
        model.load_state_dict({name: shard_like(value, weights.get(name)) for name, value in state["model"].items()})
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict({**saved, "state": _moments(optimizer, saved["state"])})
    except (RuntimeError, ValueError) as error:
        raise _other_model(path, str(error).splitlines()[0]) from error
    for name, value in state["average"].items():
        average.state[name].copy_(shard_like(value, average.state[name]))
    process %= len(state["rng"])
    others = state["own"][process] if "own" in state else {}
    return int(state["step"]), {"rng": state["rng"][process], **others}


def _moments(optimizer: Any, saved: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """Copies of the moments in a file, or of this process's share of them, for the optimizer to take over."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {
            name: shard_like(value, parameter).to(parameter.device, copy=True) for name, value in saved[number].items()
        }
        for number, parameter in enumerate(parameters)
        if number in saved
    }


def _by_name(model: nn.Module, optimizers: list[Any], average: Ema) -> dict[str, Tensor]:
    """All that training changes, by names that say what it is; changing the tensors changes the run."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state.items()}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():  # matrices that Muon made of convolutions have no name
            tensors |= {f"moments.{names.get(parameter)}.{name}": value for name, value in moments.items()}
    return tensors


def _make_moments(optimizers: list[Any]) -> None:
    """Have optimizers make their moments, which they do in their first step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()


def _save_shares(accelerator: Accelerator, target: Path, shares: dict[str, Tensor]) -> None:
    """Write into a folder that gets its name when all processes have written; states before it go after that."""
    partial = target.with_name(".state.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        checkpoint.save(shares, checkpoint_id=partial)
    except CheckpointException as error:
        raise UserError(f"cannot write {target}: {_cause(error)}; choose a writable path") from error
    if accelerator.is_main_process:
        partial.rename(target)
        forget_states(target.parent, but=target.name)
    accelerator.wait_for_everyone()


def _load_shares(
    path: Path, process: int, model: nn.Module, optimizers: list[Any], average: Ema
) -> tuple[int, dict[str, Tensor]]:
    try:
        saved: dict[str, Any] = checkpoint.FileSystemReader(path).read_metadata().state_dict_metadata
    except DAMAGE as error:
        raise _damaged(path, error) from error
    there = {name: list(entry.size) for name, entry in saved.items() if not name.startswith("own.")}
    _make_moments(optimizers)
    tensors = _by_name(model, optimizers, average)
    here = {name: list(value.size()) for name, value in tensors.items()}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            sizes = f"{there.get(name, 'nothing')}, expected {here.get(name, 'nothing')}"
            raise _other_model(path, f"{name} is {sizes}")
    processes = 1 + max(int(name.split(".")[1]) for name in saved if name.startswith("own."))
    prefix = f"own.{process % processes}."
    others = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith(prefix)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is where there is one process
            checkpoint.load({**tensors, **others}, checkpoint_id=path)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return int(path.name.split("-")[1]), {name.removeprefix(prefix): value for name, value in others.items()}


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged ({type(_cause(error)).__name__}); start without --resume")


def _other_model(path: Path, difference: str) -> UserError:
    return UserError(
        f"{path} is the state of another model or optimizer ({difference}); resume with the config it was started with"
    )


def _cause(error: BaseException) -> BaseException:
    """The first of what went wrong in several processes."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
