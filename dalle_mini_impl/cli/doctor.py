"""`dalle doctor`: what this machine has, what it lacks, and what to do about it."""

import dataclasses
import sys

import click

from dalle_mini_impl.cli.options import echo_text, examples, json_option, write_json_file
from dalle_mini_impl.util.tables import aligned_table


@click.command(epilog=examples("dalle doctor", "dalle doctor --json -"))
@json_option("Write all that was found as JSON to FILE; - is standard output.")
def doctor(json_file: str | None) -> None:
    """Show what this machine has, what it lacks, and what to do.

    Draws a picture with the included model, and compiles code if there is a compiler. Ends with exit code 1 if
    something is broken without which the program cannot work; what makes it only slower, and extras, are no reason.
    """
    from dalle_mini_impl.bench.doctor import examine

    groups = examine()
    findings = [finding for group in groups.values() for finding in group]
    width = max(len(finding.name) for finding in findings)
    for heading, group in groups.items():
        rows = [(f"  {one.name}", one.value) for one in group] or [("  unknown", "")]
        echo_text(f"{heading}:\n{aligned_table(rows, min_widths=[width + 2])}\n", json_file)
    advice = [f"  {one.name}: {one.advice}" for one in findings if one.advice]
    echo_text("\n".join(["What to do:", *advice]) if advice else "Nothing to do: all is well.", json_file)
    is_broken = any(finding.broken for finding in findings)
    values = {heading: [dataclasses.asdict(one) for one in group] for heading, group in groups.items()}
    write_json_file(json_file, {"works": not is_broken, "findings": values})
    if is_broken:
        sys.exit(1)
