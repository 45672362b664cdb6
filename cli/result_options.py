"""Options that the commands on stored results share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.triples import whole_zyx

from etsam_zarr.geometry import Box, Span

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)

input_label = click.option(
    "--label", "label", metavar="NAME", help="Which label of the run store. [default: membranes]"
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace the result that is there.")
any_label = click.option("--any-label", is_flag=True, help="Take every value but 0 as membrane.")
workers = click.option("--workers", type=click.IntRange(min=1), help="Threads. [default: one for each processor]")
block = click.option(
    "--block", type=whole_zyx, metavar="Z,Y,X", help="Voxels labelled at once; changes memory, never the result."
)


def _condition(text: str) -> tuple[str, str]:
    column, separator, value = text.partition("=")
    if not (column and separator):
        raise click.BadParameter(f"{text!r} is no condition: give COLUMN=VALUE, such as split=test.")
    return column, value


where = click.option(
    "--where",
    "conditions",
    type=_condition,
    multiple=True,
    metavar="COLUMN=VALUE",
    callback=lambda _context, _option, given: dict(given),
    help="Only lines of the manifest with this value in this column, such as split=test; may be repeated.",
)


def numbers(text: str) -> tuple[float, ...]:
    """Turn ``"-0.5,0"`` into numbers.

    >>> numbers("-0.5,0")
    (-0.5, 0.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, or several with commas between, such as -0.5,0.") from None


def region(text: str) -> Box:
    """Turn ``"0:50,100:200,100:200"`` into a box, z, y, x.

    >>> [str(span) for span in region("0:50,100:200,0:9")]
    ['0:50', '100:200', '0:9']
    """
    try:
        z, y, x = (Span(int(start), int(stop)) for start, stop in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no region: give start:stop in voxels for z, y and x, such as 0:50,100:200,100:200."
        ) from None
    return z, y, x
