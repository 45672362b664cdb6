"""How far a run is, read from its store without touching any array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import STAGES, RunStore


@dataclass(frozen=True)
class StageStatus:
    """Progress of one stage."""

    stage: int
    slices: int
    """Computed and stored."""
    seconds: float
    """Spent in the model for them."""


@dataclass(frozen=True)
class RunStatus:
    """Progress of a run."""

    record: dict[str, Any]
    """What ``run.json`` says."""
    measured: bool
    """Whether the intensities are known."""
    stages: tuple[StageStatus, ...]
    mask: dict[str, Any] | None
    """Threshold and voxels of the mask, if there is one."""

    @property
    def finished(self) -> bool:
        """Whether everything is there."""
        depth = self.record["shape"][0]
        return self.mask is not None and all(stage.slices == depth for stage in self.stages)


def read_status(path: Path) -> RunStatus:
    """Read the status of the run store at ``path``.

    Raises
    ------
    RunStoreError
        There is none, or its records are damaged.
    """
    store = RunStore.open(path)
    ledger = Ledger(path / "ledger")
    stages = []
    for stage in STAGES:
        slabs = ledger.slabs(stage, 0)
        stages.append(StageStatus(stage, slabs[-1].stop if slabs else 0, sum(slab.seconds for slab in slabs)))
    return RunStatus(store.record, ledger.finished("intensity") is not None, tuple(stages), ledger.finished("mask"))
