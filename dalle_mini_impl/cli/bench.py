"""`dalle bench`: how fast this machine runs it, beside the peers and the machine's own limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dalle_mini_impl.util.errors import UserError
from dalle_mini_impl.util.files import write_json

if TYPE_CHECKING:
    from dalle_mini_impl.bench.machine import MachineSpeed
    from dalle_mini_impl.bench.report import BenchRow

PARTS = ("sample", "train", "parts", "startup")
"""What is measured unless `--only` says otherwise."""


@click.command()
@click.option("--quick", is_flag=True, help="A tiny shape, once each: shows that everything runs, not how fast.")
@click.option("--shape", default="R", show_default=True, help="Transformer shape: R, emoji, gpu or quick.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*PARTS, "imported", "growth", "masks", "search"]),
    help="Just these parts; may be given several times.  [default: all but imported, growth, masks and search]",
)
@click.option(
    "--peer", "peers", multiple=True, help="dalle-pytorch, transformers, faiss or none.  [default: all installed]"
)
@click.option("--candidates", default="1,16,64", show_default=True, help="Sampling and masks: how many at a time.")
@click.option("--repeats", default=5, show_default=True, help="Rounds of which the median counts.")
@click.option("--minutes", default=0.0, help="Learning races: minutes for each side; 0 leaves them out.")
@click.option("--configs", default="configs/emoji", show_default=True, help="Learning races: folder of what to train.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--plot", type=click.Path(dir_okay=False), help="With --only growth: also draw the figures here.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the figures here.")
def bench(quick: bool, **options: Any) -> None:
    """Measure speed: rooflines, sampling, training, the other parts, and start-up, in one run."""
    from dalle_mini_impl.bench.machine import measure_machine
    from dalle_mini_impl.bench.report import table
    from dalle_mini_impl.bench.shapes import SHAPES
    from dalle_mini_impl.util.devices import choose_device

    name = "quick" if quick else options["shape"]
    if name not in SHAPES:
        raise UserError(f"unknown shape {name!r}; expected {', '.join(SHAPES)}")
    if options["plot"] and "growth" not in options["only"]:
        raise UserError("--plot was given without --only growth, which is what it draws; add that")
    repeats = 1 if quick else options["repeats"]
    if repeats < 1:
        raise UserError(f"--repeats {repeats} was given, expected at least 1")
    counts = [int(part) if part.isdecimal() else 0 for part in options["candidates"].split(",")]
    if min(counts) < 1:
        raise UserError(f"--candidates {options['candidates']!r} was given, expected numbers such as 1,16")
    device = choose_device(options["device"])
    machine = measure_machine(device, repeats)
    click.echo(
        f"{device}: copy {machine.copy / 1e9:.0f} GB/s read and written, products "
        + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in machine.flops.items())
    )
    rows: list[BenchRow] = []
    if options["minutes"]:
        from dalle_mini_impl.bench import race, race_image_tokenizer

        folder = Path(options["configs"])
        rows += race.race(folder / "transformer.yaml", options["minutes"], device)
        rows += race_image_tokenizer.race(folder / "image_tokenizer.yaml", options["minutes"], device)
    peers = find_peers(options["peers"])
    for row in all_rows(machine, name, peers, options["only"] or PARTS, repeats, counts):
        rows.append(row)
        click.echo(f"  {row.row} {row.peer}: {row.ours:.4g} s {row.note}", err=True)
    click.echo(table(rows))
    if options["plot"]:
        from dalle_mini_impl.bench.growth import plot

        plot(rows, Path(options["plot"]))
        click.echo(options["plot"])
    if options["json_file"]:
        click.echo(write_json(options["json_file"], [row.facts() for row in rows]))


def find_peers(wanted: tuple[str, ...]) -> dict[str, Any]:
    """Classes of the wanted peers by name; of all that are installed where none is named.

    Raises:
        UserError: a peer is unknown, or wanted and not installed.
    """
    import importlib.util

    from dalle_mini_impl.bench.peers import DallePytorch, Llama
    from dalle_mini_impl.bench.search import Faiss

    known: dict[str, tuple[Any, str]] = {
        "dalle-pytorch": (DallePytorch, "dalle_pytorch"),
        "transformers": (Llama, "transformers"),
        "faiss": (Faiss, "faiss"),
    }
    if unknown := set(wanted) - {*known, "none"}:
        raise UserError(f"unknown peer {', '.join(sorted(unknown))}; expected {', '.join(known)} or none")
    installed = {name for name, (_, module) in known.items() if importlib.util.find_spec(module)}
    if missing := set(wanted) - installed - {"none"}:
        raise UserError(f"{', '.join(sorted(missing))} not installed; in a clone, make peers installs it")
    return {name: kind for name, (kind, _) in known.items() if name in installed and (not wanted or name in wanted)}


def all_rows(
    machine: "MachineSpeed",
    shape_name: str,
    peers: dict[str, Any],
    parts: tuple[str, ...],
    repeats: int,
    counts: list[int],
) -> "Iterator[BenchRow]":
    """The rows of the wanted parts, as they are measured."""
    from dalle_mini_impl.bench.growth import growth_rows
    from dalle_mini_impl.bench.masks import mask_rows
    from dalle_mini_impl.bench.parts import image_tokenizer_rows, scorer_rows, startup_rows
    from dalle_mini_impl.bench.sampling import imported_rows, sampling_rows
    from dalle_mini_impl.bench.search import search_rows
    from dalle_mini_impl.bench.shapes import SHAPES
    from dalle_mini_impl.bench.training import training_rows

    shape, faiss = SHAPES[shape_name], peers.get("faiss")
    builders = {
        name: lambda kind=kind: kind(shape, machine.device) for name, kind in peers.items() if kind is not faiss
    }
    if "sample" in parts:
        yield from sampling_rows(shape, machine, builders, repeats, counts)
    if "imported" in parts:
        yield from imported_rows(shape, machine, repeats, counts)
    if "train" in parts:
        # Compiling asks for a C++ compiler and a minute, which a quick look should not.
        yield from training_rows(shape, machine, builders, repeats, compiled=shape_name != "quick")
    if "parts" in parts:
        yield from image_tokenizer_rows(machine, "dalle-pytorch" in peers, repeats)
        yield from scorer_rows(machine, repeats)
    if "startup" in parts:
        yield from startup_rows(machine.device, repeats)
    if "growth" in parts:
        yield from growth_rows(shape, machine, repeats)
    if "masks" in parts:
        yield from mask_rows(shape, machine, repeats, counts)
    if "search" in parts:
        yield from search_rows(machine, faiss, repeats, 4096 if shape_name == "quick" else 1_000_000)
