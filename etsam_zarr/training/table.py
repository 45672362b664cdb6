"""Pairs to train on from a table: files, addresses, or ETSAM's ``dataset.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etsam_zarr.errors import InputError
from etsam_zarr.events import Notice, OnEvent, ignore
from etsam_zarr.manifest import matching, read_rows
from etsam_zarr.portal.address import Choice
from etsam_zarr.portal.search import choose, find_tomograms
from etsam_zarr.portal.table import COLUMNS, Unresolved, run_of, truth_address, truth_of
from etsam_zarr.sources import as_place
from etsam_zarr.training.pairs import Pair


def pairs_of_table(
    path: Path,
    *,
    conditions: Mapping[str, str] | None = None,
    choice: Choice | None = None,
    truth_object: str | None = None,
    on_event: OnEvent = ignore,
) -> list[Pair]:
    """Return the pairs of a CSV file.

    A row names them in the columns ``volume`` and ``mask`` (paths from the table's folder on, or addresses; without a
    mask it is the label inside), or in ETSAM's columns ``dataset_id``, ``run_id`` and ``annotation_ids``. Rows of the
    latter that name nothing on the CryoET Data Portal are left out with a notice.

    Parameters
    ----------
    path
        The table.
    conditions
        Only rows with these values in these columns.
    choice
        Which tomogram to take of runs of the portal, over what the rows say.
    truth_object
        Masks of objects with this text in their name, for rows that name no annotation.
    on_event
        Listener for notices.

    Raises
    ------
    InputError
        The table cannot be read or names no pair, or the portal has not exactly one tomogram or mask for a row.
    """
    rows = matching(read_rows(path), conditions or {}, path)
    if "volume" not in rows[0] and not set(COLUMNS) <= set(rows[0]):
        raise InputError(
            f"The table {path} names no pairs: it needs the columns volume and mask, or dataset_id, run_id and "
            f"annotation_ids as ETSAM's dataset.csv has. Its columns are: {', '.join(rows[0])}."
        )
    pairs: dict[Pair, None] = {}
    for row in rows:
        pair = _pair(path, row, choice or Choice(), truth_object)
        if isinstance(pair, Unresolved):
            called = ", ".join(row.get(column, "") for column in COLUMNS)
            on_event(Notice(f"The row {called} is left out: {pair.reason}."))
        else:
            pairs[pair] = None
    if not pairs:
        raise InputError(
            f"None of the {len(rows)} rows of {path} names a tomogram with its truth on the CryoET Data Portal; the "
            "notices say why. --truth-object membrane takes the portal's membrane masks where a row names none."
        )
    return list(pairs)


def _pair(path: Path, row: dict[str, str], choice: Choice, truth_object: str | None) -> Pair | Unresolved:
    if row.get("volume", "").strip():
        mask = row.get("mask", "").strip()
        return Pair(_place(path, row["volume"]), _place(path, mask) if mask else None)
    run, wish = run_of(row), truth_of(row, object_name=truth_object)
    if isinstance(run, Unresolved):
        return run
    if isinstance(wish, Unresolved):
        return wish
    run = run.narrowed(choice)
    tomogram = choose(find_tomograms(run), run)
    # A mask belongs to one spacing: that of the tomogram.
    truth = truth_address(run.narrowed(Choice(voxel_spacing=tomogram.voxel_spacing)), wish)
    return Pair(f"portal:tomogram/{tomogram.id}", str(truth))


def _place(path: Path, text: str) -> str:
    place = as_place(text.strip())
    return str(path.parent / place if isinstance(place, Path) else place)
