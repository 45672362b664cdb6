"""Rows of tables that name runs of the CryoET Data Portal, in the columns of ETSAM's dataset.csv and testset.csv.

``dataset_id`` and ``run_id`` name the run, ``annotation_ids`` its truth: ids with ``|`` between, ``none``,
``simulated_annotation`` or, in early versions, ``all_membrane_annotations``. Rows of other archives (``emdb``,
``empiar_11718``, ``polnet_data_3``) stand among them. Beyond ETSAM's, ``tomogram_id``, ``voxel_spacing`` and
``processing`` choose among a run's tomograms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from etsam_zarr.errors import InputError
from etsam_zarr.portal.address import Choice, PortalAddress
from etsam_zarr.portal.search import find_masks, mask_line, one_for_each

COLUMNS = ("dataset_id", "run_id")
_ALL_MEMBRANES = "all_membrane_annotations"


@dataclass(frozen=True)
class Unresolved:
    """Why a row names nothing on the portal."""

    reason: str


@dataclass(frozen=True)
class TruthWish:
    """Which masks of a run are its truth; without either the run must have exactly one."""

    annotation_ids: tuple[int, ...] = ()
    object_name: str | None = None
    """All masks of objects whose name has this text."""


def run_of(row: Mapping[str, str]) -> PortalAddress | Unresolved:
    """Return the tomogram that a row names.

    >>> str(run_of({"dataset_id": "10000", "run_id": "245", "annotation_ids": "none"}))
    'portal:245'
    >>> run_of({"dataset_id": "emdb", "run_id": "4603"}).reason
    'emdb is no dataset of the CryoET Data Portal'

    Raises
    ------
    InputError
        A column that chooses among tomograms cannot be read.
    """
    dataset, run = (row.get(name, "").strip() for name in COLUMNS)
    if not dataset.isdecimal():
        return Unresolved(f"{dataset or 'an empty dataset_id'} is no dataset of the CryoET Data Portal")
    if not run:
        return Unresolved("it names no run")
    number = row.get("tomogram_id", "").strip()
    if number and not number.isdecimal():
        raise InputError(f"The row of dataset {dataset}, run {run} has the tomogram_id {number!r}, which is no number.")
    choice = Choice(
        int(number) if number else None, _spacing(row, dataset, run), row.get("processing", "").strip() or None
    )
    # In ETSAM's tables the run_id is the portal's number; people also write the run's name.
    if run.isdecimal():
        return PortalAddress(run_id=int(run), choice=choice)
    return PortalAddress(dataset_id=int(dataset), run_name=run, choice=choice)


def truth_of(row: Mapping[str, str], *, object_name: str | None = None) -> TruthWish | Unresolved:
    """Return the truth that a row names; ``object_name`` stands in where it names none.

    >>> truth_of({"annotation_ids": "26081|12765"}).annotation_ids
    (26081, 12765)
    >>> truth_of({"annotation_ids": "none"}).reason
    "its annotation_ids are 'none'"
    """
    listed = row.get("annotation_ids", "").strip()
    parts = [part.strip() for part in re.split(r"[|,;]", listed) if part.strip()]
    if parts and all(part.isdecimal() for part in parts):
        return TruthWish(tuple(map(int, parts)))
    if object_name is not None:
        return TruthWish(object_name=object_name)
    if listed == _ALL_MEMBRANES:
        return TruthWish(object_name="membrane")
    return Unresolved(f"its annotation_ids are {listed!r}")


def truth_address(run: PortalAddress, wish: TruthWish) -> PortalAddress:
    """Return the masks that are a run's truth; a voxel spacing in the run's choice picks those that belong to it.

    Raises
    ------
    InputNotFoundError
        The portal has no such masks.
    InputError
        Several masks are meant and none was named: they are listed.
    """
    spacing = Choice(voxel_spacing=run.choice.voxel_spacing)
    if wish.annotation_ids:
        return PortalAddress(annotation_ids=wish.annotation_ids, choice=spacing)
    where = PortalAddress(run_id=run.run_id, dataset_id=run.dataset_id, run_name=run.run_name, choice=spacing)
    masks = one_for_each(find_masks(where, object_name=wish.object_name), where)
    if wish.object_name is None and len(masks) > 1:
        raise InputError(
            f"{where} has {len(masks)} segmentation masks on the CryoET Data Portal. Say which are the truth: "
            "--annotation-ids ID,ID, or --truth-object NAME for all objects of a name.\n"
            + "\n".join(mask_line(mask) for mask in masks)
        )
    return PortalAddress(mask_ids=tuple(mask.id for mask in masks))


def run_of_ids(ids: Mapping[str, object]) -> PortalAddress | Unresolved:
    """Return the run that a run store came from, as its ``run.json`` notes it, at its voxel spacing."""
    spacing = ids.get("voxel_spacing")
    choice = Choice(voxel_spacing=float(str(spacing)) if spacing is not None else None)
    if "run_id" in ids:
        return PortalAddress(run_id=int(str(ids["run_id"])), choice=choice)
    if "dataset_id" in ids and "run_name" in ids:
        return PortalAddress(dataset_id=int(str(ids["dataset_id"])), run_name=str(ids["run_name"]), choice=choice)
    return Unresolved("it was not read from the CryoET Data Portal")


def _spacing(row: Mapping[str, str], dataset: str, run: str) -> float | None:
    text = row.get("voxel_spacing", "").strip()
    if not text:
        return None
    try:
        spacing = float(text)
    except ValueError:
        spacing = math.nan
    if not 0 < spacing < math.inf:
        raise InputError(
            f"The row of dataset {dataset}, run {run} has the voxel_spacing {text!r}; give angstrom, such as 16.145."
        )
    return spacing
