"""How far a run is, read from its store without touching any array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam_zarr.ledger import REDONE, Ledger, computed_slices, conditioning_of
from etsam_zarr.runstore import RunStore
from etsam_zarr.seams import SeamReport, seams
from etsam_zarr.stage_arrays import STAGES, Stage


@dataclass(frozen=True)
class StageStatus:
    """Progress of one stage, over all tiles."""

    stage: int
    slices: int
    """Computed and stored; a slice counts once for every tile."""
    total: int
    """Slices of all tiles."""
    seconds: float
    """Spent in the model for them."""
    settled: bool
    """Whether nothing of it will change any more: where there are several windows, they agree."""
    seams: tuple[SeamReport, ...]
    """What it took where windows meet."""

    @property
    def finished(self) -> bool:
        """Whether all of it is there."""
        return self.slices == self.total and self.settled

    @property
    def count(self) -> str:
        """How far it is, for people: ``"9 of 12 slices"``."""
        unsettled = self.slices == self.total and not self.settled
        return f"{self.slices} of {self.total} slices" + (", but windows do not all agree yet" if unsettled else "")


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
    redone: dict[str, Any] | None = None
    """If stage 2 was computed again because it had followed stage 1 in an expectation that was not met: the bounds it
    had ``assumed`` and those ``found`` in the end, and how many ``slices`` it had computed in vain."""

    @property
    def finished(self) -> bool:
        """Whether everything is there."""
        return self.mask is not None and all(stage.finished for stage in self.stages)


def read_status(path: Path) -> RunStatus:
    """Read the status of the run store at ``path``.

    Raises
    ------
    RunStoreError
        There is none, or its records are damaged.
    """
    store = RunStore.open(path)
    ledger = Ledger(path / "ledger")
    stages = tuple(stage_status(store, stage) for stage in STAGES)
    return RunStatus(
        store.record, ledger.finished("intensity") is not None, stages, ledger.finished("mask"), ledger.finished(REDONE)
    )


def stage_status(store: RunStore, stage: Stage) -> StageStatus:
    """Read how far a stage of a run is.

    Raises
    ------
    RunStoreError
        Its records are damaged.
    """
    ledger, blocks = Ledger(store.path / "ledger"), store.blocks(stage)
    noted = (ledger.finished(conditioning_of(stage, tile)) for tile in range(store.record["tiles"]))
    prompting = [facts["seconds"] for facts in noted if facts]
    return StageStatus(
        stage,
        slices=computed_slices(ledger, blocks),
        total=sum(block.span.size for block in blocks),
        seconds=sum(slab.seconds for block in blocks for slab in ledger.slabs(block)) + sum(prompting),
        settled=len(store.record["windows"]) == 1 or ledger.finished(f"stage{stage}") is not None,
        seams=seams(store, ledger, stage),
    )
