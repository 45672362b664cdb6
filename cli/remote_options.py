"""Options for tomograms that lie elsewhere, and for regions of tomograms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import click
from etsam_zarr_cli.result_options import region

from etsam_zarr.errors import SettingsError
from etsam_zarr.remote.volumes import RemoteOptions, opening_with
from etsam_zarr.roi import RoiVolume, box_of_angstrom
from etsam_zarr.volume import Volume

CACHE_SUFFIX = ".cache"

Cache = Literal["memory", "none"] | Path


def _angstrom(text: str) -> tuple[tuple[float, float], ...]:
    """Turn ``"0:500,100:2000,100:2000"`` into ranges, z, y, x.

    >>> _angstrom("0:500,1.5:20,0:9")
    ((0.0, 500.0), (1.5, 20.0), (0.0, 9.0))
    """
    try:
        ranges = [(float(start), float(stop)) for start, stop in (part.split(":") for part in text.split(","))]
    except ValueError:
        ranges = []
    if len(ranges) != 3 or not all(0 <= start < stop < float("inf") for start, stop in ranges):
        raise click.BadParameter(
            f"{text!r} is no region: give start:stop in angstrom for z, y and x, such as 0:500,1000:2000,1000:2000."
        )
    return tuple(ranges)


REGION_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--roi", type=region, metavar="Z:Z,Y:Y,X:X",
        help="Only this region, in voxels of the level, stop exclusive.",
    ),
    click.option(
        "--roi-angstrom", type=_angstrom, metavar="Z:Z,Y:Y,X:X",
        help="Only this region, in angstrom from the first voxel's outer face.",
    ),
]  # fmt: skip

ACCESS_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--s3-endpoint", metavar="URL", help="Address of an S3 service other than Amazon's."),
    click.option("--s3-profile", metavar="NAME", help="Profile in ~/.aws with the credentials for s3:// addresses."),
    click.option(
        "--missing-chunks", type=click.Choice(["fill", "error"]), default="fill", show_default=True,
        help="What to do where an address lacks a chunk: take the fill value and count it, or stop.",
    ),
]  # fmt: skip

CACHE_OPTION = click.option(
    "--cache", metavar="DIR|memory|none",
    help="Where what is fetched from an address is kept: a folder, memory, or only while a layer of chunks is being "
    f"read. [default: a folder beside the output, *{CACHE_SUFFIX}, removed at the end]",
)  # fmt: skip


def with_options(options: list[Callable[[Any], Any]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command options, shown in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of access, for every address that it opens."""

    @functools.wraps(command)
    def with_access(*args: Any, **given: Any) -> Any:  # noqa: ANN401
        names = ("s3_endpoint", "s3_profile", "missing_chunks")
        access = given_access({name: given.pop(name) for name in names})
        with opening_with(access):
            return command(*args, **given)

    return with_options(ACCESS_OPTIONS)(with_access)


def given_access(given: Mapping[str, Any]) -> RemoteOptions:
    """Return how addresses are to be opened; nothing is kept yet."""
    return RemoteOptions(
        s3_endpoint=given["s3_endpoint"], s3_profile=given["s3_profile"], missing_chunks=given["missing_chunks"]
    )


def given_cache(given: Mapping[str, Any], output: Path) -> Cache:
    """Return where fetched chunks are to be kept."""
    said: str | None = given["cache"]
    if said is None:
        return output.with_name(f"{output.name}{CACHE_SUFFIX}")
    if said in ("memory", "none"):
        return "memory" if said == "memory" else "none"
    return Path(said)


def given_region(volume: Volume, given: Mapping[str, Any]) -> Volume:
    """Return the region of a volume that was asked for, or the volume.

    Raises
    ------
    SettingsError
        Both options are given, or the region does not lie in the volume.
    InputError
        It is given in angstrom and the voxel size is not known.
    """
    if given["roi"] is not None and given["roi_angstrom"] is not None:
        raise SettingsError("Both --roi and --roi-angstrom are given. Give one of them.")
    if given["roi_angstrom"] is not None:
        return RoiVolume(volume, box_of_angstrom(volume.info, given["roi_angstrom"]))
    return volume if given["roi"] is None else RoiVolume(volume, given["roi"])
