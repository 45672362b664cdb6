"""``etsam-zarr batch``: run many tomograms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.portal_options import given_choice
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import where
from etsam_zarr_cli.run_options import run_options

from etsam_zarr.batch import SUMMARY, BatchResult, Outcome, run_batch
from etsam_zarr.batch_items import BatchItem, read_items
from etsam_zarr.manifest import matching, read_rows

# Of run; here the manifest says them.
_PER_ROW = ("source", "output", "output_dir", "tomogram_id")


def _options_of_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a run that hold for all tomograms."""
    collected = run_options(lambda: None)
    params = [param for param in getattr(collected, "__click_params__", []) if param.name not in _PER_ROW]
    command.__click_params__ = [*params, *getattr(command, "__click_params__", [])]  # type: ignore[attr-defined]
    return command


def _local(_context: click.Context, _option: click.Parameter, given: str) -> Path:
    if "://" in given:
        raise click.BadParameter(f"{given} is an address; a batch writes into a local folder. Copy it when it is done.")
    return Path(given)


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output-dir", "folder", type=click.Path(file_okay=False), required=True, callback=_local,
    help="Local folder for the run stores and the summary.",
)  # fmt: skip
@where
@click.option("--force", is_flag=True, help="Start each even if the projection says that it does not fit.")
@_options_of_run
def command(manifest: Path, *, folder: Path, conditions: dict[str, str], force: bool, **given: Any) -> int:  # noqa: ANN401
    """Run every tomogram of the CSV file MANIFEST into a run store of its own.

    MANIFEST has the column 'input' (paths, addresses, portal:RUN_ID), and 'name' if you like; or dataset_id and run_id
    as ETSAM's dataset.csv and testset.csv. Give the same command again after an interruption: finished ones are
    skipped, unfinished ones go on. The other options are those of 'run'.
    """
    from etsam_zarr_cli.run import segment

    rows = matching(read_rows(manifest), conditions, manifest)
    choice = given_choice(given)
    items = read_items(manifest, rows, choice=choice)
    progress = Progress()
    from etsam_zarr.predictors import Predictors

    predictors = Predictors()  # the model is built once for all

    def run_one(item: BatchItem, store: Path) -> Outcome:
        try:
            prepared, summary = segment(
                # The choice is in the address already, and files have none.
                {**given, "source": item.source, "output": store, "output_dir": None, "tomogram_spacing": None,
                 "tomogram_processing": None, "tomogram_default": False},
                progress, force=force, predictors=predictors,
            )  # fmt: skip
        finally:
            progress.close()
        depth, height, width = prepared.volume.info.shape
        return Outcome(summary.voxels, summary.voxels / (depth * height * width))

    results = run_batch(items, run_one, folder=folder, options=given, on_event=progress)
    _show(results, folder)
    return 1 if any(result.state == "failed" for result in results) else 0


def _show(results: list[BatchResult], folder: Path) -> None:
    """Print a table for people."""
    width = max(len(result.name) for result in results)
    for result in results:
        if result.state in ("finished", "present"):
            told = f"{result.seconds:9.1f} s  {result.voxels} voxels ({result.share:.2%})"
        else:
            told = result.error.partition("\n")[0]
        click.echo(f"{result.name:{width}}  {result.state:8}  {told}")
    counts = {state: sum(result.state == state for result in results) for state in ("finished", "present", "skipped")}
    failed = [result for result in results if result.state == "failed"]
    click.echo(
        f"{counts['finished']} finished, {counts['present']} were there already, {counts['skipped']} skipped, "
        f"{len(failed)} failed; {folder / SUMMARY}.csv"
    )
    for result in failed:
        click.echo(f"Error: {result.name}: {result.error}", err=True)
