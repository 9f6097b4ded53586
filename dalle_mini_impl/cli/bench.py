"""`dalle bench`: speed on this machine, beside peers and the machine's own limits."""

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.cli.options import (
    MAX_MINUTES,
    CommaSeparated,
    Count,
    FiniteFloat,
    device_option,
    echo_text,
    examples,
    json_option,
    write_json_file,
)
from dalle_mini_impl.cli.outputs import PlotFile
from dalle_mini_impl.util.errors import UserError

if TYPE_CHECKING:
    from dalle_mini_impl.bench.machine import MachineSpeed
    from dalle_mini_impl.bench.report import BenchRow

PARTS = ("sample", "prompts", "train", "parts", "startup")
"""What is measured unless `--only` is given."""
MORE_PARTS = ("data", "chunks", "imported", "growth", "masks", "search", "serve", "neighbour", "own")
"""What `--only` can add; these take minutes each, or need a peer."""
SHAPE_NAMES = ("R", "emoji", "gpu", "300m", "quick")
"""Keys of `bench.shapes.SHAPES`, repeated here because that module imports torch."""
PEER_MODULES = {"dalle-pytorch": "dalle_pytorch", "transformers": "transformers", "faiss": "faiss"}
"""Peer -> module that it is imported as."""
PICTURES, QUICK_PICTURES = 20_000, 256
SEARCH_VECTORS = 1_000_000
MOST_LOADS = 3
"""Most rounds of requests to a service; each takes some ten seconds."""
QUICK_SEARCH_VECTORS = 4096


@click.command(
    epilog=examples(
        "dalle bench --quick",
        "dalle bench --only sample --only train --candidates 1,16 --json speed.json",
        "dalle bench --only data",
        "dalle bench --only own --minutes 15 --json own.json",
    )
)
@click.option("--quick", is_flag=True, help="Tiny shape, one round: a test that everything runs.")
@click.option(
    "--shape", type=click.Choice(SHAPE_NAMES), default="R", show_default=True, help="Shape of the transformer."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*PARTS, *MORE_PARTS]),
    help=f"What to measure; may be repeated.  [default: {', '.join(PARTS)}]",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice([*PEER_MODULES, "none"]),
    help="Peers to measure; may be repeated.  [default: all that are installed]",
)
@click.option(
    "--candidates",
    "-n",
    type=CommaSeparated(Count(), minimum=1),
    default="1,16,64",
    show_default=True,
    metavar="A,B",
    help="Numbers of candidates for sampling and masks.",
)
@click.option("--repeats", type=Count(), default=5, show_default=True, help="Rounds of which the median counts.")
@click.option(
    "--pictures",
    type=Count(),
    default=PICTURES,
    show_default=True,
    help="--only data: pictures of the set in tars that is made for it.",
)
@click.option(
    "--minutes",
    type=FiniteFloat(0, MAX_MINUTES),
    default=0.0,
    show_default=True,
    help="Learning races: minutes for each side; 0 runs none. With --only own: of the training; 0 for 15.",
)
@click.option("--own-source", default="", metavar="SOURCE", help="--only own: captioned pictures.  [default: clip art]")
@click.option(
    "--own-out",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs/bench-own",
    show_default=True,
    metavar="DIR",
    help="--only own: folder for both models and a sheet of what they draw; the same command continues there.",
)
@click.option(
    "--configs",
    type=click.Path(path_type=Path),
    default="configs/emoji",
    show_default=True,
    help="Learning races: folder of training configs.",
)
@click.option("--plot", "plot_file", type=PlotFile("bench"), help="PNG for --only growth (extra: bench).")
@json_option("Write the rows as JSON to FILE; - is standard output.")
@device_option()
def bench(
    quick: bool,
    shape: str,
    only: tuple[str, ...],
    peers: tuple[str, ...],
    candidates: tuple[int, ...],
    repeats: int,
    pictures: int,
    minutes: float,
    own_source: str,
    own_out: Path,
    configs: Path,
    plot_file: Path | None,
    json_file: str | None,
    device: str,
) -> None:
    """Measure speed against peers and the machine's limits.

    Measures sampling, many prompts together and one by one, training, the other parts and start-up in one run, beside
    what is possible at the machine's measured memory bandwidth and matrix throughput. In a clone, make peers installs
    the peers.

    --only own trains on pictures of one's own with `dalle train all`, then with README's five former commands, and
    compares what both draw: half an hour and more. With --peer none it trains with the one command alone.
    """
    if plot_file and "growth" not in only:
        raise UserError("expected --only growth with --plot, which plots its rows, got neither; add --only growth")
    if quick:
        shape, repeats, pictures = "quick", 1, QUICK_PICTURES

    from dalle_mini_impl.bench.machine import measure_machine
    from dalle_mini_impl.bench.report import bench_table, row_line
    from dalle_mini_impl.util.devices import choose_device

    echo = partial(echo_text, json_file=json_file)
    device = choose_device(device)
    machine = measure_machine(device, repeats)
    echo(
        f"{device}: copy {machine.copy / 1e9:.0f} GB/s read and written, products "
        + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in machine.flops.items())
    )
    rows: list[BenchRow] = []
    if minutes and "own" not in only:
        from dalle_mini_impl.bench import race, race_image_tokenizer

        rows += race.race(configs / "transformer.yaml", minutes, device)
        rows += race_image_tokenizer.race(configs / "image_tokenizer.yaml", minutes, device)
    peer_classes = find_peers(peers)
    measured = all_rows(machine, shape, peer_classes, only or PARTS, repeats, candidates)
    if "data" in only:
        from dalle_mini_impl.bench.data import data_rows

        measured = itertools.chain(measured, data_rows(pictures, repeats))
    if "own" in only:
        measured = itertools.chain(measured, rows_of_own(own_source, minutes, quick, "none" not in peers, own_out))
    if "serve" in only:
        from dalle_mini_impl.bench.serve import serve_rows

        measured = itertools.chain(measured, serve_rows(device, min(repeats, MOST_LOADS)))
    for row in measured:
        rows.append(row)
        click.echo(f"  {row_line(row)}", err=True)
    echo(bench_table(rows))
    if plot_file:
        from dalle_mini_impl.bench.growth import plot_growth

        plot_growth(rows, plot_file)
        echo(plot_file)
    write_json_file(json_file, [row.as_json() for row in rows])


def rows_of_own(source: str, minutes: float, quick: bool, former: bool, out: Path) -> "Iterator[BenchRow]":
    """Rows of training on pictures of one's own; `quick` tests that everything runs, other values are options."""
    from dalle_mini_impl.bench.own import OwnSettings, own_rows

    settings = OwnSettings.quick(source) if quick else OwnSettings(source=source)
    settings = dataclasses.replace(settings, former=former)
    return own_rows(dataclasses.replace(settings, minutes=minutes) if minutes else settings, out)


def find_peers(names: tuple[str, ...]) -> dict[str, Any]:
    """Classes of peers by name.

    Args:
        names: keys of `PEER_MODULES`, or `none`; empty for all that are installed.

    Raises:
        UserError: a peer is named and not installed.
    """
    from dalle_mini_impl.bench.peers import DallePytorch, Llama
    from dalle_mini_impl.bench.search import Faiss

    classes: dict[str, Any] = {"dalle-pytorch": DallePytorch, "transformers": Llama, "faiss": Faiss}
    installed = {name for name, module in PEER_MODULES.items() if importlib.util.find_spec(module)}
    if missing := set(names) - installed - {"none"}:
        raise UserError(f"{', '.join(sorted(missing))} not installed; in a clone, make peers installs it")
    return {name: classes[name] for name in classes if name in installed and (not names or name in names)}


def all_rows(
    machine: "MachineSpeed",
    shape_name: str,
    peers: dict[str, Any],
    parts: tuple[str, ...],
    repeats: int,
    counts: tuple[int, ...],
) -> "Iterator[BenchRow]":
    """Rows of the given parts, each as soon as it is measured.

    Args:
        machine: its limits.
        shape_name: one of `SHAPE_NAMES`.
        peers: from `find_peers`.
        parts: of `PARTS` and `MORE_PARTS`.
        repeats: rounds of which the median counts.
        counts: numbers of candidates.
    """
    from dalle_mini_impl.bench.growth import growth_rows
    from dalle_mini_impl.bench.masks import mask_rows
    from dalle_mini_impl.bench.parts import image_tokenizer_rows, scorer_rows, startup_rows
    from dalle_mini_impl.bench.sampling import chunk_rows, imported_rows, prompt_rows, sampling_rows
    from dalle_mini_impl.bench.search import search_rows
    from dalle_mini_impl.bench.shapes import SHAPES
    from dalle_mini_impl.bench.training import training_rows

    shape = SHAPES[shape_name]
    faiss = peers.get("faiss")
    builders = {
        name: partial(peer_class, shape, machine.device)
        for name, peer_class in peers.items()
        if peer_class is not faiss
    }
    quick = shape_name == "quick"
    if "sample" in parts:
        yield from sampling_rows(shape, machine, builders, repeats, counts)
    if "prompts" in parts:
        yield from prompt_rows(shape, machine, repeats)
    if "chunks" in parts:
        yield from chunk_rows(shape, machine)
    if "imported" in parts:
        yield from imported_rows(shape, machine, repeats, counts)
    if "train" in parts:
        # Compiling takes a C++ compiler and a minute.
        yield from training_rows(shape, machine, builders, repeats, compiled=not quick)
    if "parts" in parts:
        yield from image_tokenizer_rows(machine, "dalle-pytorch" in peers, repeats)
        yield from scorer_rows(machine, repeats)
    if "startup" in parts:
        yield from startup_rows(machine.device, repeats)
    if "growth" in parts:
        yield from growth_rows(shape, machine, repeats)
    if "masks" in parts:
        yield from mask_rows(shape, machine, repeats, counts)
    if "neighbour" in parts:
        from dalle_mini_impl.bench.neighbour import neighbour_rows

        yield from neighbour_rows(shape_name, repeats)
    if "search" in parts:
        yield from search_rows(machine, faiss, repeats, QUICK_SEARCH_VECTORS if quick else SEARCH_VECTORS)
