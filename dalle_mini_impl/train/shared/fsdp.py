"""Fully sharded data parallel training (FSDP2): each process holds a shard of every weight, gradient and moment.

accelerate's own FSDP2 works on accelerators only; on CPUs it silently trains unsharded copies. So PyTorch's
`fully_shard` is called here, in the same way on both. It is switched on as accelerate does it: `distributed_type: FSDP`
in the launcher's config file.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dalle_mini_impl.util.errors import UserError

M = TypeVar("M", bound=nn.Module)

HYBRID = ("HYBRID_SHARD", "4")
"""Values of `fsdp_sharding_strategy` for shards within each machine, and equal copies of them on all machines."""
SUPPORTED_OPTIONS: dict[str, tuple[str, ...]] = {
    "fsdp_version": ("2",),
    "fsdp_reshard_after_forward": ("true", "false"),
    "fsdp_sharding_strategy": ("FULL_SHARD", "1", *HYBRID),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP",),
    "fsdp_transformer_cls_to_wrap": ("Block", "ForeignBlock"),
    "fsdp_state_dict_type": ("SHARDED_STATE_DICT",),
    "fsdp_backward_prefetch": ("BACKWARD_PRE",),
    "fsdp_forward_prefetch": ("false",),
    "fsdp_use_orig_params": ("true",),
    "fsdp_offload_params": ("false",),
    "fsdp_activation_checkpointing": ("false",),
    "fsdp_activation_checkpointing_offload": ("false",),
    "fsdp_ignored_modules": (),
}
"""Options of the launcher's config file -> the values that say what is done here; one that is left out says nothing.
The launcher passes on defaults for some, which are among the values. Others (`fsdp_cpu_ram_efficient_loading`,
`fsdp_sync_module_states`, `fsdp_min_num_params`) concern what does not occur here: each process makes the whole model
from the seed, and each block is a unit."""
INSTEAD = {
    "fsdp_activation_checkpointing": "set recompute=true instead",
    "fsdp_activation_checkpointing_offload": "set recompute=true instead",
    "fsdp_sharding_strategy": "set fsdp_reshard_after_forward instead",
}
"""What to do instead of some options."""


def fsdp_requested() -> bool:
    """Whether the processes were launched with FSDP.

    Raises:
        UserError: with an option that is not supported here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return False
    for name, supported in SUPPORTED_OPTIONS.items():
        given = os.environ.get(name.upper())
        if given is not None and given not in supported:
            expected = f"expected {' or '.join(supported)}" if supported else "leave it out"
            instead = INSTEAD.get(name, "see configs/accelerate/gpus-8-fsdp.yaml")
            raise UserError(f"{name} is {given} in the launcher's file; {expected}; {instead}")
    return True


def wrap_model(
    accelerator: Accelerator, module: nn.Module, blocks: Iterable[nn.Module], compiled: bool = False
) -> nn.Module:
    """Wrap a model for distributed training: replicated (DDP), or sharded if the processes were launched with FSDP.

    Weights stay in float32 either way. With FSDP, one or two blocks at a time are gathered, in the precision of the
    computation; gradients are averaged in float32.

    Args:
        accelerator: the processes of the run.
        module: the model, identical in all processes, on the CPU; moved to the device, and sharded in place.
        blocks: submodules that are gathered one after the other; the rest of the model is one more unit.
        compiled: use torch.compile: on the whole model, or on each block of a sharded one.

    Returns:
        The module to call in training. `module` still holds the weights, or this process's shards of them.

    Raises:
        UserError: the processes cannot be divided among the machines.
    """
    if not fsdp_requested():
        prepared: Any = accelerator.prepare(module)
        return cast(nn.Module, torch.compile(prepared)) if compiled else prepared
    mesh = _mesh(accelerator)
    compute_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true"
    blocks = list(blocks)
    if compiled:  # before sharding, so that no compiled code has to gather weights
        for block in blocks:
            block.compile()
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    return module


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    """All processes in a row, or with hybrid sharding a row for each machine."""
    count, kind = accelerator.num_processes, accelerator.device.type
    if os.environ.get("FSDP_SHARDING_STRATEGY") not in HYBRID:
        return init_device_mesh(kind, (count,))
    in_machine = shard_count(count)
    if count % in_machine:
        raise UserError(
            f"expected equally many processes on each machine for hybrid sharding, got {count} in all and {in_machine} "
            f"on this one; change num_processes"
        )
    return init_device_mesh(kind, (count // in_machine, in_machine), mesh_dim_names=("machines", "processes"))


def shard_count(processes: int) -> int:
    """Among how many of all processes each weight is divided; 1 without FSDP."""
    if not fsdp_requested():
        return 1
    is_hybrid = os.environ.get("FSDP_SHARDING_STRATEGY") in HYBRID
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_hybrid else processes


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds shards of the module's weights instead of full weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor; a sharded one is gathered, for which all processes must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_shard(value: Tensor) -> Tensor:
    """Part of a tensor that this process holds; the tensor itself if it is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor | None) -> Tensor:
    """Shard a full tensor like another one, without communication.

    Args:
        value: the full tensor, identical in all processes.
        like: the tensor to follow.

    Returns:
        This process's shard; `value` itself if `like` is not sharded or has another shape.
    """
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather_full(accelerator: Accelerator, module: M, build: Callable[[], M]) -> M:
    """The module with full weights, for the main process to save or sample with; all processes must call this.

    Of a sharded module the main process gets a copy in main memory, gathered weight by weight.

    Args:
        accelerator: the processes of the run.
        module: the model.
        build: makes another module of the same shape.

    Returns:
        In the main process a module with full weights; in others `module`.
    """
    if not is_sharded(module):
        return module
    copy = module
    if accelerator.is_main_process:
        with torch.random.fork_rng(devices=[]):  # building must not change the run's random numbers
            copy = build()
    weights = copy.state_dict()
    for name, value in module.state_dict().items():
        gathered = full_tensor(value)
        if accelerator.is_main_process:
            weights[name].copy_(gathered)
    return copy.eval()
