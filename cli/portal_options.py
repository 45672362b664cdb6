"""Options that say which of a run's tomograms on the CryoET Data Portal is meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from etsam_zarr.errors import SettingsError
from etsam_zarr.portal.address import Choice, parse_address

PROCESSING = click.Choice(["raw", "filtered", "denoised", "filtered_even", "filtered_odd"])

CHOICE_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--tomogram-id", type=click.IntRange(min=1), help="CryoET Data Portal: which tomogram of the run, by its id."
    ),
    click.option(
        "--tomogram-spacing", type=click.FloatRange(min=0, min_open=True), metavar="A",
        help="CryoET Data Portal: the tomogram with this voxel spacing in angstrom.",
    ),
    click.option(
        "--tomogram-processing", type=PROCESSING, help="CryoET Data Portal: the tomogram that was processed so."
    ),
    click.option(
        "--tomogram-default", is_flag=True, help="CryoET Data Portal: the tomogram that its curators show first."
    ),
]  # fmt: skip


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a choice; read them with :func:`given_choice`."""
    for option in reversed(CHOICE_OPTIONS):
        command = option(command)
    return command


def given_choice(given: Mapping[str, Any]) -> Choice:
    """Return the choice among what the command line gave."""
    return Choice(
        given.get("tomogram_id"), given["tomogram_spacing"], given["tomogram_processing"], given["tomogram_default"]
    )


def chosen(source: str, choice: Choice) -> str:
    """Return an address with a choice put over its own.

    Raises
    ------
    SettingsError
        There is a choice, and the address is none of the portal.
    """
    if choice == Choice():
        return source
    address = parse_address(source)
    if address is None or address.is_mask:
        raise SettingsError(
            "--tomogram-id, --tomogram-spacing, --tomogram-processing and --tomogram-default choose among the "
            f"tomograms of a run on the CryoET Data Portal, and {source} names none. Leave them out."
        )
    return str(address.narrowed(choice))
