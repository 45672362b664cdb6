"""Prints the tables of docs/benchmarks.md from the result files beside it.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import click
from large import rows_of as large_rows
from measure import RESULTS, table
from memory import LOOPS, rows_of
from remote import summary
from seams import distance_rows, told, whole_rows
from seams import rows_of as seam_rows
from tiles import rows_of as tile_rows
from workers import rows_of as worker_rows


def read(name: str) -> dict[str, Any]:
    """Read a result file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def throughput_row(record: dict[str, Any]) -> dict[str, Any]:
    """Sum up the rounds of one throughput measurement."""
    settings, runs = record["settings"], record["measurements"]
    streamed = [run for run in runs if run["loop"] == "streamed"]
    reference = [run for run in runs if run["loop"] == "reference"]
    ratios = [a["slices_per_second"] / b["slices_per_second"] for a, b in zip(streamed, reference, strict=True)]
    outside = statistics.median(1 - run["model_seconds"] / run["seconds"] for run in streamed)
    return {
        "model": f"{settings['model']}, {settings['image_size'] or 256} px, {settings['depth']} slices",
        "precision": f"{streamed[0]['precision']} against {reference[0]['precision']}",
        "streamed slices/s": f"{statistics.median(run['slices_per_second'] for run in streamed):.3g}",
        "reference slices/s": f"{statistics.median(run['slices_per_second'] for run in reference):.3g}",
        "ratio": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "outside the model": f"{outside:.1%}",
    }


@click.command()
def main() -> None:
    """Print the tables."""
    click.echo(table(rows_of(read("memory")["measurements"], LOOPS)))
    click.echo()
    names = sorted(path.stem for path in RESULTS.glob("throughput-*.json"))
    click.echo(table([throughput_row(read(name)) for name in names]))
    click.echo()
    click.echo(table(tile_rows(read("tiles")["measurements"])))
    for path in sorted(RESULTS.glob("workers-*.json")):
        click.echo()
        click.echo(table(worker_rows(read(path.stem)["measurements"])))
    for path in sorted(RESULTS.glob("seams-*.json")):
        record = read(path.stem)
        runs = record["settings"]["whole_runs"]
        for rows in (seam_rows(told(record["measurements"])), distance_rows(record["measurements"]), whole_rows(runs)):
            click.echo(f"\n{table(rows)}" if rows else "")
    for name in ("remote", "remote-wide"):
        record = read(name)
        click.echo()
        click.echo(table(summary(record["measurements"], record["settings"]["stored_bytes"])))
    click.echo()
    click.echo(table(large_rows(read("large")["measurements"])))


if __name__ == "__main__":
    main()
