"""``etsam-zarr plan``: what a run would do and need."""

from __future__ import annotations

from typing import Any

import click
from etsam_zarr_cli.report import plan_lines
from etsam_zarr_cli.run_options import prepare, run_options
from etsam_zarr_cli.worker_options import team_of


@click.command()
@run_options
def command(**given: Any) -> None:  # noqa: ANN401
    """Say what 'run' with the same options would do and need, and whether it fits; start nothing."""
    team = team_of(given)
    prepared = prepare({**given, "team_size": team.count})
    team.follows(prepared.plan)  # refuses --follow where that cannot be
    from etsam_zarr_cli.resources import Resources

    from etsam_zarr.memory import check_fits

    resources = Resources.of(prepared, given, team)
    for line in plan_lines(
        prepared, resources.projection, device=str(resources.device), precision=resources.precision, team=team
    ):  # fmt: skip
        click.echo(line)
    for warning in resources.warnings:
        click.echo(f"Warning: {warning}", err=True)
    check_fits(resources.projection, prepared.destination, device_free=resources.device_free)
