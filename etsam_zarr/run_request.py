"""What is asked of a run, and the run store that answers to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from etsam_zarr.config import Precision, Settings
from etsam_zarr.errors import OutputExistsError
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.intensity import IntensityRange
from etsam_zarr.jobs import RunFacts, VolumeAddress
from etsam_zarr.ledger import Ledger
from etsam_zarr.modelspec import ModelSpec, fingerprint_of
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.plan import RunPlan
from etsam_zarr.remote.volumes import RemoteOptions
from etsam_zarr.runstore import RunStore
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


def open_run_store(volume: Volume, destination: Path, request: RunRequest, *, workers: int) -> RunStore:
    """Open the run store at ``destination`` to go on with it, or create it.

    Parameters
    ----------
    workers
        How many the run is begun with; only noted.

    Raises
    ------
    FingerprintError
        It belongs to another run.
    OutputExistsError
        Something that is no run store lies there.
    RunStoreError
        It is damaged, or to be overwritten while another process writes it.
    OutputError
        The disk is full or the folder cannot be written.
    """
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


def take_over_voxel_size(volume: Volume, store: RunStore, ledger: Ledger, on_event: OnEvent) -> None:
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
