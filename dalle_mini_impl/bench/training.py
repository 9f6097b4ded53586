"""Rows of training: one optimizer step of the transformer, ours beside the peers'."""

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
from dalle_mini_impl.train.losses.stream import StreamLoss
from dalle_mini_impl.train.shared.optimizers import build_optimizers

IMAGE_WEIGHT = 7.0


def stream_ids(stream: Stream, text_ids: Tensor, image_ids: Tensor) -> Tensor:
    """Whole streams (B, T) of full-length captions (B, L) and image ids (B, h * w)."""
    bos = torch.full((len(text_ids), 1), stream.config.bos_id, device=text_ids.device)
    return torch.cat([bos, text_ids, image_ids + stream.image_offset], 1)


def trainer(
    shape: Shape, device: str, optimizer: OptimizerConfig, compiled: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Our training step at a shape: (text_ids, image_ids) -> the loss, after the weights have moved."""
    stream = shape.stream()
    model = StreamLoss(shape.build(), stream).to(device)
    optimizers = build_optimizers(model, optimizer)
    forward = torch.compile(model) if compiled else model

    def step(text_ids: Tensor, image_ids: Tensor) -> Tensor:
        ids = stream_ids(stream, text_ids, image_ids)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            text, image = forward(ids[:, :-1], ids[:, 1:])
        loss = (text + IMAGE_WEIGHT * image) / (1 + IMAGE_WEIGHT)
        return finish(model, optimizers, loss)

    return step


def peer_trainer(peer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A peer's training step with Adam, as its own script has it."""
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(peer.model.parameters(), lr=3e-4)]

    def step(text_ids: Tensor, image_ids: Tensor) -> Tensor:
        return finish(peer.model, optimizers, peer.loss(text_ids, image_ids))

    return step


def finish(model: nn.Module, optimizers: list[torch.optim.Optimizer], loss: Tensor, clip: float = 1.0) -> Tensor:
    """Backward, clip, move."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def training_rows(
    shape: Shape, machine: MachineSpeed, peers: Mapping[str, Callable[[], Peer]], repeats: int, compiled: bool = True
) -> Iterator[BenchRow]:
    """Time optimizer steps: AdamW alone as the peers have it, with Muon, and if wanted `torch.compile`d."""
    batch = shape.train_batch
    text_ids = torch.randint(2, shape.text_vocab, (batch, shape.text_length), device=machine.device)
    image_ids = torch.randint(0, shape.image_vocab, (batch, shape.image_length), device=machine.device)
    adamw, muon = OptimizerConfig(), OptimizerConfig(muon_learning_rate=0.02)
    steps = {name: peer_trainer(build()) for name, build in peers.items()}
    own = {
        "train": trainer(shape, machine.device, adamw, False),
        "train/muon": trainer(shape, machine.device, muon, False),
    }
    if compiled:
        own["train/compiled"] = trainer(shape, machine.device, adamw, True)
    runs = {name: lambda step=step: step(text_ids, image_ids) for name, step in {**own, **steps}.items()}
    seconds = median_seconds(runs, machine.device, repeats, warm_up=2)
    cost = train_cost(shape, matrix_weights(shape.build()), batch)
    least = machine.seconds(cost.flops, cost.bytes_moved, "bf16")
    for name in own:
        memory = peak_memory(runs[name], machine.device)
        note = f"{batch * (shape.length - 1) / seconds[name]:.0f} ids/s, {memory / 2**20:.0f} MiB"
        for peer in [*steps] or [""]:
            yield BenchRow(
                name,
                seconds[name],
                peer,
                seconds.get(peer, torch.nan),
                least / seconds[name],
                note,
                details={"shape": shape.name, "batch": batch},
            )
