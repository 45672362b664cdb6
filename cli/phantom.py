"""``etsam-zarr phantom``: makes a simulated tomogram with the exact truth."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import click
from etsam_zarr_cli.progress import Progress


def triple(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int, int]:
    """Turn three whole numbers with commas into a tuple."""
    try:
        z, y, x = (int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not three whole numbers with commas, like 64,512,512.") from error
    if min(z, y, x) < 1:
        raise click.BadParameter(f"{value!r}: every axis takes at least 1 voxel.")
    return z, y, x


@click.command("phantom")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--shape", metavar="Z,Y,X", callback=triple, default="64,256,256", show_default=True, help="Voxels in z, y, x."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another cell.")
@click.option("--snr", type=float, default=0.5, show_default=True, help="Variance of signal over variance of noise.")
@click.option("--voxel-size", type=float, default=10.0, show_default=True, help="Edge of a voxel in angstrom.")
@click.option(
    "--tilt-range", type=float, default=60.0, show_default=True, help="Largest tilt in degrees; 90: no wedge."
)
@click.option("--defocus", type=float, default=3.0, show_default=True, help="Underfocus in micrometres; 0: no CTF.")
@click.option("--thickness", type=float, default=40.0, show_default=True, help="Between leaflets, in angstrom.")
@click.option("--leaflet-width", type=float, default=8.0, show_default=True, help="Deviation of a leaflet, angstrom.")
@click.option("--crowding", type=float, default=0.35, show_default=True, help="Globular particles, 0 to 1.")
@click.option("--filaments", type=float, default=0.5, show_default=True, help="Filaments, 0 to 1.")
@click.option("--beads", type=float, default=0.25, show_default=True, help="Gold beads, 0 to 1.")
@click.option("--carbon", is_flag=True, help="Let the edge of the carbon film pass through.")
@click.option(
    "--chunks", metavar="Z,Y,X", callback=triple, default="64,128,128", show_default=True, help="Storage chunks."
)
@click.option(
    "--ome-zarr", "version", type=click.Choice(["0.4", "0.5"]), default="0.4", show_default=True,
    help="OME-Zarr version of OUT.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what lies at OUT.")
def command(
    out: Path,
    *,
    thickness: float,
    leaflet_width: float,
    tilt_range: float,
    defocus: float,
    chunks: tuple[int, int, int],
    version: str,
    overwrite: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Make a simulated tomogram at OUT (an OME-Zarr) with the label 'membranes' as its exact truth.

    The same seed gives the same voxels, whatever the chunks; memory does not depend on the shape.
    """
    from etsam_zarr.ome.attributes import OmeVersion
    from etsam_zarr.phantom.density import Bilayer
    from etsam_zarr.phantom.imaging import Microscope
    from etsam_zarr.phantom.store import write_phantom
    from etsam_zarr.phantom.volume import PhantomSettings

    settings = PhantomSettings(
        bilayer=Bilayer(thickness, leaflet_width),
        microscope=Microscope(defocus=defocus, tilt_range=tilt_range),
        **given,
    )
    with contextlib.closing(Progress()) as progress:
        write_phantom(
            out,
            settings,
            chunks=chunks,
            version=cast(OmeVersion, version),
            overwrite=overwrite,
            on_event=progress,
        )
    click.echo(str(out))
