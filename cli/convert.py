"""``etsam-zarr convert``: a tomogram to OME-Zarr, or to MRC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.portal_options import choice_options, chosen, given_choice
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.remote_options import (
    CACHE_OPTION,
    REGION_OPTIONS,
    access_options,
    given_cache,
    given_region,
    with_options,
)
from etsam_zarr_cli.traffic import remove_default_cache, summary_lines
from etsam_zarr_cli.triples import voxel_size as to_voxel_size
from etsam_zarr_cli.triples import whole_zyx

from etsam_zarr.convert import DEFAULT_CHUNKS, ConvertSettings, convert
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import Notice
from etsam_zarr.geometry import Shape3, pyramid_shapes
from etsam_zarr.mrc.write import MrcPlan, slabs_of, write_mrc
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.remote.volumes import keep_chunks
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import VolumeInfo

_MRC_SUFFIXES = (".mrc", ".rec", ".map")


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("destination", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option(
    "--ome-zarr",
    "version",
    type=click.Choice(["0.4", "0.5"]),
    default="0.4",
    show_default=True,
    help="OME-Zarr version to write: 0.4 is read everywhere, 0.5 is Zarr 3.",
)
@click.option(
    "--chunks",
    type=whole_zyx,
    metavar="Z,Y,X",
    default=",".join(str(n) for n in DEFAULT_CHUNKS),
    show_default=True,
    help="Chunk in voxels.",
)
@click.option(
    "--shards", type=whole_zyx, metavar="Z,Y,X", help="Write unit in voxels, a multiple of the chunks; only for 0.5."
)
@click.option("--level", type=click.IntRange(min=0), default=0, show_default=True, help="Level of an OME-Zarr input.")
@click.option(
    "--voxel-size",
    type=to_voxel_size,
    metavar="A[,A,A]",
    help="Voxel size in angstrom, one number or z,y,x; replaces the input's.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT once the new one is complete.")
@choice_options
@with_options([*REGION_OPTIONS, CACHE_OPTION])
@access_options
def command(
    source: str,
    destination: Path,
    version: OmeVersion,
    chunks: Shape3,
    shards: Shape3 | None,
    level: int,
    voxel_size: tuple[float, float, float] | None,
    overwrite: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Convert the tomogram INPUT to OUTPUT: OME-Zarr with a pyramid, or MRC where OUTPUT ends in .mrc.

    Values are unchanged. An interrupted conversion to OME-Zarr goes on where it was when the same command is
    given again.
    """
    progress = Progress()
    try:
        opened = open_volume(chosen(source, given_choice(given)), level=level, voxel_size=voxel_size)
        with given_region(opened, given) as volume:
            # Each layer serves once, so the scratch folder lets go of what has passed; one that was named keeps it.
            keep_chunks(volume, given_cache(given, destination), lasting=given["cache"] is not None)
            info = volume.info
            for warning in info.warnings:
                progress(Notice(warning, warning=True))
            if destination.suffix.lower() in _MRC_SUFFIXES:
                if shards is not None:
                    raise SettingsError("--shards is for OME-Zarr 0.5; leave it out to write an MRC.")
                plan = MrcPlan(info.shape, info.dtype, info.voxel_size, info.origin)
                write_mrc(destination, plan, slabs_of(volume), overwrite=overwrite, on_event=progress)
                kind = "MRC"
            else:
                settings = ConvertSettings(version=version, chunks=chunks, shards=shards)
                convert(volume, destination, settings=settings, overwrite=overwrite, on_event=progress)
                kind = f"OME-Zarr {version}, {len(pyramid_shapes(info.shape))} levels"
            remove_default_cache(volume, asked_for=given["cache"] is not None)
    finally:
        progress.close()
    click.echo(_summary(info, destination, kind))
    for line in summary_lines(volume):
        click.echo(f"  {line}")


def _summary(info: VolumeInfo, destination: Path, kind: str) -> str:
    z, y, x = info.shape
    size = "not known" if info.voxel_size is None else " x ".join(f"{n:g}" for n in info.voxel_size) + " A"
    read = z * y * x * info.dtype.itemsize
    return "\n".join(
        [
            f"{destination}: {kind}",
            f"  shape       {z} x {y} x {x} (z, y, x) {info.dtype}",
            f"  voxel size  {size}",
            f"  voxels      {_in_units(read)} in, {_in_units(_bytes_at(destination))} on disk",
        ]
    )


def _bytes_at(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _in_units(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
