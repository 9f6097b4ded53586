"""Estimates what training a transformer takes from its config, without allocating or running anything.

The model is built of fake tensors, which have shapes but no storage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.memory import BF16, FP32
from dalle_mini_impl.train.shared.optimizers import build_optimizers
from dalle_mini_impl.util.errors import UserError

USABLE_MEMORY = 0.9
"""Share of a GPU's memory to plan with; the rest is left to kernels, buffers and fragmentation."""
SECONDS_PER_DAY = 86400
FULL_PASS = 8192
"""Positions of a pass on each GPU from which its matrix products are large enough to keep it busy."""
MAX_TENSOR_NUMBERS = 10**17
"""Torch cannot count the bytes of tensors with more than some 100 times as many numbers."""
LARGEST_NUMBER = 1e30
"""Largest number that a machine is described by."""


@dataclass(frozen=True)
class Needs:
    """What training needs, on any machine."""

    parameters: int
    """Parameters of the model."""
    in_blocks: int
    """Parameters in the blocks; the others are embeddings, head and last norm."""
    gathered: int
    """Bytes of the weights and gradients that exist unsharded at one time, with FSDP."""
    ids: int
    """Positions predicted per picture, T - 1."""
    states: int
    """Bytes of weights, gradients, optimizer moments and EMA."""
    activations: int
    """Bytes of activations stored for one picture's backward pass."""
    flops: float
    """Operations of the forward and backward pass of one picture."""


@dataclass(frozen=True)
class TrainingMachine:
    """The machine to train on."""

    gpus: int
    """Number of GPUs."""
    memory: float
    """Bytes per GPU."""
    flops: float
    """Operations per second that each GPU achieves in training, which is less than its peak."""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of one way of training."""

    sharded: bool
    """Whether weights, gradients and moments are sharded over the GPUs (FSDP) or replicated on each (DDP)."""
    states: float
    """Bytes of states per GPU."""
    pictures_at_once: int
    """Pictures whose activations fit into each GPU beside the states; 0 if none."""
    days: float
    """Duration of the training."""


@dataclass(frozen=True)
class Proposal:
    """How to train with a batch: settings of the run, and of the launch."""

    sharded: bool
    """Whether to launch with FSDP."""
    recompute: bool
    """The config's `recompute`."""
    accumulation: int
    """The config's `run.accumulation`."""
    pictures: int
    """Pictures in each pass on each GPU."""
    days: float
    """Duration of the training."""


def block_count(config: TransformerRun) -> int:
    """How many blocks `count` runs, for a progress bar."""
    return 4 * config.model.n_layer


def count(
    config: TransformerRun, stream: StreamConfig, progress: Callable[[int], object] = lambda blocks: None
) -> Needs:
    """Count parameters, bytes and operations of a transformer config; see `count_both`."""
    return count_both(config, stream, progress)[config.recompute]


def count_both(
    config: TransformerRun, stream: StreamConfig, progress: Callable[[int], object] = lambda blocks: None
) -> tuple[Needs, Needs]:
    """Count parameters, bytes and operations without and with `recompute`, whichever the config has.

    Args:
        config: of the transformer stage.
        stream: its layout.
        progress: called with 1 after each block that was run.

    Raises:
        UserError: the sizes do not fit together, or torch could not count the bytes of a tensor.
    """
    layout = Stream(stream)
    model_config, length = config.model, layout.length
    widest = max(model_config.block.hidden, 4 * model_config.n_embd, 3 * model_config.n_head * model_config.head_dim)
    largest = max(length * length * model_config.n_head, widest * max(length, layout.vocab_size, widest))
    if largest > MAX_TENSOR_NUMBERS:
        raise UserError(
            f"expected sizes whose tensors have at most {MAX_TENSOR_NUMBERS:.0e} numbers, got one of {largest:.0e}; "
            f"make the sizes of the model, its text or its grid smaller"
        )
    ids = layout.length - 1
    with FakeTensorMode():
        model = StreamLoss(build_transformer(config.model, stream), layout)
        total = sum(p.numel() for p in model.parameters())
        moments = sum(
            p.numel() * (2 if isinstance(optimizer, torch.optim.AdamW) else 1)
            for optimizer in build_optimizers(model, config.optimizer)
            for group in optimizer.param_groups
            for p in group["params"]
        )
        activations = _activations(model, layout, progress)
        recomputing = StreamLoss(build_transformer(config.model, stream, recompute=True), layout)
        always_stored = _activations(recomputing, layout, progress)
    matrices = sum(p.numel() for p in model.transformer.blocks.parameters() if p.ndim == 2)
    depth = getattr(model.transformer, "depth", None)
    depth_matrices = sum(p.numel() for p in depth.parameters() if p.ndim == 2) if depth else 0
    block = sum(p.numel() for p in model.transformer.blocks[0].parameters())
    outside = total - config.model.n_layer * block
    width = FP32 if config.run.precision == "fp32" else BF16
    without = Needs(
        parameters=total,
        in_blocks=config.model.n_layer * block,
        # Weights and gradients outside of the blocks, of one block and of the next, which is prefetched; and an fp32
        # copy of the largest of these while its gradients are reduced.
        gathered=2 * width * (outside + 2 * block) + FP32 * max(outside, block),
        ids=ids,
        states=FP32 * (2 * total + moments + (total if config.run.ema else 0)),
        activations=activations,
        flops=_flops(replace(config, recompute=False), layout, matrices, depth_matrices),
    )
    # The rest is recomputed; at any time only one block's part of it is stored.
    stored = always_stored + (activations - always_stored) // config.model.n_layer
    flops = _flops(replace(config, recompute=True), layout, matrices, depth_matrices)
    return without, replace(without, activations=stored, flops=flops)


def _activations(model: StreamLoss, layout: Stream, progress: Callable[[int], object] = lambda blocks: None) -> int:
    """Bytes stored for one picture's backward pass.

    The difference between three pictures and two, because tensors that belong to the weights are stored only once.
    """

    def count_block(*_: object) -> None:  # what a hook returns would replace the block's output
        progress(1)

    hooks = [block.register_forward_hook(count_block) for block in model.transformer.blocks]
    try:
        return _stored_bytes(model, layout, 3) - _stored_bytes(model, layout, 2)
    finally:
        for hook in hooks:
            hook.remove()


def _stored_bytes(model: StreamLoss, layout: Stream, pictures: int) -> int:
    """Bytes stored for the backward pass of several pictures, without the attention scores.

    Fused attention kernels do not store those.
    """
    bytes_by_storage: dict[int, int] = {}
    heads = model.transformer.n_head
    positions = layout.positions - 1
    score_shapes = ((pictures, heads, positions, positions), (pictures * heads, positions, positions))
    stored: list[Tensor] = []  # keeps the storages alive, so that no two of them have the same id

    def pack(x: Tensor) -> Tensor:
        if x.shape not in score_shapes:
            bytes_by_storage[id(x.untyped_storage())] = x.untyped_storage().nbytes()
            stored.append(x)
        return x

    image_ids = torch.zeros(pictures, *layout.config.grid, dtype=torch.int64)
    stream_ids = layout.join(layout.prefix([[]] * pictures), image_ids)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = model(stream_ids[:, :-1], stream_ids[:, 1:])
    del loss
    return sum(bytes_by_storage.values())


def _flops(config: TransformerRun, layout: Stream, matrices: int, depth_matrices: int) -> float:
    """Operations per picture: 2 per weight and position forward, twice that backward (Kaplan et al. 2020).

    Attention is counted likewise: causal attention needs half of the pairs of positions. Each position needs the logits
    of its own kind only, text or image. With patches the backbone has fewer positions than there are image ids, each of
    which is a position of the depth transformer.
    """
    stream, model = layout.config, config.model
    text_ids = layout.prefix_length - max(1, layout.text_offset)
    image_ids = layout.image_length
    positions = layout.positions - 1
    head = model.n_embd * (text_ids * (stream.text_vocab + stream.text_length) + image_ids * stream.image_vocab)
    attention = 4 * model.n_layer * model.n_embd * positions**2 / 2
    blocks = 2 * matrices * positions + attention
    depth = 0.0
    if depth_matrices:
        depth = (
            2 * depth_matrices * image_ids + 4 * model.depth_layers * model.n_embd * image_ids * layout.patch_length / 2
        )
    return 3 * (blocks + depth + 2 * head) + (blocks if config.recompute else 0)


def plans(needs: Needs, machine: TrainingMachine, pictures: float) -> Iterator[Estimate]:
    """Estimate the ways to train: replicated on each GPU and, with several GPUs, sharded over them.

    Args:
        needs: of the config.
        machine: to train on.
        pictures: pictures to train on, repetitions counted.

    Raises:
        UserError: a number is not positive, or is too large.
    """
    numbers = (machine.gpus, machine.memory, machine.flops, pictures)
    if not all(0 < number <= LARGEST_NUMBER for number in numbers):
        raise UserError(
            f"expected GPUs, memory, FLOP/s and pictures above 0 and at most {LARGEST_NUMBER:g}, got {machine.gpus}, "
            f"{machine.memory:g}, {machine.flops:g} and {pictures:g}; change the one that is not"
        )
    days = pictures * needs.flops / (machine.gpus * machine.flops) / SECONDS_PER_DAY
    for sharded in (False, True) if machine.gpus > 1 else (False,):
        states = needs.states / machine.gpus + needs.gathered if sharded else needs.states
        fitting = max(0, int((USABLE_MEMORY * machine.memory - states) // needs.activations))
        yield Estimate(sharded, states, fitting, days)


def propose(needs: tuple[Needs, Needs], machine: TrainingMachine, batch_size: int, pictures: float) -> Proposal | None:
    """The fastest way to train with a batch that fits into the memory.

    Recomputing costs operations and sharding an exchange in every pass; accumulation costs nothing, as long as a pass
    is large enough for a GPU (`FULL_PASS`). So of the ways with passes that large it is the one without recomputing,
    then the one without sharding.

    Args:
        needs: from `count_both`.
        machine: to train on.
        batch_size: pictures per optimizer step.
        pictures: pictures to train on, repetitions counted.

    Returns:
        None if nothing fits, or the GPUs cannot share the batch equally.

    Raises:
        UserError: as `plans`.
    """
    if batch_size % machine.gpus:
        return None
    share = batch_size // machine.gpus
    ways = []
    for recompute, need in enumerate(needs):
        for way in plans(need, machine, pictures):
            passes = [number for number in range(1, share + 1) if share % number == 0]
            fitting = [number for number in passes if share // number <= way.pictures_at_once]
            if fitting:
                rows = share // fitting[0]
                is_small = fitting[0] > 1 and rows * need.ids < FULL_PASS
                proposal = Proposal(way.sharded, bool(recompute), fitting[0], rows, way.days)
                ways.append(((is_small, recompute, way.sharded), proposal))
    return min(ways, key=lambda way: way[0])[1] if ways else None
