"""The first pass over the volume: its intensities measured, and a reduced copy of it stored."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Executor, Future
from dataclasses import asdict

import zarr

from etsam_zarr.events import Advanced, Finished, OnEvent, Started
from etsam_zarr.geometry import Span, cut, pyramid_shapes
from etsam_zarr.intensity import IntensityMeter, IntensityRange
from etsam_zarr.ledger import Ledger
from etsam_zarr.overview import Overview
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runstore import RunStore
from etsam_zarr.volume import Volume


def measure(
    volume: Volume, store: RunStore, ledger: Ledger, request: RunRequest, background: Executor, on_event: OnEvent
) -> tuple[IntensityRange, Future[None]]:
    """Measure the intensities and fill the overview, unless the ledger knows them.

    The overview is made in the ``background``, beside the stages, which do not need it; the future says when it is
    stored and noted. A run that is killed before that makes this pass again.
    """
    known = ledger.finished("intensity")
    if known is not None:
        done: Future[None] = Future()
        done.set_result(None)
        return IntensityRange(**known["limits"]), done
    begun = time.monotonic()
    info = volume.info
    meter = IntensityMeter(info.shape, percentiles=request.settings.normalize_method == "percentile")
    root = zarr.open_group(store.path, mode="r+")
    for level in range(len(pyramid_shapes(info.shape))):
        shutil.rmtree(store.path / str(level), ignore_errors=True)  # of an interrupted pass
    overview = Overview(
        root, shape=info.shape, voxel_size=info.voxel_size, origin=info.origin,
        version=store.record["ome_zarr"], name=info.name,
    )  # fmt: skip
    on_event(Started("intensity", total=info.shape[0]))
    added: Future[None] | None = None
    for span in cut(Span(0, info.shape[0]), request.plan.pass_slab):
        slab = volume.read(span)
        if added is not None:
            added.result()  # so that one slab waits at most
        added = background.submit(overview.add, slab)
        meter.add(span.start, slab)
        on_event(Advanced("intensity", span.size))
    limits = meter.result()
    seconds = time.monotonic() - begun

    def finish() -> None:
        if added is not None:
            added.result()
        overview.finish()
        ledger.finish("intensity", {"limits": asdict(limits), "seconds": seconds})

    on_event(Finished("intensity", seconds))
    return limits, background.submit(finish)
