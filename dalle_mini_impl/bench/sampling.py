"""Rows of sampling: candidates for one caption, with and without guidance, ours beside the peers'."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.bench.machine import MachineSpeed
from dalle_mini_impl.bench.peers import GUIDANCE, TOP_K, DallePytorch, Peer
from dalle_mini_impl.bench.report import BenchRow
from dalle_mini_impl.bench.shapes import Shape, decode_cost, matrix_weights
from dalle_mini_impl.bench.timing import median_seconds, peak_memory
from dalle_mini_impl.config.sampling import SamplingConfig
from dalle_mini_impl.interop.image.dalle_pytorch import HALF
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.whole import dalle_pytorch as dalle_pytorch_model
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import Prompt, generate
from dalle_mini_impl.sampling.packing import choose_precision, pack


@dataclass(frozen=True)
class Contest:
    """A model of ours and others that draw the same number of ids."""

    name: str
    """What the rows' names begin with."""
    shape: Shape
    stream: Stream
    transformer: Transformer
    """Ours, on the machine's device."""
    peers: Mapping[str, Peer]


def sampling_rows(
    shape: Shape,
    machine: MachineSpeed,
    peers: Mapping[str, Callable[[], Peer]],
    repeats: int,
    counts: Sequence[int],
    modes: Sequence[bool] = (True, False),
) -> Iterator[BenchRow]:
    """Time drawing the image ids of several candidates for one full-length caption, guided or not."""
    transformer = shape.build().to(machine.device).eval()
    randomise(transformer)
    built = {name: build() for name, build in peers.items()}
    yield from contest_rows(
        Contest("sample", shape, shape.stream(), transformer, built), machine, repeats, counts, modes
    )


def imported_rows(shape: Shape, machine: MachineSpeed, repeats: int, counts: Sequence[int]) -> Iterator[BenchRow]:
    """The same of a model of dalle-pytorch and of what `dalle import` makes of it: one set of weights on both sides.

    Raises:
        UserError: dalle-pytorch is not installed.
    """
    peer = DallePytorch(shape, machine.device)
    weights = {name: value.cpu() for name, value in peer.model.state_dict().items()}
    _, imported = dalle_pytorch_model.convert(peer.hparams, Weights("dalle-pytorch", weights), (HALF, HALF))
    transformer = build_transformer(imported.config, imported.stream)
    transformer.load_state_dict(imported.tensors)
    contest = Contest("imported", shape, Stream(imported.stream), transformer.to(machine.device), {peer.name: peer})
    yield from contest_rows(contest, machine, repeats, counts)


def contest_rows(
    contest: Contest, machine: MachineSpeed, repeats: int, counts: Sequence[int], modes: Sequence[bool] = (True, False)
) -> Iterator[BenchRow]:
    """Time each side for each number of candidates, guided or not."""
    shape, stream, transformer = contest.shape, contest.stream, contest.transformer
    dtype, weights = choose_precision("auto", transformer), matrix_weights(transformer)
    pack(transformer, dtype, stream.image_range)
    for count in counts:
        for guided in modes:
            sampling = SamplingConfig(top_k=min(TOP_K, shape.image_vocab), guidance=GUIDANCE if guided else 1.0)
            prompt = Prompt([3] * shape.text_length)
            ours = partial(generate, transformer, stream, prompt, list(range(count)), sampling)
            runs: dict[str, Callable[[], Any]] = {"ours": ours}
            runs |= {name: partial(peer.sample, count, guided) for name, peer in contest.peers.items()}
            seconds = median_seconds(runs, machine.device, repeats)
            cost = decode_cost(shape, weights, count, guided, dtype)
            least = shape.image_length * machine.seconds(cost.flops, cost.bytes_moved, dtype)
            mine = seconds["ours"]
            note = (
                f"{1e3 * mine / shape.image_length:.2f} ms/step, {count * shape.image_length / mine:.0f} ids/s, "
                f"{peak_memory(ours, machine.device) / 2**20:.0f} MiB"
            )
            name = f"{contest.name}/{count}/{'guided' if guided else 'plain'}"
            details = {"shape": shape.name, "precision": dtype}
            for peer in [*contest.peers] or [""]:
                yield BenchRow(name, mine, peer, seconds.get(peer, torch.nan), least / mine, note, details=details)


def randomise(transformer: nn.Module) -> None:
    """Give every matrix weights of the usual size: some start at zero, which samples nothing but ties."""
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
            parameter.data.copy_(values)
