"""Rows of sampling, with and without guidance: candidates for one caption beside the peers, many captions together."""

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
from dalle_mini_impl.interop.image.dalle_pytorch_vae import DEFAULT_MEAN, DEFAULT_STD
from dalle_mini_impl.interop.read_weights import Weights
from dalle_mini_impl.interop.whole import dalle_pytorch
from dalle_mini_impl.model.build import build_transformer
from dalle_mini_impl.model.stream import Stream
from dalle_mini_impl.model.transformer import Transformer
from dalle_mini_impl.sampling.generate import GeneratedIds, generate, generate_many
from dalle_mini_impl.sampling.packing import choose_precision, pack
from dalle_mini_impl.sampling.requests import IdRequest, Prompt

PROMPTS = 64
"""Captions that are sampled together."""


@dataclass(frozen=True)
class SamplingComparison:
    """A transformer of this package and peers that sample the same number of ids."""

    name: str
    """First part of the rows' names."""
    shape: Shape
    stream: Stream
    transformer: Transformer
    """On the machine's device."""
    peers: Mapping[str, Peer]


def sampling_rows(
    shape: Shape,
    machine: MachineSpeed,
    peers: Mapping[str, Callable[[], Peer]],
    repeats: int,
    counts: Sequence[int],
    modes: Sequence[bool] = (True, False),
) -> Iterator[BenchRow]:
    """Time sampling the image ids of several candidates for one full-length caption.

    Args:
        shape: of all models.
        machine: its limits.
        peers: name -> function that builds a peer.
        repeats: rounds of which the median counts.
        counts: numbers of candidates.
        modes: with (True) and without guidance (False).

    Yields:
        Rows named `sample/CANDIDATES/guided` or `sample/CANDIDATES/plain`, one for each peer.
    """
    transformer = shape.build().to(machine.device).eval()
    randomise(transformer)
    built = {name: build() for name, build in peers.items()}
    comparison = SamplingComparison("sample", shape, shape.stream(), transformer, built)
    yield from comparison_rows(comparison, machine, repeats, counts, modes)


def prompt_rows(
    shape: Shape, machine: MachineSpeed, repeats: int, count: int = PROMPTS, modes: Sequence[bool] = (True, False)
) -> Iterator[BenchRow]:
    """Time sampling one candidate for each of several captions, all together and one after the other.

    Args:
        shape: of the model.
        machine: its device.
        repeats: rounds of which the median counts.
        count: number of captions, each of full length.
        modes: with (True) and without guidance (False).

    Yields:
        Rows named `prompts/COUNT/guided` or `prompts/COUNT/plain`, with the time one after the other as the peer's.
    """
    transformer = shape.build().to(machine.device).eval()
    randomise(transformer)
    stream = shape.stream()
    dtype = choose_precision("auto", transformer)
    decoder = pack(transformer, dtype, stream.image_range)
    captions = torch.randint(shape.text_vocab, (count, shape.text_length), generator=torch.Generator().manual_seed(0))
    for guided in modes:
        sampling = SamplingConfig(top_k=min(TOP_K, shape.image_vocab), guidance=GUIDANCE if guided else 1.0)
        requests = [IdRequest(Prompt(ids), [seed], sampling) for seed, ids in enumerate(captions.tolist())]

        def together(requests: Sequence[IdRequest] = requests) -> list[GeneratedIds]:
            return list(generate_many(decoder, stream, requests, chunk=count))

        def one_by_one(requests: Sequence[IdRequest] = requests) -> list[GeneratedIds]:
            return [ids for request in requests for ids in generate_many(decoder, stream, [request])]

        seconds = median_seconds({"together": together, "one by one": one_by_one}, machine.device, repeats)
        own = seconds["together"]
        note = f"{count * shape.image_length / own:.0f} ids/s, {peak_memory(together, machine.device) / 2**20:.0f} MiB"
        name = f"prompts/{count}/{'guided' if guided else 'plain'}"
        details = {"shape": shape.name, "precision": dtype}
        yield BenchRow(name, own, "one by one", seconds["one by one"], note=note, details=details)


def chunk_rows(shape: Shape, machine: MachineSpeed, count: int = 16) -> Iterator[BenchRow]:
    """How far ids depend on how many candidates are decoded together.

    Each row of a batch is computed by itself, but a matrix product of other size may add up in another order. An id
    that differs changes all after it, so the share of pictures up to their first difference is what counts.

    Args:
        shape: of the model.
        machine: its device.
        count: candidates, drawn together, one by one and in quarters.

    Yields:
        Rows named `chunks/SIZE`: the mean share of a picture's ids before the first that differs.
    """
    transformer = shape.build().to(machine.device).eval()
    randomise(transformer)
    stream = shape.stream()
    dtype = choose_precision("auto", transformer)
    decoder = pack(transformer, dtype, stream.image_range)
    sampling = SamplingConfig(top_k=min(TOP_K, shape.image_vocab), guidance=GUIDANCE)
    prompt = Prompt([3] * shape.text_length)
    together = generate(decoder, stream, prompt, range(count), sampling, chunk=count).image_ids.flatten(1)
    for size in (1, max(1, count // 4)):
        ids = generate(decoder, stream, prompt, range(count), sampling, chunk=size).image_ids.flatten(1)
        equal = (ids == together).int()
        note = f"{equal.all(1).float().mean():.0%} of {count} pictures equal, {dtype}"
        share = float(equal.cumprod(1).float().mean())
        yield BenchRow(f"chunks/{size}", share, note=note, higher_is_better=True, details={"shape": shape.name})


def imported_rows(shape: Shape, machine: MachineSpeed, repeats: int, counts: Sequence[int]) -> Iterator[BenchRow]:
    """Time sampling of a dalle-pytorch model and of the same model converted by `dalle import`: equal weights.

    Yields:
        Rows named `imported/CANDIDATES/guided` or `imported/CANDIDATES/plain`.

    Raises:
        UserError: dalle-pytorch is not installed.
    """
    peer = DallePytorch(shape, machine.device)
    weights = {name: value.cpu() for name, value in peer.model.state_dict().items()}
    normalization = (DEFAULT_MEAN, DEFAULT_STD)
    _, imported = dalle_pytorch.convert(peer.hparams, Weights("dalle-pytorch", weights), normalization)
    transformer = build_transformer(imported.config, imported.stream)
    transformer.load_state_dict(imported.tensors)
    stream = Stream(imported.stream)
    comparison = SamplingComparison("imported", shape, stream, transformer.to(machine.device), {peer.name: peer})
    yield from comparison_rows(comparison, machine, repeats, counts)


def comparison_rows(
    comparison: SamplingComparison,
    machine: MachineSpeed,
    repeats: int,
    counts: Sequence[int],
    modes: Sequence[bool] = (True, False),
) -> Iterator[BenchRow]:
    """Time all models for each number of candidates, with and without guidance; see `sampling_rows`."""
    shape = comparison.shape
    stream = comparison.stream
    transformer = comparison.transformer
    dtype = choose_precision("auto", transformer)
    weights = matrix_weights(transformer)
    decoder = pack(transformer, dtype, stream.image_range)
    for count in counts:
        for guided in modes:
            sampling = SamplingConfig(top_k=min(TOP_K, shape.image_vocab), guidance=GUIDANCE if guided else 1.0)
            prompt = Prompt([3] * shape.text_length)
            ours = partial(generate, decoder, stream, prompt, list(range(count)), sampling)
            runs: dict[str, Callable[[], Any]] = {"ours": ours}
            runs |= {name: partial(peer.sample, count, guided) for name, peer in comparison.peers.items()}
            seconds = median_seconds(runs, machine.device, repeats)
            cost = decode_cost(shape, weights, count, guided, dtype)
            least = shape.image_length * machine.seconds(cost.flops, cost.bytes_moved, dtype)
            own = seconds["ours"]
            note = (
                f"{1e3 * own / shape.image_length:.2f} ms/step, {count * shape.image_length / own:.0f} ids/s, "
                f"{peak_memory(ours, machine.device) / 2**20:.0f} MiB"
            )
            name = f"{comparison.name}/{count}/{'guided' if guided else 'plain'}"
            details = {"shape": shape.name, "precision": dtype}
            for peer in [*comparison.peers] or [""]:
                yield BenchRow(name, own, peer, seconds.get(peer, torch.nan), least / own, note, details=details)


def randomise(transformer: nn.Module) -> None:
    """Fill every matrix with random weights of the usual scale; untrained ones are partly zero: all logits equal."""
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        if parameter.ndim == 2:
            values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
            parameter.data.copy_(values)
