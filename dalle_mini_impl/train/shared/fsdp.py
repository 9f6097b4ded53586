"""One model shared out among processes (FSDP2): each holds a part of every weight, gradient, moment and average.

accelerate's own FSDP2 runs on accelerators only; on CPUs it silently trains full copies. So `fully_shard` is called
here, the same way on both. The switch is accelerate's: `distributed_type: FSDP` in the launcher's file.
"""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dalle_mini_impl.util.errors import UserError

M = TypeVar("M", bound=nn.Module)

OPTIONS = {
    "fsdp_version": "2",
    "fsdp_offload_params": "false",
    "fsdp_reshard_after_forward": "true",
    "fsdp_activation_checkpointing": "false",
}
"""Settings of the launcher's file that would change what is done, and the one value of each that is known here."""


def fsdp_requested() -> bool:
    """Whether the processes were launched to share a model out.

    Raises:
        UserError: in a way that is not known here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return False
    for name, known in OPTIONS.items():
        given = os.environ.get(name.upper(), known)
        if given != known:
            raise UserError(
                f"{name} is {given} in the launcher's file; expected {known}, as in configs/accelerate/gpus-8-fsdp.yaml"
            )
    return True


def wrap_model(accelerator: Accelerator, module: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
    """Wrap a model for the launched processes: a full copy in each (DDP), or sharded (FSDP2) if that was requested.

    Weights stay in float32 either way. With FSDP2, complete blocks exist one or two at a time, in the precision they
    are computed in; gradients are averaged in float32.

    Args:
        accelerator: of the run.
        module: the model, the same in all processes, on the CPU; moved to the device and changed in place.
        blocks: the parts of the model that are gathered one after the other; the rest is gathered as one more part.

    Returns:
        The module to call in training. `module` holds the weights, or this process's shards of them.
    """
    if not fsdp_requested():
        return accelerator.prepare(module)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    lower = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=lower, reduce_dtype=torch.float32)
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only shards of the module's weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor; if it is sharded, all processes must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor | None) -> Tensor:
    """Shard a full tensor as `like` is sharded; unchanged if that is unsharded or of another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather_full(accelerator: Accelerator, module: M, build: Callable[[], M]) -> M:
    """The module with all of its weights, for the main process to save or sample from; all processes must call this.

    If it is sharded, the main process gets a copy in main memory, gathered weight by weight.

    Args:
        accelerator: of the run.
        module: the model.
        build: makes another one like it.

    Returns:
        In the main process a module with all weights; in the others the given one.
    """
    if not is_sharded(module):
        return module
    copy = module
    if accelerator.is_main_process:
        with torch.random.fork_rng(devices=[]):
            copy = build()
    weights = copy.state_dict()
    for name, value in module.state_dict().items():
        gathered = full_tensor(value)
        if accelerator.is_main_process:
            weights[name].copy_(gathered)
    return copy.eval()
