"""Rows of training: one optimizer step of the transformer, of this package and of the peers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.peers import Peer
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.shapes import Shape, matrix_weights, train_cost
from dalle_mini_impl.bench.timing import median_seconds, peak_memory
from dalle_mini_impl.config.training import OptimizerConfig
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.train.losses.stream import StreamLoss, weighted_loss
from dalle_mini_impl.train.shared.optimizers import build_optimizers

IMAGE_WEIGHT = 7.0
"""Weight of the image loss; the text loss has weight 1. The peers use the same."""
PEER_RATE = 3e-4
"""Adam's learning rate in dalle-pytorch's training script."""


def stream_ids(stream: Stream, text_ids: Tensor, image_ids: Tensor) -> Tensor:
    """Streams (B, T) of captions of full length (B, L) and image ids (B, h * w)."""
    bos = torch.full((len(text_ids), 1), stream.config.bos_id, device=text_ids.device)
    return torch.cat([bos, text_ids, image_ids + stream.image_offset], 1)


def trainer(
    shape: Shape, device: str, optimizer: OptimizerConfig, compiled: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """A training step of this package: (text_ids, image_ids) -> loss.

    Args:
        shape: of the transformer.
        device: to train on.
        optimizer: settings of the optimizers.
        compiled: use torch.compile.
    """
    stream = shape.stream()
    model = StreamLoss(shape.build(), stream).to(device)
    optimizers = build_optimizers(model, optimizer)
    forward = torch.compile(model) if compiled else model

    def step(text_ids: Tensor, image_ids: Tensor) -> Tensor:
        ids = stream_ids(stream, text_ids, image_ids)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            text, image = forward(ids[:, :-1], ids[:, 1:])
        return apply_gradients(model, optimizers, weighted_loss(text, image, IMAGE_WEIGHT))

    return step


def peer_trainer(peer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A peer's training step with Adam, as in dalle-pytorch's own script."""
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(peer.model.parameters(), lr=PEER_RATE)]

    def step(text_ids: Tensor, image_ids: Tensor) -> Tensor:
        return apply_gradients(peer.model, optimizers, peer.loss(text_ids, image_ids))

    return step


def apply_gradients(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor, clip: float = 1.0
) -> Tensor:
    """Backward pass, gradient clipping and optimizer step; returns the loss without gradients."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def training_rows(
    shape: Shape, machine: MachineSpeed, peers: Mapping[str, Callable[[], Peer]], repeats: int, compiled: bool = True
) -> Iterator[BenchRow]:
    """Time optimizer steps: with AdamW alone as the peers have it, with Muon, and optionally with torch.compile."""
    batch = shape.train_batch
    text_ids = torch.randint(2, shape.text_vocab, (batch, shape.text_length), device=machine.device)
    image_ids = torch.randint(0, shape.image_vocab, (batch, shape.image_length), device=machine.device)
    adamw, muon = OptimizerConfig(), OptimizerConfig(muon_learning_rate=0.02)
    peer_steps = {name: peer_trainer(build()) for name, build in peers.items()}
    own_steps = {
        "train": trainer(shape, machine.device, adamw, False),
        "train/muon": trainer(shape, machine.device, muon, False),
    }
    if compiled:
        own_steps["train/compiled"] = trainer(shape, machine.device, adamw, True)
    runs = {name: lambda step=step: step(text_ids, image_ids) for name, step in {**own_steps, **peer_steps}.items()}
    seconds = median_seconds(runs, machine.device, repeats, warm_up=2)
    cost = train_cost(shape, matrix_weights(shape.build()), batch)
    least_seconds = machine.seconds(cost.flops, cost.bytes_moved, "bf16")
    for name in own_steps:
        memory = peak_memory(runs[name], machine.device)
        note = f"{batch * (shape.length - 1) / seconds[name]:.0f} ids/s, {memory / 2**20:.0f} MiB"
        for peer in [*peer_steps] or [""]:
            yield BenchRow(
                name,
                seconds[name],
                peer,
                seconds.get(peer, torch.nan),
                least_seconds / seconds[name],
                note,
                details={"shape": shape.name, "batch": batch},
            )
