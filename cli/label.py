"""``etsam-zarr label``: instance labels and their table."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH, any_label, block, input_label, overwrite, workers
from etsam_zarr_cli.triples import voxel_size as to_voxel_size

from etsam_zarr.geometry import Shape3


@click.command()
@click.argument("source", metavar="MASK", type=PATH)
@click.option("-o", "--output", type=PATH, help="Write labels to this OME-Zarr or MRC instead of into the run store.")
@click.option("--table", type=PATH, help="Table of components, .csv or .parquet. [default: beside the labels, CSV]")
@click.option(
    "--connectivity",
    type=click.Choice(["6", "18", "26"]),
    default="26",
    show_default=True,
    help="Neighbours of a voxel: by faces, edges too, corners too.",
)
@click.option("--min-slices", type=int, default=0, help="Drop components that span fewer slices.")
@click.option("--min-voxels", type=int, default=0, help="Drop components with fewer voxels.")
@click.option("--min-volume", type=float, default=0.0, help="Drop components smaller than this, in nm^3.")
@click.option("--voxel-size", type=to_voxel_size, metavar="A[,A,A]", help="Voxel size in angstrom, one or z,y,x.")
@input_label
@any_label
@block
@workers
@overwrite
def command(
    source: Path, output: Path | None, table: Path | None, connectivity: str, min_slices: int, min_voxels: int,
    min_volume: float, voxel_size: tuple[float, float, float] | None, label: str | None, any_label: bool,
    block: Shape3 | None, workers: int | None, overwrite: bool,
) -> None:  # fmt: skip
    """Give each connected component of MASK (label of a run store, or MRC or OME-Zarr file) a number.

    In a run store the result is the label "components", made from "membranes_processed" where there is one, else from
    "membranes".
    """
    from etsam_zarr.components.find import LabelSettings, find_components
    from etsam_zarr.components.table import id_dtype, write_table
    from etsam_zarr.masks import BinaryMask
    from etsam_zarr.results import COMPONENTS, Source, label_colours

    given = Source.at(source, label=label)
    if label is None:
        given = Source.at(source, label=given.latest_label())
    progress = Progress()
    try:
        with given.locked(), given.open_mask() as volume:
            size = voxel_size or volume.info.voxel_size
            place = given.output(output, COMPONENTS, like=volume, overwrite=overwrite or output is None)
            found = find_components(
                BinaryMask(volume, name=str(source), any_label=any_label),
                place.scratch,
                source_id=given.content_id(volume),
                chunks=place.chunks,
                settings=LabelSettings(int(connectivity), block=block, workers=workers),
                on_event=progress,
            )
            keep = found.table.passing(
                min_slices=min_slices, min_voxels=min_voxels, min_volume=min_volume, voxel_size=size
            )
            count = int(keep.sum())
            place.colours = label_colours(count)
            dtype = np.dtype(np.uint16) if place.is_mrc else id_dtype(count)
            found.write(place.array(dtype, reduction="mode"), keep, on_event=progress)
            place.finish(is_mask=False, on_event=progress)
            if table is None:
                # Inside the run store the table is no part of the OME-Zarr hierarchy, so it lies at its top.
                table = place.place.with_suffix(".csv") if given.store is None else given.store.path / "components.csv"
            write_table(found.table.select(keep), table, voxel_size=size, origin=volume.info.origin)
            found.discard()
    finally:
        progress.close()
    click.echo(f"components  {count} of {len(keep)} kept")
    click.echo(f"labels      {place.place}")
    click.echo(f"table       {table}")
