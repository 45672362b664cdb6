"""Results of a run as MRC files, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.geometry import Span, cut
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import MEMBRANES
from etsam_zarr.mrc_write import MrcPlan, write_mrc
from etsam_zarr.pipeline import final_scores
from etsam_zarr.runstore import RunStore, Stage
from etsam_zarr.volume import Array


def export_mask(store: RunStore, path: Path, *, overwrite: bool = False, on_event: OnEvent = ignore) -> None:
    """Write the membrane mask as an MRC of mode 0 with values 0 and 1.

    Raises
    ------
    RunStoreError
        The run has no mask yet.
    OutputExistsError, OutputError
        The file is there already, or cannot be written.
    """
    if Ledger(store.path / "ledger").finished("mask") is None:
        raise RunStoreError(
            f"The run {store.path} has no mask yet: it is not finished. Give its run command again, then export."
        )
    mask = zarr.open_array(store.path / "labels" / MEMBRANES / "0", mode="r")

    def slabs() -> Iterator[Array]:
        for span in cut(Span(0, store.shape[0]), mask.chunks[0]):
            yield np.asarray(mask[span.as_slice()])

    plan = MrcPlan(store.shape, np.dtype(np.uint8), store.voxel_size, store.origin, is_mask=True)
    write_mrc(path, plan, slabs(), overwrite=overwrite, on_event=on_event)


def export_logits(
    store: RunStore, path: Path, *, stage: Stage = 2, overwrite: bool = False, on_event: OnEvent = ignore
) -> None:
    """Write a stage's logits at full resolution as a float32 MRC (mode 2).

    Raises
    ------
    RunStoreError
        The stage is not finished.
    OutputExistsError, OutputError
        The file is there already, or cannot be written.
    """
    slabs = Ledger(store.path / "ledger").slabs(stage, 0)
    computed = slabs[-1].stop if slabs else 0
    if computed != store.shape[0]:
        raise RunStoreError(
            f"Stage {stage} of the run {store.path} has {computed} of {store.shape[0]} slices. Give its run command "
            "again to finish it, then export."
        )
    planes = (plane[None] for plane in final_scores(store, stage).planes_in_turn())
    plan = MrcPlan(store.shape, np.dtype(np.float32), store.voxel_size, store.origin)
    write_mrc(path, plan, planes, overwrite=overwrite, on_event=on_event)
