"""``etsam-zarr export``: results as MRC files."""

from __future__ import annotations

from pathlib import Path

import click
from etsam_zarr_cli.progress import Progress

from etsam_zarr.errors import OutputExistsError
from etsam_zarr.runstore import RunStore, Stage


@click.command()
@click.argument("store", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--mask", type=click.Path(path_type=Path), help="Write the membrane mask (MRC mode 0) here.")
@click.option("--logits", type=click.Path(path_type=Path), help="Write full-resolution float32 logits here.")
@click.option("--stage", type=click.IntRange(1, 2), default=2, show_default=True, help="Which stage's logits to write.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def command(store: Path, mask: Path | None, logits: Path | None, stage: Stage, overwrite: bool) -> None:
    """Write results of the run store RUN as MRC files with the tomogram's voxel size and origin."""
    if mask is None and logits is None:
        raise click.UsageError("Nothing to export: give --mask, --logits or both.")
    run = RunStore.open(store)
    for path in (mask, logits):
        # All of them before the first is written: half an export helps nobody.
        if path is not None and path.exists() and not overwrite:
            raise OutputExistsError(f"There is a file at {path} already. Give --overwrite to replace it.")
    from etsam_zarr.export import export_logits, export_mask

    progress = Progress()
    try:
        if mask is not None:
            export_mask(run, mask, overwrite=overwrite, on_event=progress)
            click.echo(f"mask    {mask}")
        if logits is not None:
            export_logits(run, logits, stage=stage, overwrite=overwrite, on_event=progress)
            click.echo(f"logits  {logits} (stage {stage})")
    finally:
        progress.close()
