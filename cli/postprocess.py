"""``etsam-zarr postprocess``: clean a mask as ETSAM does."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH, any_label, block, input_label, overwrite, workers

from etsam_zarr.geometry import Shape3


@click.command()
@click.argument("source", metavar="MASK", type=PATH)
@click.option("-o", "--output", type=PATH, help="Write to this MRC or OME-Zarr instead of into the run store.")
@click.option("--min-slices", type=int, default=10, show_default=True, help="Drop components that span fewer slices.")
@click.option(
    "--sever-bridges/--no-sever-bridges",
    default=None,
    help="Also cut short rungs between parallel membranes. [default: as the run's profile says; no for files]",
)
@click.option(
    "--max-bridge-length", type=int, default=5, show_default=True, help="Longest rung that is cut, in pixels."
)
@click.option(
    "--max-spur-length", type=int, default=0, show_default=True, help="Longest dead end that is cut; 0: none."
)
@input_label
@any_label
@block
@workers
@overwrite
def command(
    source: Path, output: Path | None, min_slices: int, sever_bridges: bool | None, max_bridge_length: int,
    max_spur_length: int, label: str | None, any_label: bool, block: Shape3 | None, workers: int | None,
    overwrite: bool,
) -> None:  # fmt: skip
    """Clean MASK: the label of a run store, or a file, MRC or OME-Zarr.

    Drops 26-connected components that span few slices, then (profile etsam-v2, or --sever-bridges)
    cuts the rungs between parallel membranes. In a run store the result is the label
    "membranes_processed"; the mask it was made from stays.
    """
    from etsam_zarr.components.bridges import BridgeSettings
    from etsam_zarr.components.find import LabelSettings
    from etsam_zarr.maskpass import MEMBRANE_COLOUR, MEMBRANES
    from etsam_zarr.masks import BinaryMask
    from etsam_zarr.postprocess import PostprocessSettings, postprocess_mask
    from etsam_zarr.results import PROCESSED, Source

    given = Source.at(source, label=label)
    if sever_bridges is None:
        sever_bridges = given.store is not None and bool(given.store.record["settings"]["sever_bridges"])
    bridges = BridgeSettings(max_bridge_length, max_spur_length) if sever_bridges else None
    settings = PostprocessSettings(min_slices, bridges)
    progress = Progress()
    try:
        with given.locked(), given.open_mask() as volume:
            place = given.output(
                output, PROCESSED, like=volume, colours={1: MEMBRANE_COLOUR}, overwrite=overwrite or output is None
            )
            report = postprocess_mask(
                BinaryMask(volume, name=str(source), any_label=any_label),
                place.array(np.dtype(np.uint8), reduction="max"),
                place.scratch,
                source_id=given.content_id(volume),
                settings=settings,
                labelling=LabelSettings(block=block, workers=workers),
                on_event=progress,
            )
            place.finish(is_mask=True, on_event=progress)
            if output is None and label in (None, MEMBRANES):
                given.note_processed()
    finally:
        progress.close()
    click.echo(
        f"components  {report.components - report.components_dropped} of {report.components} kept "
        f"({report.voxels_dropped} voxels dropped)"
    )
    if bridges is not None:
        click.echo(f"bridges     {report.voxels_severed} voxels cut")
    click.echo(f"mask        {place.place}")
