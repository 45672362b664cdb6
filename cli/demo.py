"""``etsam-zarr demo``: the main job on a small simulated tomogram, command by command, scored against its truth."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from etsam_zarr.model_config import BUNDLED_MODEL


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("etsam-zarr-demo"))
@click.option("--shape", metavar="Z,Y,X", default="64,256,256", show_default=True, help="Of the tomogram, in voxels.")
@click.option("--snr", type=float, default=0.5, show_default=True, help="Variance of signal over variance of noise.")
@click.pass_context
def command(context: click.Context, /, folder: Path, shape: str, snr: float) -> None:
    """Simulate a tomogram in FOLDER [etsam-zarr-demo], segment it, and compare the result with the truth.

    Each command is printed before it runs, so that you can give it yourself. The model is the small bundled one,
    which was trained on tomograms simulated like this one (never on this one): it shows how everything works
    together. Real tomograms ask for ETSAM's weights.
    """
    tomogram, store = folder / "phantom.zarr", folder / "phantom.etsam.zarr"
    truth, picture = tomogram / "labels" / "membranes", folder / "membranes.png"
    steps = [
        ["phantom", str(tomogram), "--shape", shape, "--snr", f"{snr:g}", "--seed", "7"],
        # An earlier demo may have run another release's model.
        ["run", str(tomogram), "--model", BUNDLED_MODEL, "--overwrite"],
        ["status", str(store)],
        ["evaluate", str(store), str(truth), "--no-curve"],
        ["preview", str(store), "--truth", str(truth), "-o", str(picture)],
        ["export", str(store), "--mask", str(folder / "membranes.mrc"), "--overwrite"],
    ]
    if tomogram.exists():
        click.echo(f"{tomogram} is there from an earlier demo.")
        del steps[0]
    program = context.find_root().command
    for step in steps:
        click.secho(f"$ etsam-zarr {shlex.join(step)}", bold=True)
        program.main(args=step, prog_name="etsam-zarr", standalone_mode=False)
    click.echo(
        f"\nDone. {picture} shows the membranes that were found (orange outlines) over the true ones (blue). The model "
        f"{BUNDLED_MODEL} is a demonstration, trained on simulations alone: for your own tomograms get ETSAM's weights "
        "with 'etsam-zarr weights fetch', after which 'etsam-zarr run tomo.mrc' uses them."
    )
