"""Three numbers in z, y, x on the command line; give these functions as the ``type`` of a click option."""

from __future__ import annotations

import math

import click

from etsam_zarr.geometry import Shape3


def voxel_size(text: str) -> tuple[float, float, float]:
    """Turn ``"10.5"`` or ``"20,10.5,10.5"`` into edge lengths in angstrom, z, y, x.

    >>> voxel_size("10.5"), voxel_size("20,10,10")
    ((10.5, 10.5, 10.5), (20.0, 10.0, 10.0))
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise click.BadParameter(f"{text!r} is no voxel size: give one length above 0 in angstrom, or three as z,y,x.")
    z, y, x = numbers * 3 if len(numbers) == 1 else numbers
    return z, y, x


def whole_zyx(text: str) -> Shape3:
    """Turn ``"16,256,256"`` into three whole numbers above 0.

    >>> whole_zyx("16,256,256")
    (16, 256, 256)
    """
    try:
        z, y, x = (int(part) for part in text.split(","))
    except ValueError:
        z, y, x = 0, 0, 0
    if min(z, y, x) < 1:
        raise click.BadParameter(f"{text!r} is not three whole numbers above 0 as z,y,x, such as 16,256,256.")
    return z, y, x
