"""``etsam-zarr threshold``: masks from stored scores."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH, numbers, overwrite

from etsam_zarr.errors import SettingsError


@click.command()
@click.argument("source", metavar="RUN", type=PATH)
@click.option(
    "--logit-threshold",
    "thresholds",
    type=numbers,
    required=True,
    metavar="X[,Y,...]",
    help="Voxels with a logit above it are membrane; several make several masks.",
)
@click.option("-o", "--output", type=PATH, help="Write the mask to this MRC or OME-Zarr instead of into the run store.")
@overwrite
def command(source: Path, thresholds: tuple[float, ...], output: Path | None, overwrite: bool) -> None:
    """Make masks from the logits of the run store RUN, or of a file of scores, without the model.

    One threshold replaces the label "membranes" of the run store (it can be made again at any time);
    several make labels "membranes_X".
    """
    if output is not None and len(thresholds) > 1:
        raise click.UsageError("-o takes one mask; give one threshold, or leave -o out.")
    from etsam_zarr.ledger import Ledger
    from etsam_zarr.maskpass import MEMBRANE_COLOUR, MEMBRANES, write_mask
    from etsam_zarr.masks import VolumeBox
    from etsam_zarr.results import Source
    from etsam_zarr.sources import open_volume
    from etsam_zarr.threshold import ThresholdTarget, threshold_scores

    given = Source.at(source)
    progress = Progress()
    try:
        if given.store is None:
            if output is None:
                raise SettingsError(f"{source} is not a run store: say with -o where the mask is to go.")
            with open_volume(source) as volume:
                place = given.output(output, MEMBRANES, like=volume, overwrite=overwrite)
                target = ThresholdTarget(thresholds[0], place.array(np.dtype(np.uint8), reduction="max"))
                counts = threshold_scores(VolumeBox(volume), [target], name=str(source), on_event=progress)
                place.finish(is_mask=True, on_event=progress)
            click.echo(f"{output}  {counts[0]} voxels above {thresholds[0]:g}")
            return
        from etsam_zarr.scores import final_scores

        store = given.require_logits()
        with store.locked():
            scores = final_scores(store)
            if output is None and len(thresholds) == 1:
                count = write_mask(
                    store, scores, Ledger(store.path / "ledger"), threshold=thresholds[0], on_event=progress
                )
                click.echo(f"{MEMBRANES}  {count} voxels above {thresholds[0]:g}")
                return
            names = [f"{MEMBRANES}_{threshold:g}" for threshold in thresholds]
            outputs = [
                given.output(output, name, like=store, colours={1: MEMBRANE_COLOUR}, overwrite=overwrite)
                for name in names
            ]
            targets = [
                ThresholdTarget(threshold, place.array(np.dtype(np.uint8), reduction="max"))
                for threshold, place in zip(thresholds, outputs, strict=True)
            ]
            counts = threshold_scores(scores, targets, name=str(source), on_event=progress)
            for name, place, threshold, count in zip(names, outputs, thresholds, counts, strict=True):
                place.finish(is_mask=True, on_event=progress)
                click.echo(f"{output or name}  {count} voxels above {threshold:g}")
    finally:
        progress.close()
