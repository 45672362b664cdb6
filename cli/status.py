"""``etsam-zarr status``: how far a run is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.amounts import rate_text
from etsam_zarr_cli.report import model_kind

from etsam_zarr.seams import seam_text
from etsam_zarr.status import RunStatus, read_status


@click.command()
@click.argument("store", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def command(store: Path, as_json: bool) -> None:
    """Say what the run store RUN holds and how far it is."""
    status = read_status(store)
    if as_json:
        click.echo(json.dumps(_as_json(status), indent=2))
        return
    record = status.record
    z, y, x = record["shape"]
    click.echo(f"volume     {z} x {y} x {x} (z y x), {record['source']}")
    kind = model_kind(untrained=record["untrained"], bundled=record.get("bundled", False))
    click.echo(f"model      {record['model']}{kind}, {record['fingerprint']['precision']} on {record['device']}")
    click.echo("intensity  " + ("done" if status.measured else "not yet"))
    tiles = status.stages[0].total // z
    of_tiles = f" of {tiles} tiles" if tiles > 1 else ""
    for stage in status.stages:
        rate = f", {rate_text(stage.slices / stage.seconds)} slices/s in the model" if stage.seconds else ""
        click.echo(f"stage {stage.stage}    {stage.slices}/{stage.total} slices{of_tiles}{rate}")
        for seam in stage.seams:
            click.echo(f"           {seam_text(seam)}")
        if stage.stage == 2 and status.redone is not None:
            click.echo(f"           begun again after {status.redone['slices']} slices that had followed stage 1")
        if stage.slices == stage.total and not stage.settled:
            click.echo("           windows do not all agree yet")
    if status.mask is None:
        click.echo("mask       not yet")
    else:
        share = status.mask["voxels"] / (z * y * x)
        threshold = status.mask["logit_threshold"]
        click.echo(f"mask       {status.mask['voxels']} voxels ({share:.2%}) above logit {threshold:g}")
    click.echo("state      " + ("finished" if status.finished else "unfinished: give the same run command to go on"))


def _as_json(status: RunStatus) -> dict[str, Any]:
    return {
        "finished": status.finished,
        "measured": status.measured,
        "stages": {
            stage.stage: {"slices": stage.slices, "total": stage.total, "seconds": stage.seconds}
            for stage in status.stages
        },
        "seams": [asdict(seam) for stage in status.stages for seam in stage.seams],
        "redone": status.redone,
        "mask": status.mask,
        "run": status.record,
    }
