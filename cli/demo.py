"""``etsam-zarr demo``: the main job on a small simulated tomogram, command by command."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from etsam_zarr.model_config import SEEDED_MODEL


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("etsam-zarr-demo"))
@click.option("--shape", metavar="Z,Y,X", default="48,256,256", show_default=True, help="Of the tomogram, in voxels.")
@click.pass_context
def command(context: click.Context, /, folder: Path, shape: str) -> None:
    """Simulate a tomogram in FOLDER [etsam-zarr-demo], segment it, and draw what was found.

    Each command is printed before it runs, so that you can give it yourself. The model is untrained: it shows
    that everything works, not where membranes are.
    """
    tomogram, store = folder / "phantom.zarr", folder / "phantom.etsam.zarr"
    steps = [
        ["phantom", str(tomogram), "--shape", shape, "--seed", "7"],
        ["run", str(tomogram), "--model", SEEDED_MODEL, "--profile", "etsam-v2", "--post-process"],
        ["status", str(store)],
        ["preview", str(store), "-o", str(folder / "membranes.png")],
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
        f"\nDone: open {folder / 'membranes.png'} for a look. The model {SEEDED_MODEL} is UNTRAINED (its weights "
        "are drawn from a seed): the outlines mean nothing. 'etsam-zarr weights fetch' gets ETSAM's "
        "weights, with which 'run' segments membranes."
    )
