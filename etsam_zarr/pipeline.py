"""A whole run, from an open volume to a finished run store: measure, stage 1, stage 2, mask."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from etsam_zarr.events import Notice, OnEvent, ignore
from etsam_zarr.intensity_pass import measure
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import write_mask
from etsam_zarr.predictors import Predictors
from etsam_zarr.run_request import RunRequest, open_run_store, run_facts, take_over_voxel_size
from etsam_zarr.runstore import RunStore
from etsam_zarr.runtime import Runtime, SerialRuntime
from etsam_zarr.scores import final_scores
from etsam_zarr.stage_arrays import STAGES
from etsam_zarr.stages import Stages
from etsam_zarr.volume import Volume


@dataclass(frozen=True)
class RunSummary:
    """What a run did."""

    store: RunStore
    already_finished: bool
    """Everything was there before."""
    voxels: int
    """Voxels of the mask."""
    seconds: float
    model_seconds: float
    """In the model, of all workers together."""
    workers: int = 1


def run(
    volume: Volume, destination: Path, request: RunRequest, *, runtime: Runtime | None = None,
    predictors: Predictors | None = None, on_event: OnEvent = ignore,
) -> RunSummary:  # fmt: skip
    """Segment a volume, or finish segmenting it, in the run store at ``destination``.

    1. Open the store and compare fingerprints, or create it.
    2. Measure the intensities over the whole volume, and keep a reduced copy of it.
    3. Build the model and load the weights of both stages, so that those that do not fit are found now.
    4. Stage 1, slab by slab, with the bounds of its logits; then, or a slab behind, stage 2 on the fused input.
    5. Threshold stage 2's logits into the mask and its pyramid.

    Each step is skipped if the ledger says that it is done; stages go on at the last finished slab.

    Parameters
    ----------
    runtime
        What carries out the jobs of the stages; None does them in this process, one after the other.
    predictors
        Keeps the model for the next run in this process; None forgets it with this run.

    Raises
    ------
    BlocksFailedError
        Parts could not be computed; all others were.
    ClusterError
        The runtime lost its workers.
    FingerprintError
        The store at ``destination`` belongs to another run.
    OutputExistsError
        Something that is no run store lies at ``destination``.
    InputError, ModelError, OutputError
        What is read, loaded or written cannot be used.
    """
    begun = time.monotonic()
    runtime = runtime or SerialRuntime()
    store = open_run_store(volume, destination, request, workers=runtime.workers)
    with store.locked() as fence, ThreadPoolExecutor(1, "overview") as background:
        ledger = Ledger(store.path / "ledger")
        take_over_voxel_size(volume, store, ledger, on_event)
        limits, overview = measure(volume, store, ledger, request, background, on_event)
        predictors = _load_model(predictors or Predictors(), request, ledger, runtime)
        facts = run_facts(volume, store, request, limits)
        stages = Stages(
            facts, store, ledger, fence, volume, str(request.device), runtime, on_event, predictors,
            may_follow=request.follow,
        )  # fmt: skip
        model_seconds = stages.run()
        overview.result()
        voxels = _finish_mask(store, ledger, request, on_event)
    return RunSummary(
        store=store,
        already_finished=stages.nothing_to_do and voxels.kept,
        voxels=voxels.count,
        seconds=time.monotonic() - begun,
        model_seconds=model_seconds,
        workers=runtime.workers,
    )


def _load_model(predictors: Predictors, request: RunRequest, ledger: Ledger, runtime: Runtime) -> Predictors | None:
    """Build the model with the weights that are needed first, and look whether those of stage 2 will fit.

    Not in a thread of its own beside the measuring: PyTorch's OpenMP would keep a second team of threads, and let the
    model's threads sleep wherever they wait for each other. Measured with a small model: half as fast; and with one
    thread alone, which makes no team, nothing was gained.

    Returns
    -------
    Predictors or None
        None where other processes have models of their own.
    """
    device = str(request.device) if runtime.in_process else "cpu"
    missing = [stage for stage in STAGES if not ledger.finished(f"stage{stage}")]
    if missing:
        predictor = predictors.get(request.model, missing[0], device)
        for stage in missing[1:]:
            request.model.check(predictor, stage)
    return predictors if runtime.in_process else None


@dataclass(frozen=True)
class _Mask:
    count: int
    kept: bool


def _finish_mask(store: RunStore, ledger: Ledger, request: RunRequest, on_event: OnEvent) -> _Mask:
    """Write the mask unless there is one with this threshold."""
    threshold = request.settings.logit_threshold
    known = ledger.finished("mask")
    if known is not None and known["logit_threshold"] == threshold:
        return _Mask(known["voxels"], kept=True)
    if known is not None:
        on_event(Notice(
            f"The mask was made with the threshold {known['logit_threshold']:g}; it is made again with {threshold:g} "
            "from the stored logits."
        ))  # fmt: skip
    return _Mask(write_mask(store, final_scores(store), ledger, threshold=threshold, on_event=on_event), kept=False)
