"""``etsam-zarr weights``: ETSAM's published weights on this machine."""

from __future__ import annotations

import contextlib

import click
from etsam_zarr_cli.progress import Progress


@click.group("weights")
def command() -> None:
    """List, fetch and verify ETSAM's published weights (two files of about 320 MB).

    They are kept in the user's cache folder, or where ETSAM_ZARR_WEIGHTS says. Without network, copy
    etsam_stage1_v1.pt and etsam_stage2_v1.pt from https://doi.org/10.5281/zenodo.17571925 there.
    """


@command.command("list")
def list_command() -> None:
    """Say which files are here, and where."""
    from etsam_zarr.weights import list_weights, weights_folder

    click.echo(f"folder: {weights_folder()}")
    for file in list_weights():
        click.echo(f"{file.path.name}: {file.state}, {file.bytes / 1e6:.0f} MB")


@command.command("fetch")
def fetch_command() -> None:
    """Download what is missing; an interrupted download goes on where it was."""
    from etsam_zarr.weights import fetch

    with contextlib.closing(Progress()) as progress:
        paths = fetch(on_event=progress)
    for path in paths:
        click.echo(str(path))


@command.command("verify")
def verify_command() -> int:
    """Compare the files with the checksums of the record; exits with 1 if one differs."""
    from etsam_zarr.weights import verify

    files = verify()
    for file in files:
        click.echo(f"{file.path}: {file.state} ({file.checksum})")
    damaged = [file.path.name for file in files if file.state == "damaged"]
    if damaged:
        click.echo(
            f"Error: {' and '.join(damaged)} is damaged: its checksum differs from the record's. Delete it and give "
            "'etsam-zarr weights fetch'.",
            err=True,
        )
    return 1 if damaged else 0
