"""What a run needs to be resumed as if nothing had happened: saved now and then, whole or not at all.

    state.pt          of a model that is whole in each process; written by the main one
    state-00000200/   of a model that is shared out, after step 200; each process writes and reads its own share

The second is torch.distributed.checkpoint's, so any number of processes can go on with it. Its index is a pickle:
resume from states of your own.
"""

import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from dalle_mini_impl.errors import UserError
from dalle_mini_impl.files import replace_file
from dalle_mini_impl.train.average import Average
from dalle_mini_impl.train.runs import RunConfig
from dalle_mini_impl.train.sharding import is_shared_out

WHOLE, SHARES = "state.pt", "state-*"
DAMAGE = (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, CheckpointException)
"""What comes of reading a file that was cut short or altered."""


def save_state(
    accelerator: Accelerator,
    run: RunConfig,
    step: int,
    model: nn.Module,
    optimizers: list[Any],
    average: Average,
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
    if is_shared_out(model):
        mine = {"rng": torch.get_rng_state(), **own}
        shares = _shared(model, optimizers, average)
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
    accelerator.wait_for_everyone()


def load_state(
    accelerator: Accelerator,
    run: RunConfig,
    model: nn.Module,
    optimizers: list[Any],
    average: Average,
    **own: Tensor,
) -> int:
    """Restore the last saved state, in place, and return the step to go on with.

    With other processes than before, what each had of its own is dealt out again.

    Raises:
        UserError: there is none, it is damaged, or it is of another model; or the run goes by the clock.
    """
    if run.minutes:
        raise UserError(f"--resume was given with run.minutes={run.minutes:g}; nobody knows what the clock showed, "
                        f"so start without --resume, or set run.steps instead")  # fmt: skip
    folder, process, model = Path(run.state_dir), accelerator.process_index, accelerator.unwrap_model(model)
    if is_shared_out(model):
        _make_moments(optimizers)
        step, others = _load_shares(folder, process, _shared(model, optimizers, average))
    else:
        step, others = _load_whole(folder, process, model, optimizers, average)
    torch.set_rng_state(others["rng"])
    if accelerator.device.type == "cuda" and "cuda_rng" in others:
        torch.cuda.set_rng_state(others["cuda_rng"], accelerator.device)
    for name in own.keys() & others.keys():
        own[name].copy_(others[name])
    return step


def forget_states(folder: Path) -> None:
    """Remove all states of earlier runs."""
    (folder / WHOLE).unlink(missing_ok=True)
    for shares in folder.glob(SHARES):
        shutil.rmtree(shares)


def _load_whole(
    folder: Path, process: int, model: nn.Module, optimizers: list[Any], average: Average
) -> tuple[int, dict[str, Tensor]]:
    path = folder / WHOLE
    if not path.is_file():
        raise _missing(path, folder.glob(SHARES))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    try:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, ValueError) as error:
        raise _other_model(path, str(error).splitlines()[0]) from error
    for name, value in state["average"].items():
        average.state[name].copy_(value)
    process %= len(state["rng"])
    others = state["own"][process] if "own" in state else {}
    return int(state["step"]), {"rng": state["rng"][process], **others}


def _shared(model: nn.Module, optimizers: list[Any], average: Average) -> dict[str, Tensor]:
    """Everything that is shared out, by names that say what it is; changing the tensors changes the run."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state.items()}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            tensors |= {f"moments.{names[parameter]}.{name}": value for name, value in moments.items()}
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
        raise UserError(f"cannot write {target}: {_cause(error)}; choose a writable place") from error
    if accelerator.is_main_process:
        partial.rename(target)
        for earlier in set(target.parent.glob(SHARES)) - {target}:
            shutil.rmtree(earlier)
    accelerator.wait_for_everyone()


def _load_shares(folder: Path, process: int, shares: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    path = max(folder.glob(SHARES), default=folder / SHARES)
    if not path.is_dir():
        raise _missing(path, folder.glob(WHOLE))
    try:
        saved: dict[str, Any] = checkpoint.FileSystemReader(path).read_metadata().state_dict_metadata
    except DAMAGE as error:
        raise _damaged(path, error) from error
    there = {name: list(entry.size) for name, entry in saved.items() if not name.startswith("own.")}
    here = {name: list(share.size()) for name, share in shares.items()}
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
        checkpoint.load({**shares, **others}, checkpoint_id=path)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return int(path.name.split("-")[1]), {name.removeprefix(prefix): value for name, value in others.items()}


def _missing(path: Path, others: Iterable[Path]) -> UserError:
    """What to say when there is no state of the kind that is wanted."""
    other = max(others, default=None)
    advice = f"{other} does, so launch it the way it was launched" if other else "start without it"
    return UserError(f"--resume was given but {path} does not exist; {advice}")


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged ({type(_cause(error)).__name__}); start without --resume")


def _other_model(path: Path, difference: str) -> UserError:
    return UserError(f"{path} is the state of another model or optimizer ({difference}); "
                     f"resume with the config it was started with")  # fmt: skip


def _cause(error: BaseException) -> BaseException:
    """The first of what went wrong in several processes."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
