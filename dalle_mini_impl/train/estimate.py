"""Estimates what training a transformer takes from its config: nothing is allocated, nothing runs.

The model is built from fake tensors, which have shapes and no contents, and the tensors that a backward pass keeps are
counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle_mini_impl.config.model import StreamConfig
from dalle_mini_impl.config.training import TransformerRun
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.optimizers import build_optimizers
from dalle_mini_impl.util.errors import UserError

BF16, FP32 = 2, 4
FREE = 0.9
"""Fraction of a GPU's memory that can be used; the rest goes to kernels, buffers and gaps."""


@dataclass(frozen=True)
class Needs:
    """What a config needs, independent of the machine."""

    parameters: int
    in_blocks: int
    """Of these parameters; the rest are embeddings, head and last norm."""
    gathered: int
    """Bytes of the largest part that is gathered at a time with sharding."""
    ids: int
    """Positions that are predicted per picture, T - 1."""
    states: int
    """Bytes of weights, gradients, optimizer moments and EMA."""
    kept: int
    """Bytes of activations kept for the backward pass of one picture."""
    flops: float
    """Operations of the forward and backward pass of one picture."""


@dataclass(frozen=True)
class TrainingMachine:
    """The GPUs to train on."""

    gpus: int
    memory: float
    """Bytes per GPU."""
    flops: float
    """Operations a second that each GPU achieves in training, which is less than its data sheet says."""


@dataclass(frozen=True)
class Estimate:
    """Memory and time of one way of training."""

    sharded: bool
    """Whether weights, gradients and moments are sharded (FSDP) or complete on each GPU (DDP)."""
    states: float
    """Bytes per GPU."""
    pictures_at_once: int
    """Pictures whose activations fit beside the states, per GPU; 0 if none does."""
    days: float


def count(config: TransformerRun, stream: StreamConfig) -> Needs:
    """Count what a transformer config needs."""
    layout = Stream(stream)
    ids = layout.length - 1
    with FakeTensorMode():
        model = StreamLoss(build_transformer(config.model, stream), layout)
        parameters = list(model.parameters())
        total = sum(p.numel() for p in parameters)
        moments = sum(
            p.numel() * (2 if isinstance(optimizer, torch.optim.AdamW) else 1)
            for optimizer in build_optimizers(model, config.optimizer)
            for group in optimizer.param_groups
            for p in group["params"]
        )
        kept = _kept(model, layout)
        if config.recompute:
            recomputing = StreamLoss(build_transformer(config.model, stream, recompute=True), layout)
            little = _kept(recomputing, layout)
            kept = little + (kept - little) // config.model.n_layer  # of one block after the other, all
    matrices = sum(p.numel() for p in model.transformer.blocks.parameters() if p.ndim == 2)
    block = sum(p.numel() for p in model.transformer.blocks[0].parameters())
    rest, width = total - config.model.n_layer * block, BF16 if config.run.precision == "bf16" else FP32
    return Needs(
        parameters=total,
        in_blocks=config.model.n_layer * block,
        # Weights and gradients of all but the blocks, of a block and the next one; some of it again as it is reduced.
        gathered=2 * width * (rest + 2 * block) + FP32 * max(rest, block),
        ids=ids,
        states=FP32 * (2 * total + moments + (total if config.run.ema else 0)),
        kept=kept,
        flops=_flops(config, stream, matrices, ids),
    )


def _kept(model: StreamLoss, layout: Stream) -> int:
    """Bytes kept for one picture's backward pass: what one more adds, as what belongs to the weights is kept once."""
    return _kept_of(model, layout, 3) - _kept_of(model, layout, 2)


def _kept_of(model: StreamLoss, layout: Stream, pictures: int) -> int:
    """Bytes kept for several pictures; attention's scores are left out, which fused kernels do not keep."""
    kept: dict[int, int] = {}
    heads, ids_each = model.transformer.n_head, layout.length - 1
    scores = ((pictures, heads, ids_each, ids_each), (pictures * heads, ids_each, ids_each))

    def keep(x: Tensor) -> Tensor:
        if x.shape not in scores:
            kept[id(x.untyped_storage())] = x.untyped_storage().nbytes()
            held.append(x)
        return x

    held: list[Tensor] = []  # so that no place in memory is given to two
    ids = layout.join(layout.prefix([[]] * pictures), torch.zeros(pictures, *layout.config.grid, dtype=torch.int64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:])
    del loss
    return sum(kept.values())


def _flops(config: TransformerRun, stream: StreamConfig, matrices: int, ids: int) -> float:
    """Two operations per weight and position forward, twice that backward (Kaplan et al. 2020); attention likewise.

    Causal attention needs half of the pairs of positions, and each position only the logits of its own kind.
    """
    text = stream.text_length
    head = config.model.n_embd * (text * (stream.text_vocab + text) + (ids - text) * stream.image_vocab)
    attention = 4 * config.model.n_layer * config.model.n_embd * ids**2 / 2
    forward = 2 * (matrices * ids + head) + attention
    again = 2 * matrices * ids + attention if config.recompute else 0
    return 3 * forward + again


def plans(needs: Needs, machine: TrainingMachine, pictures: float) -> Iterator[Estimate]:
    """Estimates for training on so many pictures: with a full copy on each GPU, and sharded.

    Raises:
        UserError: a number is not positive.
    """
    if min(machine.gpus, machine.memory, machine.flops, pictures) <= 0:
        raise UserError(
            f"gpus {machine.gpus}, memory {machine.memory:g}, FLOP/s {machine.flops:g} and pictures "
            f"{pictures:g} were given; all must be above 0"
        )
    days = pictures * needs.flops / (machine.gpus * machine.flops) / 86400
    for sharded in (False, True) if machine.gpus > 1 else (False,):
        states = needs.states / machine.gpus + needs.gathered if sharded else needs.states
        fitting = max(0, int((FREE * machine.memory - states) // needs.kept))
        yield Estimate(sharded, states, fitting, days)
