"""Results of a run as files for other programs: MRC, or scores as OME-Zarr.

An :class:`Export` is made first, which checks that the result is there; :func:`write_all` writes several, once it is
clear that all of them may be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import OutputExistsError, RunStoreError, SettingsError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.label_layers import label_slices, largest_id, open_label
from etsam_zarr.label_output import LARGEST_MRC_ID, MRC_SUFFIXES
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import MEMBRANES
from etsam_zarr.mrc.write import MrcPlan, write_mrc
from etsam_zarr.results import COMPONENTS, PROCESSED, Source
from etsam_zarr.runstore import RunStore
from etsam_zarr.score_image import ScoreType, write_score_image
from etsam_zarr.scores import final_scores
from etsam_zarr.stage_arrays import Stage
from etsam_zarr.status import stage_status
from etsam_zarr.tiling import recorded_grid

Writer = Callable[[bool, OnEvent], None]


@dataclass(frozen=True)
class Export:
    """One result on its way to a file."""

    name: str
    """What it is, in a word or two."""
    path: Path
    """Where it goes."""
    write: Writer
    """Writes it; takes whether a file there may be replaced, and a listener."""
    folder: bool = False
    """Whether it becomes a folder, a Zarr."""


def mask_export(store: RunStore, path: Path) -> Export:
    """Prepare the membrane mask as an MRC of mode 0 with values 0 and 1.

    Raises
    ------
    RunStoreError
        The run has no mask yet.
    """
    if not _has_mask(store):
        raise RunStoreError(
            f"The run {store.path} has no mask yet: it is not finished. Give its run command again, then export."
        )
    return Export("mask", path, _label_writer(store, MEMBRANES, path, np.dtype(np.uint8), is_mask=True))


def processed_mask_export(store: RunStore, path: Path) -> Export:
    """Prepare the cleaned mask as an MRC of mode 0 with values 0 and 1.

    Raises
    ------
    RunStoreError
        There is none, or it was made from an earlier mask.
    """
    if not has_processed_mask(store):
        there = (store.path / "labels" / PROCESSED).is_dir()
        what = "was made from an earlier mask, not from the present one" if there else "is not there"
        raise RunStoreError(
            f"The processed mask of the run {store.path} {what}. Give 'etsam-zarr postprocess {store.path}' "
            "first, then export."
        )
    return Export("processed mask", path, _label_writer(store, PROCESSED, path, np.dtype(np.uint8), is_mask=True))


def has_processed_mask(store: RunStore) -> bool:
    """Say whether there is a processed mask that was made from the present mask."""
    return _has_mask(store) and Source(store.path, store).latest_label() == PROCESSED


def components_export(store: RunStore, path: Path) -> Export:
    """Prepare the numbered components as an MRC of mode 6 (16 bits without sign).

    1. The ids are read once, layer by layer, to find the largest, unless their type cannot exceed MRC's.
    2. Writing reads them a second time.

    Raises
    ------
    RunStoreError
        There are no components.
    SettingsError
        An id is above 65,535.
    """
    folder = store.path / "labels" / COMPONENTS
    if not folder.is_dir():
        raise RunStoreError(
            f"The run {store.path} has no components. Give 'etsam-zarr label {store.path}' first, then export."
        )
    largest = largest_id(open_label(store, COMPONENTS))
    if largest > LARGEST_MRC_ID:
        raise SettingsError(
            f"The components of {store.path} have ids up to {largest:,}, and MRC (mode 6) stores {LARGEST_MRC_ID:,} at "
            f"most. Keep fewer with 'etsam-zarr label {store.path} --min-voxels N', or read the OME-Zarr label "
            f"{folder} itself."
        )
    return Export("components", path, _label_writer(store, COMPONENTS, path, np.dtype(np.uint16), is_mask=False))


def logits_export(store: RunStore, path: Path, *, stage: Stage = 2) -> Export:
    """Prepare a stage's logits at full resolution as a float32 MRC (mode 2).

    Raises
    ------
    RunStoreError
        The stage is not finished.
    """
    _require_stage(store, stage)

    def write(overwrite: bool, on_event: OnEvent) -> None:
        planes = (plane[None] for plane in final_scores(store, stage).planes_in_turn())
        plan = MrcPlan(store.shape, np.dtype(np.float32), store.voxel_size, store.origin)
        write_mrc(path, plan, planes, overwrite=overwrite, on_event=on_event)

    return Export(f"logits (stage {stage})", path, write)


def scores_export(store: RunStore, path: Path, *, dtype: ScoreType = "uint8", stage: Stage = 2) -> Export:
    """Prepare a stage's scores at full resolution as an OME-Zarr image with a pyramid.

    Parameters
    ----------
    dtype
        ``"uint8"``: probabilities, ``sigmoid(logit) * 255`` rounded, which every viewer shows. ``"float16"`` and
        ``"float32"``: logits.

    Raises
    ------
    RunStoreError
        The stage is not finished.
    SettingsError
        The path is that of an MRC, or lies within the run or around it.
    """
    _require_stage(store, stage)
    if path.suffix.lower() in MRC_SUFFIXES:
        raise SettingsError(
            f"Scores are written as OME-Zarr, and {path.name} is the name of an MRC. Give a name that ends in .zarr, "
            "or write an MRC with --logits."
        )
    place, run = path.resolve(), store.path.resolve()
    if place == run or run in place.parents or place in run.parents:
        raise SettingsError(f"{path} and the run {store.path} lie in each other. Give another place for the scores.")

    def write(overwrite: bool, on_event: OnEvent) -> None:
        write_score_image(store, path, dtype=dtype, stage=stage, overwrite=overwrite, on_event=on_event)

    kind = "probabilities" if dtype == "uint8" else "logits"
    return Export(f"scores ({kind}, {dtype}, stage {stage})", path, write, folder=True)


def etsam_exports(store: RunStore, folder: Path) -> list[Export]:
    """Prepare mask, logits of stage 2 and, where there is one, the processed mask under the names that ETSAM gives.

    Quadrants have those of its split processing.

    Raises
    ------
    RunStoreError
        The run is not finished.
    """
    split = "_split_processing" if recorded_grid(store.record).tiling == "quadrants" else ""
    start = f"{store.record['name']}_etsam_predicted{split}"
    exports = [
        mask_export(store, folder / f"{start}_mask.mrc"),
        logits_export(store, folder / f"{start}_logits.mrc"),
    ]
    if has_processed_mask(store):
        exports.append(processed_mask_export(store, folder / f"{start}_post_processed_mask.mrc"))
    return exports


def write_all(exports: Sequence[Export], *, overwrite: bool = False, on_event: OnEvent = ignore) -> None:
    """Write one after the other; none is begun unless all may be written.

    Raises
    ------
    SettingsError
        Two of them have the same path.
    OutputExistsError
        Something is at one of the paths and ``overwrite`` is false, or it is nothing that may be replaced.
    OutputError
        A file cannot be written.
    """
    places = [export.path.resolve() for export in exports]
    for number, export in enumerate(exports):
        if places[number] in places[:number]:
            raise SettingsError(f"Two results are to go to {export.path}. Give each a path of its own.")
        _check_free(export, overwrite=overwrite)
    for export in exports:
        with disk_errors("making the folder", export.path.parent):
            export.path.parent.mkdir(parents=True, exist_ok=True)
        export.write(overwrite, on_event)


def _check_free(export: Export, *, overwrite: bool) -> None:
    path = export.path
    if not path.exists():
        return
    if not overwrite:
        raise OutputExistsError(
            f"There is a {'folder' if path.is_dir() else 'file'} at {path} already. Give --overwrite to replace it."
        )
    image = any((path / name).is_file() for name in (".zattrs", "zarr.json")) and not RunStore.is_store(path)
    if export.folder and not image:
        raise OutputExistsError(
            f"{path} is no OME-Zarr image, so it is not replaced even with --overwrite. Move it away, or choose "
            "another name."
        )
    if not export.folder and path.is_dir():
        raise OutputExistsError(f"{path} is a folder, so no file is written there. Choose another name.")


def _has_mask(store: RunStore) -> bool:
    return Ledger(store.path / "ledger").finished("mask") is not None


def _require_stage(store: RunStore, stage: Stage) -> None:
    status = stage_status(store, stage)
    if not status.finished:
        raise RunStoreError(
            f"Stage {stage} of the run {store.path} has {status.count}. Give its run command "
            "again to finish it, then export."
        )


def _label_writer(store: RunStore, label: str, path: Path, dtype: np.dtype[Any], *, is_mask: bool) -> Writer:
    array = open_label(store, label)

    def write(overwrite: bool, on_event: OnEvent) -> None:
        plan = MrcPlan(store.shape, dtype, store.voxel_size, store.origin, is_mask=is_mask)
        write_mrc(path, plan, label_slices(array, dtype), overwrite=overwrite, on_event=on_event)

    return write
