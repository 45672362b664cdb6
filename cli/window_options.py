"""The options of ``run`` and ``plan`` that say whether the depth is computed in one go or in windows at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Span
from etsam_zarr.plan import DEFAULT_CONTEXT, DEFAULT_TOLERANCE, Seams, cut_windows
from etsam_zarr.runstore import RunStore
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH


def _count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Take a positive number, or ``auto``, which is the default."""
    if value in (None, "auto"):
        return None
    count: int = click.IntRange(min=1).convert(value, parameter, context)  # type: ignore[arg-type] # it takes text
    return count


WINDOW_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--mode", type=click.Choice(["stream", "parallel"]), default="stream", show_default=True,
        help="stream walks through the depth once and is exact; parallel cuts it into windows that are computed at "
        "once, and repairs their beginnings until they agree.",
    ),
    click.option(
        "--windows", callback=_count, metavar="N|auto",
        help="Number of windows in parallel mode. [default: auto, one per device or worker]",
    ),
    click.option(
        "--context", type=click.IntRange(min=0),
        help=f"Slices that a window is begun early in parallel mode, as a better guess. [default: {DEFAULT_CONTEXT}]",
    ),
    click.option(
        "--seam-tolerance", type=click.FloatRange(min=0),
        help="Mean difference of a slice's logits up to which windows agree in parallel mode; 0 makes the result exact "
        f"and recomputes far more. [default: {DEFAULT_TOLERANCE:g}]",
    ),
]  # fmt: skip


def given_windows(given: dict[str, Any], depth: int, destination: Path) -> dict[str, Any]:
    """Return the windows and seams of a plan.

    ``auto`` takes the windows of the run store that is there, so that a run can be finished with another number of
    workers; else one per worker, of which there are ``given["team_size"]``.

    Raises
    ------
    SettingsError
        An option of parallel mode is given in stream mode.
    """
    if given["mode"] == "stream":
        for name in ("windows", "context", "seam_tolerance"):
            if given[name] is not None:
                flag = name.replace("_", "-")
                raise SettingsError(f"--{flag} belongs to parallel mode. Give --mode parallel, or leave it out.")
        return {}
    seams = Seams(
        DEFAULT_CONTEXT if given["context"] is None else given["context"],
        DEFAULT_TOLERANCE if given["seam_tolerance"] is None else given["seam_tolerance"],
    )
    count = given["windows"]
    if count is None:
        stored = None if given.get("overwrite") else _stored_windows(destination)
        if stored is not None and stored[-1].stop == depth:
            return {"windows": stored, "seams": seams}
        count = given["team_size"]
    return {"windows": cut_windows(depth, count, unit=LOGIT_CHUNK_DEPTH), "seams": seams}


def _stored_windows(destination: Path) -> tuple[Span, ...] | None:
    """Return the windows of the parallel run that is there, if there is one."""
    if not RunStore.is_store(destination):
        return None
    record = RunStore.open(destination).record
    if record["fingerprint"].get("mode") != "parallel":
        return None
    return tuple(Span(start, stop) for start, stop in record["windows"])
