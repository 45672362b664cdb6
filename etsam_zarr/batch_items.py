"""What a manifest asks a batch for: the tomogram of each line, and what to call its run store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam_zarr.errors import InputError
from etsam_zarr.portal.address import Choice, PortalAddress, parse_address
from etsam_zarr.portal.table import COLUMNS, Unresolved, run_of
from etsam_zarr.sources import as_place, base_name


@dataclass(frozen=True)
class BatchItem:
    """One line of a manifest."""

    columns: dict[str, str]
    """What the line says."""
    source: str
    """Path or address of the tomogram; empty where there is none."""
    name: str
    """Of its run store, without suffix."""
    reason: str = ""
    """Why it has no source."""


def read_items(manifest: Path, rows: Sequence[dict[str, str]], *, choice: Choice | None = None) -> list[BatchItem]:
    """Return what the rows of a manifest ask for.

    A row names its tomogram in the column ``input`` (a path, from the manifest's folder on, or an address), or in
    ETSAM's columns ``dataset_id`` and ``run_id``. The column ``name`` names the run store. A row that is there twice
    counts once.

    Parameters
    ----------
    manifest
        Where the rows come from.
    rows
        As :func:`etsam_zarr.manifest.read_rows` gives them.
    choice
        Which tomogram to take of runs of the portal, over what the rows say.

    Raises
    ------
    InputError
        Neither way of naming tomograms is there, an address is malformed, or two inputs have one name.
    """
    if "input" not in rows[0] and not set(COLUMNS) <= set(rows[0]):
        raise InputError(
            f"The manifest {manifest} names no tomograms: it needs the column input, or dataset_id and run_id as "
            f"ETSAM's tables have. Its columns are: {', '.join(rows[0])}."
        )
    items: dict[str, BatchItem] = {}
    for row in rows:
        item = _item(manifest, row, choice or Choice())
        other = items.setdefault(item.name, item)
        if other.source != item.source:
            raise InputError(
                f"The manifest {manifest} has two inputs that would both be named {item.name!r}: {other.source} and "
                f"{item.source}. Add a column name."
            )
    return list(items.values())


def file_name(address: PortalAddress) -> str:
    """Return what to call files that belong to a tomogram of the portal, without asking it.

    >>> file_name(PortalAddress(dataset_id=10160, run_name="ycw2013-01-03-15", choice=Choice(voxel_spacing=16.145)))
    '10160_ycw2013-01-03-15_16.145A'
    """
    choice = address.choice
    if address.run_id is not None:
        name = f"run_{address.run_id}"
    elif address.run_name is not None:
        name = f"{address.dataset_id}_{address.run_name}"
    else:
        name = f"tomogram_{choice.tomogram_id}"
    parts = [
        name,
        *([f"{choice.voxel_spacing:g}A"] if choice.voxel_spacing is not None else []),
        *([choice.processing] if choice.processing else []),
        *([str(choice.tomogram_id)] if choice.tomogram_id is not None and not name.startswith("tomogram_") else []),
    ]
    return "_".join(parts)


def _item(manifest: Path, row: dict[str, str], choice: Choice) -> BatchItem:
    given = row.get("input", "").strip()
    name = row.get("name", "").strip()
    if name and not re.fullmatch(r"[^/\\\0]+", name.strip(".")):
        raise InputError(f"The manifest {manifest} has the name {name!r}, which is no name of a file. Change it.")
    if not given:
        address = run_of(row)
        table_name = "_".join(row.get(column, "").strip() for column in COLUMNS).replace("/", "_")
        if isinstance(address, Unresolved):
            return BatchItem(row, "", name or table_name, address.reason)
        return BatchItem(row, str(address.narrowed(choice)), name or table_name)
    portal = parse_address(given)
    if portal is not None:
        # Named after what the manifest says: a choice for all rows tells none from another.
        return BatchItem(row, str(portal.narrowed(choice)), name or file_name(portal))
    place = as_place(given)
    source = str(manifest.parent / place.expanduser() if isinstance(place, Path) else place)
    return BatchItem(row, source, name or base_name(source))
