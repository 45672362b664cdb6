"""A stage around its jobs: checked and announced before them, noted and cleared up after them, in any runtime."""

from __future__ import annotations

from collections.abc import Sequence

from etsam_zarr.events import Finished, Notice, OnEvent, Started
from etsam_zarr.follow import measured_bounds
from etsam_zarr.integrity import check_stage
from etsam_zarr.jobs import BlockJob
from etsam_zarr.ledger import Block, Ledger, computed_slices
from etsam_zarr.runstore import RunStore
from etsam_zarr.seams import seam_text, seams
from etsam_zarr.stage_arrays import Stage


class StageProgress:
    """Announces a stage to its listener, and ends it."""

    def __init__(self, store: RunStore, ledger: Ledger, stage: Stage, on_event: OnEvent) -> None:
        self._store, self._ledger, self._stage, self._on_event = store, ledger, stage, on_event
        check_stage(store, ledger, stage, on_event)
        blocks = store.blocks(stage)
        total = sum(block.span.size for block in blocks)
        on_event(Started(f"stage {stage}", total=total, done=computed_slices(ledger, blocks)))
        self._repairing = False

    def before(self, jobs: Sequence[BlockJob]) -> None:
        """Announce repairs when the first is about to begin."""
        if self._repairing or not any(job.work == "repair" for job in jobs):
            return
        self._repairing = True
        most = sum(block.span.size for block in self._store.blocks(self._stage) if block.window)
        self._on_event(Started(f"stage {self._stage} seams", total=most))

    def finish(self, seconds: float) -> None:
        """Note the stage as finished, with the bounds of stage 1 tile by tile; clear what only its jobs needed."""
        blocks = self._store.blocks(self._stage)
        facts: dict[str, object] = {"seconds": seconds}
        if self._stage == 1:
            facts["bounds"] = [_bounds(self._ledger, blocks, tile) for tile in sorted({block.tile for block in blocks})]
        self._ledger.finish(f"stage{self._stage}", facts)
        self._store.clear_state(self._stage)
        if self._repairing:
            self._on_event(Finished(f"stage {self._stage} seams", seconds))
        self._on_event(Finished(f"stage {self._stage}", seconds))
        for seam in seams(self._store, self._ledger, self._stage):
            self._on_event(Notice(seam_text(seam)))


def _bounds(ledger: Ledger, blocks: Sequence[Block], tile: int) -> tuple[float, float]:
    """Return the bounds of the slices of a tile that count."""
    bounds = measured_bounds(ledger, [block for block in blocks if block.tile == tile])
    return bounds.minimum, bounds.maximum
