"""``etsam-zarr weights``: ETSAM's published weights on this machine, and the bundled ones."""

from __future__ import annotations

import contextlib

import click
from etsam_zarr_cli.progress import Progress


@click.group("weights")
def command() -> None:
    """List, fetch and verify weights: ETSAM's published ones (two files of about 320 MB) and the bundled model's.

    ETSAM's are kept in the user's cache folder, or where ETSAM_ZARR_WEIGHTS says. Without network, copy
    etsam_stage1_v1.pt and etsam_stage2_v1.pt from https://doi.org/10.5281/zenodo.17571925 there.
    """


@command.command("list")
def list_command() -> None:
    """Say which files are here, and where."""
    from etsam_zarr.bundled import bundled_state
    from etsam_zarr.model_config import BUNDLED_FOLDER, BUNDLED_MODEL
    from etsam_zarr.weights import list_weights, weights_folder

    click.echo(f"folder: {weights_folder()}")
    for file in list_weights():
        click.echo(f"{file.path.name}: {file.state}, {file.bytes / 1e6:.0f} MB")
    click.echo(f"bundled model {BUNDLED_MODEL}: {BUNDLED_FOLDER}")
    for path, state in bundled_state().items():
        click.echo(f"{path.name}: {state}, {path.stat().st_size / 1e6 if path.is_file() else 0:.0f} MB")


@command.command("fetch")
def fetch_command() -> None:
    """Download what is missing; an interrupted download goes on where it was."""
    from etsam_zarr.weights import fetch

    with contextlib.closing(Progress()) as progress:
        paths = fetch(on_event=progress)
    for path in paths:
        click.echo(str(path))


@command.command("verify")
@click.option("--bundled", is_flag=True, help="Only the bundled model's weights; needs neither ETSAM's nor a network.")
def verify_command(bundled: bool) -> int:
    """Compare the files with their checksums; exits with 1 if one differs or is missing."""
    from etsam_zarr.bundled import bundled_state
    from etsam_zarr.weights import verify

    ours = bundled_state()
    for path, state in ours.items():
        click.echo(f"{path}: {state}")
    files = [] if bundled else verify()
    for file in files:
        click.echo(f"{file.path}: {file.state} ({file.checksum})")
    damaged = [file.path.name for file in files if file.state == "damaged"]
    if damaged:
        click.echo(
            f"Error: {' and '.join(damaged)} is damaged: its checksum differs from the record's. Delete it and give "
            "'etsam-zarr weights fetch'.",
            err=True,
        )
    broken = [f"{path.name} is {state}" for path, state in ours.items() if state != "whole"]
    if broken:
        click.echo(
            f"Error: of the bundled model, {' and '.join(broken)}. Install etsam-zarr again to have its files.",
            err=True,
        )
    return 1 if damaged or broken else 0
