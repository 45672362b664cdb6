"""A whole run, from an open volume to a finished run store: measure, stage 1, stage 2, mask."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import zarr

from etsam_zarr.config import Precision, Settings
from etsam_zarr.errors import OutputExistsError
from etsam_zarr.events import Advanced, Finished, Notice, OnEvent, Started, ignore
from etsam_zarr.geometry import Span, cut, pyramid_shapes
from etsam_zarr.intensity import IntensityMeter, IntensityRange
from etsam_zarr.jobs import RunFacts, VolumeAddress
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import write_mask
from etsam_zarr.modelspec import ModelSpec, fingerprint_of
from etsam_zarr.ome_attributes import OmeVersion
from etsam_zarr.overview import Overview
from etsam_zarr.plan import RunPlan
from etsam_zarr.predictors import Predictors
from etsam_zarr.remote.volumes import RemoteOptions
from etsam_zarr.runstore import STAGES, RunStore, Stage
from etsam_zarr.runtime import Runtime, SerialRuntime
from etsam_zarr.scores import ScoreView, stage_scores
from etsam_zarr.stages import Stages
from etsam_zarr.volume import Volume


@dataclass(frozen=True)
class RunRequest:
    """What is to be run, and how; the plan must be made from the same settings and model."""

    plan: RunPlan
    settings: Settings
    model: ModelSpec
    precision: Precision
    device: torch.device
    ome_zarr: OmeVersion = "0.4"
    level: int = 0
    """Level of the volume's pyramid that was opened."""
    overwrite: bool = False
    remote: RemoteOptions | None = None
    """How other processes open the volume, if it is remote."""
    follow: bool = True
    """Whether stage 2 may follow stage 1 a slab behind on another worker, where there is one and the plan lets it."""


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
    store = _open_or_create(volume, destination, request, workers=runtime.workers)
    with store.locked() as fence, ThreadPoolExecutor(1, "overview") as background:
        ledger = Ledger(store.path / "ledger")
        _take_over_voxel_size(volume, store, ledger, on_event)
        limits, overview = _measure(volume, store, ledger, request, background, on_event)
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


def fingerprint(volume: Volume, request: RunRequest) -> dict[str, Any]:
    """Return everything that stored logits depend on, as JSON values by name."""
    return {
        "volume": volume.digest(),
        "level": request.level,
        # Not where there is none: stores from before there were regions go on.
        **({} if volume.info.roi is None else {"roi": volume.info.roi}),
        "precision": request.precision,
        **request.plan.of_windows(),
        **fingerprint_of(request.model),
        **request.plan.settled(request.settings).of_logits(),
    }


def run_facts(volume: Volume, store: RunStore, request: RunRequest, limits: IntensityRange) -> RunFacts:
    """Return what all jobs of a run share."""
    return RunFacts(
        store=store.path.absolute(),
        volume=VolumeAddress.of(volume.info, level=request.level, remote=request.remote),
        model=request.model,
        settings=request.plan.settled(request.settings),
        plan=request.plan,
        limits=limits,
        precision=request.precision,
    )


def final_scores(store: RunStore, stage: Stage = 2) -> ScoreView:
    """Return the full-resolution logits of a stage as the run's settings want them shown.

    Prompted slices show their backward prediction if the run was asked for it.
    """
    predicted = store.record["settings"]["prompted_slices"] == "predict"
    prompted = store.record["prompted"][str(stage)]
    shown = {z: index for index, z in enumerate(prompted)} if predicted else {}
    return stage_scores(store, stage, backwards=shown)


def _open_or_create(volume: Volume, destination: Path, request: RunRequest, *, workers: int) -> RunStore:
    mark = fingerprint(volume, request)
    if RunStore.is_store(destination):
        store = RunStore.open(destination)
        if not request.overwrite:
            store.check_fingerprint(mark)
            return store
        with store.locked():
            store.remove()
    elif destination.exists():
        raise OutputExistsError(
            f"There is something at {destination} that is no run store, so it is left alone. Give another -o."
        )
    info, plan = volume.info, request.plan
    record = {
        "program": f"etsam-zarr {metadata.version('etsam-zarr')}",
        "versions": {name: metadata.version(name) for name in ("torch", "sam2", "numpy", "zarr")},
        "source": info.uri,
        "portal": dict(info.portal),
        "roi": info.roi,
        "name": info.name,
        "shape": list(info.shape),
        "voxel_size": None if info.voxel_size is None else list(info.voxel_size),
        "origin": list(info.origin),
        "ome_zarr": request.ome_zarr,
        "model": request.model.config.name,
        "untrained": request.model.untrained,
        "bundled": request.model.bundled,
        "image_size": plan.image_size,
        "settings": asdict(plan.settled(request.settings)),
        "prompted": {str(stage.stage): list(stage.prompted) for stage in plan.stages},
        "fingerprint": mark,
        # Not in the fingerprint: the result does not depend on them, or only in the last bits.
        "slab": plan.slab,
        "device": str(request.device),
        "threads": torch.get_num_threads(),
        "workers": workers,
    }
    predicted = request.settings.prompted_slices == "predict"
    return RunStore.create(
        destination,
        record,
        tiles=len(plan.tiles),
        native_size=request.model.config.native_size,
        hidden_dim=request.model.config.hidden_dim,
        windows=plan.windows,
        prompted={1: len(plan.stages[0].prompted) * predicted, 2: len(plan.stages[1].prompted) * predicted},
    )


def _take_over_voxel_size(volume: Volume, store: RunStore, ledger: Ledger, on_event: OnEvent) -> None:
    """Follow a voxel size that is given only now: logits do not depend on it, so they are kept."""
    info = volume.info
    if info.voxel_size is None or (info.voxel_size, info.origin) == (store.voxel_size, store.origin):
        return
    on_event(Notice(
        f"The voxel size is now {_angstrom(info.voxel_size)} (before: {_angstrom(store.voxel_size)}): the overview and "
        "the mask are made again, the logits stay. Labels that other commands made keep the size they have."
    ))  # fmt: skip
    ledger.reopen("intensity")
    ledger.reopen("mask")
    store.revise(voxel_size=list(info.voxel_size), origin=list(info.origin))


def _angstrom(size: tuple[float, float, float] | None) -> str:
    return "unknown" if size is None else "{:g} x {:g} x {:g} A (z y x)".format(*size)


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


def _measure(
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
