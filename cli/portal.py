"""``etsam-zarr portal``: what the CryoET Data Portal has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from etsam_zarr_cli.portal_options import PROCESSING

from etsam_zarr.errors import SettingsError

if TYPE_CHECKING:
    from etsam_zarr.portal.address import PortalAddress
    from etsam_zarr.portal.records import PortalMask, PortalTomogram


@click.group()
def command() -> None:
    """Look at the CryoET Data Portal, https://cryoetdataportal.czscience.com, without downloading."""


@command.command("list")
@click.argument("address", required=False)
@click.option("--dataset", "dataset_id", type=click.IntRange(min=1), help="Everything of this dataset.")
@click.option("--run", "run", metavar="ID|NAME", help="Only this run; by its name together with --dataset.")
@click.option("--voxel-spacing", type=click.FloatRange(min=0, min_open=True), help="Only this spacing, in angstrom.")
@click.option("--processing", type=PROCESSING, help="Only tomograms that were processed so.")
@click.option("--annotations", is_flag=True, help="List segmentation masks instead of tomograms.")
@click.option("--object", "object_name", metavar="TEXT", help="With --annotations: only objects whose name has TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_command(
    address: str | None, *, dataset_id: int | None, run: str | None, voxel_spacing: float | None,
    processing: str | None, annotations: bool, object_name: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List tomograms, or segmentation masks, with ids and sizes.

    ADDRESS is portal:RUN_ID, portal:DATASET_ID/RUN_NAME or the link of a run; or give --dataset, --run or both.
    """
    from etsam_zarr.portal.address import Choice
    from etsam_zarr.portal.search import find_masks, find_tomograms, narrow

    if object_name is not None and not annotations:
        raise SettingsError("--object goes with --annotations, which lists segmentation masks.")
    place = _place(address, dataset_id, run).narrowed(Choice(None, voxel_spacing, processing))
    if annotations:
        masks = find_masks(place, object_name=object_name)
        click.echo(_as_json(masks) if as_json else "\n".join(_mask_table(masks)))
    else:
        tomograms = narrow(find_tomograms(place), place.choice)
        click.echo(_as_json(tomograms) if as_json else "\n".join(_tomogram_table(tomograms)))


def _place(address: str | None, dataset_id: int | None, run: str | None) -> PortalAddress:
    """Return what is to be listed."""
    from etsam_zarr.portal.address import PortalAddress, parse_address

    if address is not None:
        place = parse_address(address)
        if place is None or place.is_mask:
            raise SettingsError(
                f"{address} names no run of the CryoET Data Portal. Give portal:RUN_ID, portal:DATASET_ID/RUN_NAME or "
                "the link of a run, or --dataset and --run."
            )
        if dataset_id is not None or run is not None:
            raise SettingsError(f"{address} says what to list; leave out --dataset and --run.")
        return place
    if run is not None and dataset_id is None and not run.isdecimal():
        raise SettingsError(
            f"--run {run} is a name, which several datasets may have. Give --dataset as well, or the run's id."
        )
    if run is not None:
        # Names of runs may consist of digits: with a dataset a run is called by its name.
        return PortalAddress(run_id=int(run)) if dataset_id is None else PortalAddress(None, dataset_id, run)
    if dataset_id is not None:
        return PortalAddress(dataset_id=dataset_id)
    raise SettingsError("There is nothing to list: give --dataset ID, --run ID, or an address such as portal:8354.")


def _tomogram_table(tomograms: Sequence[PortalTomogram]) -> list[str]:
    if not tomograms:
        return ["No tomogram fits."]
    rows = [
        ("run", "name", "tomogram", "voxel A", "processing", "method", "voxels z y x", "GB uncompressed", "stored GB")
    ]
    rows += [
        (
            str(tomogram.run_id), tomogram.run_name, f"{tomogram.id}{'*' if tomogram.curator_default else ''}",
            f"{tomogram.voxel_spacing:g}", tomogram.processing, tomogram.method, " x ".join(map(str, tomogram.shape)),
            _gigabytes(tomogram.bytes), _gigabytes(tomogram.stored_bytes) if tomogram.https else "no OME-Zarr",
        )
        for tomogram in tomograms
    ]  # fmt: skip
    total = sum(tomogram.bytes for tomogram in tomograms) / 1e9
    return [
        *_aligned(rows),
        f"{len(tomograms)} tomograms, {total:.3g} GB uncompressed (4 bytes a voxel, as the portal stores float32); "
        "'stored' is the OME-Zarr with all levels. * is shown first by the portal.",
    ]


def _mask_table(masks: Sequence[PortalMask]) -> list[str]:
    if not masks:
        return ["No segmentation mask fits."]
    rows = [("run", "name", "annotation", "mask", "voxel A", "object", "ground truth", "method", "stored GB")]
    rows += [
        (
            str(mask.run_id), mask.run_name, str(mask.annotation_id), str(mask.id),
            "" if mask.voxel_spacing is None else f"{mask.voxel_spacing:g}", mask.object_name,
            {True: "yes", False: "no", None: ""}[mask.ground_truth], mask.method, _gigabytes(mask.stored_bytes),
        )
        for mask in masks
    ]  # fmt: skip
    return [*_aligned(rows), f"{len(masks)} masks; give them as portal:annotation/ID,ID@SPACING or portal:mask/ID."]


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _as_json(records: Sequence[Any]) -> str:
    return json.dumps(
        [
            {**dataclasses.asdict(record), **({"bytes": record.bytes} if hasattr(record, "bytes") else {})}
            for record in records
        ],
        indent=2,
    )
