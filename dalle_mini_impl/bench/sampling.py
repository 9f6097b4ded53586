"""Rows of sampling: candidates for one caption, with and without guidance, ours beside the peers'."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dalle_mini_impl.bench.machine import Machine
from dalle_mini_impl.bench.peers import GUIDANCE, TOP_K, Peer
from dalle_mini_impl.bench.report import Row
from dalle_mini_impl.bench.shapes import Shape, decode_cost, matrix_weights
from dalle_mini_impl.bench.timing import median_seconds, peak_memory
from dalle_mini_impl.config import SamplingConfig
from dalle_mini_impl.generate import Prompt, generate
from dalle_mini_impl.packing import choose_precision, pack


def sampling_rows(
    shape: Shape,
    machine: Machine,
    peers: Mapping[str, Callable[[], Peer]],
    repeats: int,
    counts: Sequence[int],
    modes: Sequence[bool] = (True, False),
) -> Iterator[Row]:
    """Time drawing the image ids of several candidates for one full-length caption, guided or not."""
    transformer = shape.build().to(machine.device).eval()
    randomise(transformer)
    stream, dtype = shape.stream(), choose_precision("auto", transformer)
    weights = matrix_weights(transformer)
    pack(transformer, dtype, stream.image_range)
    built = {name: build() for name, build in peers.items()}
    for count in counts:
        for guided in modes:
            sampling = SamplingConfig(top_k=min(TOP_K, shape.image_vocab), guidance=GUIDANCE if guided else 1.0)
            prompt = Prompt([3] * shape.text_length)
            ours = partial(generate, transformer, stream, prompt, list(range(count)), sampling)
            runs: dict[str, Callable[[], Any]] = {"ours": ours}
            runs |= {name: partial(peer.sample, count, guided) for name, peer in built.items()}
            seconds = median_seconds(runs, machine.device, repeats)
            cost = decode_cost(shape, weights, count, guided, dtype)
            least = shape.image_length * machine.seconds(cost.flops, cost.bytes_moved, dtype)
            mine = seconds["ours"]
            note = (f"{1e3 * mine / shape.image_length:.2f} ms/step, {count * shape.image_length / mine:.0f} ids/s, "
                    f"{peak_memory(ours, machine.device) / 2**20:.0f} MiB")  # fmt: skip
            name = f"sample/{count}/{'guided' if guided else 'plain'}"
            for peer in [*built] or [""]:
                yield Row(
                    name, mine, peer, seconds.get(peer, torch.nan), least / mine, note, details={"shape": shape.name}
                )


def randomise(transformer: nn.Module) -> None:
    """Give every matrix weights of the usual size: some start at zero, which samples nothing but ties."""
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
            parameter.data.copy_(values)
