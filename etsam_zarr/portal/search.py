"""Finds tomograms and segmentation masks on the CryoET Data Portal, and decides which one an address means.

Never guesses: where an address fits several, they are listed and the choice is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etsam_zarr.errors import InputError, InputNotFoundError
from etsam_zarr.portal.address import Choice, PortalAddress, ids_of_layout, parse_address, zarr_sibling
from etsam_zarr.portal.query import ask
from etsam_zarr.portal.records import MASK_FIELDS, TOMOGRAM_FIELDS, PortalMask, PortalTomogram

_TOMOGRAMS = f"query Tomograms($where: TomogramWhereClause) {{ tomograms(where: $where) {{ {TOMOGRAM_FIELDS} }} }}"
_MASKS = f"query Masks($where: AnnotationFileWhereClause) {{ annotationFiles(where: $where) {{ {MASK_FIELDS} }} }}"

# Headers and folder names round spacings differently (13.48, 13.480796); other reconstructions differ by more.
_SPACING_TOLERANCE = 0.01
_LISTED = 25


@dataclass(frozen=True)
class Found:
    """What an address means."""

    places: tuple[str, ...]
    """Addresses of OME-Zarr images: one tomogram, or masks whose union is meant."""
    name: str
    """For people and file names."""
    ids: dict[str, int | float | str]
    """What the portal calls it."""


def resolve(text: str) -> Found | None:
    """Return what an address of the portal means; None for all that is no address of the portal.

    Takes what :func:`etsam_zarr.portal.address.parse_address` reads (one question to the portal), and the ``.mrc``
    of a volume that lies as on the portal, whose ``.zarr`` is meant (none).

    Raises
    ------
    InputError
        The portal cannot be asked, or several volumes are meant: the message lists them.
    InputNotFoundError
        The portal has no such volume.
    """
    sibling = zarr_sibling(text)
    if sibling is not None:
        return Found((sibling,), "", ids_of_layout(text))
    address = parse_address(text)
    if address is None:
        return None
    if address.is_mask:
        masks = one_for_each(find_masks(address), address)
        ids = {"annotation_ids": ",".join(str(mask.annotation_id) for mask in masks)}
        return Found(tuple(mask.https for mask in masks), f"annotation_{ids['annotation_ids']}", {**ids})
    tomogram = choose(find_tomograms(address), address)
    if tomogram.https is None:
        raise InputNotFoundError(
            f"The tomogram {tomogram.id} of run {tomogram.run_id} has no OME-Zarr on the CryoET Data Portal. Choose "
            f"another ('etsam-zarr portal list --run {tomogram.run_id}'), or download its MRC and give the local file."
        )
    return Found((tomogram.https,), tomogram.run_name, tomogram.ids)


def find_tomograms(address: PortalAddress) -> list[PortalTomogram]:
    """Return the tomograms of a run, of a dataset (no run given) or with an id, by id; the choice is not applied.

    Raises
    ------
    InputError
        The portal cannot be asked.
    """
    where: dict[str, Any] = _where_run(address)
    if not where and address.choice.tomogram_id is not None:
        where = {"id": {"_eq": address.choice.tomogram_id}}
    nodes = ask(_TOMOGRAMS, {"where": where})["tomograms"]
    return sorted(map(PortalTomogram.from_answer, nodes), key=lambda tomogram: (tomogram.run_id, tomogram.id))


def find_masks(address: PortalAddress, *, object_name: str | None = None) -> list[PortalMask]:
    """Return the segmentation masks (OME-Zarr) of annotations, of a run or of a dataset, by id.

    Parameters
    ----------
    address
        Whose; a voxel spacing in its choice is applied.
    object_name
        Only where the annotated object's name holds this text, in any case.

    Raises
    ------
    InputError
        The portal cannot be asked.
    """
    annotation: dict[str, Any] = {}
    run = _where_run(address)
    if run:
        annotation.update(run)
    if object_name is not None:
        annotation["objectName"] = {"_ilike": f"%{object_name}%"}
    shape: dict[str, Any] = {"shapeType": {"_eq": "SegmentationMask"}}
    if annotation:
        shape["annotation"] = annotation
    if address.annotation_ids:
        shape["annotationId"] = {"_in": list(address.annotation_ids)}
    where: dict[str, Any] = {"annotationShape": shape}
    if address.mask_ids:
        where["id"] = {"_in": list(address.mask_ids)}
    nodes = ask(_MASKS, {"where": where})["annotationFiles"]
    # Every mask lies there as MRC as well.
    masks = [PortalMask.from_answer(node) for node in nodes if str(node.get("httpsPath")).rstrip("/").endswith(".zarr")]
    return sorted(
        (mask for mask in masks if _spacing_fits(mask.voxel_spacing, address.choice)),
        key=lambda mask: (mask.run_id, mask.annotation_id, mask.id),
    )


def narrow(candidates: Sequence[PortalTomogram], choice: Choice) -> list[PortalTomogram]:
    """Return the tomograms that a choice leaves."""
    return [
        tomogram
        for tomogram in candidates
        if (choice.tomogram_id is None or tomogram.id == choice.tomogram_id)
        and _spacing_fits(tomogram.voxel_spacing, choice)
        and (choice.processing is None or tomogram.processing == choice.processing)
        and (tomogram.curator_default or not choice.curator_default)
    ]


def choose(candidates: Sequence[PortalTomogram], address: PortalAddress) -> PortalTomogram:
    """Return the one tomogram that an address means.

    Raises
    ------
    InputNotFoundError
        There is none.
    InputError
        There are several; they are listed.
    """
    if not candidates:
        raise InputNotFoundError(
            f"The CryoET Data Portal has no tomogram for {address}: there is no such run, or it has no reconstruction. "
            "Check the number in the link of the run; 'etsam-zarr portal list --dataset ID' shows a dataset's runs."
        )
    left = narrow(candidates, address.choice)
    if len(left) == 1:
        return left[0]
    if not left:
        raise InputNotFoundError(
            f"None of the {len(candidates)} tomograms of the CryoET Data Portal for this run is {address}. "
            f"Choose another:\n{_table(candidates)}"
        )
    raise InputError(
        f"{address} fits {len(left)} tomograms of the CryoET Data Portal. Say which one: --tomogram-id ID, or "
        f"@SPACING, ?processing=NAME or ?tomogram=ID behind the address.\n{_table(left)}"
    )


def one_for_each(masks: Sequence[PortalMask], address: PortalAddress) -> list[PortalMask]:
    """Return one mask for each annotation that an address names.

    Raises
    ------
    InputNotFoundError
        An annotation has none.
    InputError
        An annotation has several.
    """
    by_annotation: dict[int, list[PortalMask]] = {}
    for mask in masks:
        by_annotation.setdefault(mask.annotation_id, []).append(mask)
    known = set(by_annotation) if address.annotation_ids else {mask.id for mask in masks}
    missing = [number for number in address.annotation_ids or address.mask_ids if number not in known]
    if missing or not masks:
        raise InputNotFoundError(
            f"The CryoET Data Portal has no segmentation mask as OME-Zarr for {address}"
            f"{f' (missing: {_listed(missing)})' if missing else ''}: points and meshes are no masks, and a mask "
            "belongs to one voxel spacing. 'etsam-zarr portal list --annotations --run RUN_ID' shows what a run has."
        )
    several = {number: found for number, found in by_annotation.items() if len(found) > 1}
    if several and not address.mask_ids:
        lines = "\n".join(mask_line(mask) for found in several.values() for mask in found)
        raise InputError(
            f"{address} fits several masks of annotation {_listed(sorted(several))}. Say which one: @SPACING behind "
            f"the address, or portal:mask/ID.\n{lines}"
        )
    return list(masks)


def tomogram_line(tomogram: PortalTomogram) -> str:
    """Describe a tomogram for people who must choose."""
    shown = ", shown first by the portal" if tomogram.curator_default else ""
    return (
        f"  --tomogram-id {tomogram.id}  {tomogram.voxel_spacing:g} A  {tomogram.processing}  {tomogram.method}  "
        f"{' x '.join(map(str, tomogram.shape))} (z y x), {tomogram.bytes / 1e9:.2f} GB uncompressed{shown}"
    )


def mask_line(mask: PortalMask) -> str:
    """Describe a segmentation mask for people who must choose."""
    spacing = "" if mask.voxel_spacing is None else f"{mask.voxel_spacing:g} A  "
    truth = ", ground truth" if mask.ground_truth else ""
    return f"  portal:mask/{mask.id}  annotation {mask.annotation_id}  {spacing}{mask.object_name}{truth}"


def _where_run(address: PortalAddress) -> dict[str, Any]:
    if address.run_id is not None:
        return {"runId": {"_eq": address.run_id}}
    run: dict[str, Any] = {}
    if address.dataset_id is not None:
        run["datasetId"] = {"_eq": address.dataset_id}
    if address.run_name is not None:
        run["name"] = {"_eq": address.run_name}
    return {"run": run} if run else {}


def _spacing_fits(spacing: float | None, choice: Choice) -> bool:
    if choice.voxel_spacing is None or spacing is None:
        return True
    return abs(spacing - choice.voxel_spacing) <= _SPACING_TOLERANCE


def _table(tomograms: Sequence[PortalTomogram]) -> str:
    lines = [tomogram_line(tomogram) for tomogram in tomograms[:_LISTED]]
    if len(tomograms) > _LISTED:
        lines.append(f"  and {len(tomograms) - _LISTED} more")
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
