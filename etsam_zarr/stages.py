"""The two stages of a run, carried out by a runtime: one after the other, or the second a slab behind the first."""

from __future__ import annotations

import time
from functools import partial

from etsam_zarr.block import run_block
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.follow import settle, withdraw_what_is_ahead
from etsam_zarr.integrity import check_stage
from etsam_zarr.jobs import BlockJob, JobResult, RunFacts
from etsam_zarr.jobs import Work as KindOfWork
from etsam_zarr.lease import Fence
from etsam_zarr.ledger import Ledger
from etsam_zarr.predictors import Predictors
from etsam_zarr.runstore import RunStore
from etsam_zarr.runtime import Runtime, Work
from etsam_zarr.schedule import following_jobs, next_jobs
from etsam_zarr.stage_arrays import STAGES, Stage
from etsam_zarr.stage_end import StageProgress
from etsam_zarr.stage_inputs import bounds_of_stage1
from etsam_zarr.volume import Volume


class Stages:
    """Has the jobs of both stages carried out, as far as the ledger does not note them as done.

    Parameters
    ----------
    predictors
        The models that jobs use in this process, where they are done in it.
    may_follow
        Whether stage 2 may follow stage 1 a slab behind, where plan and runtime let it.
    """

    def __init__(
        self, facts: RunFacts, store: RunStore, ledger: Ledger, fence: Fence, volume: Volume, device: str,
        runtime: Runtime, on_event: OnEvent, predictors: Predictors | None, *, may_follow: bool,
    ) -> None:  # fmt: skip
        self._facts, self._store, self._ledger, self._fence = facts, store, ledger, fence
        self._volume, self._device, self._runtime, self._on_event = volume, device, runtime, on_event
        self._predictors = predictors
        # In a cluster a second worker may still come, so its present number does not matter.
        self._follows = may_follow and not runtime.in_process and facts.plan.follow_obstacle is None
        self.nothing_to_do = all(ledger.finished(f"stage{stage}") for stage in STAGES)

    def run(self) -> float:
        """Run what is missing; return the seconds spent in the model."""
        if self.nothing_to_do:
            return 0.0
        work: Work[BlockJob, JobResult] = run_block
        if self._predictors is not None:
            work = partial(run_block, volume=self._volume, predictors=self._predictors)
        seconds = 0.0
        if self._ledger.finished("stage1"):
            # In an earlier process: a power failure may have lost what stage 2 now builds on.
            check_stage(self._store, self._ledger, 1, self._on_event)
        if not self._ledger.finished("stage1"):
            seconds += self._run_both(work) if self._follows else self._run_stage(1, work)
        self._settle()
        self._say_what_is_flat()
        if not self._ledger.finished("stage2"):
            seconds += self._run_stage(2, work)
        return seconds

    def _run_stage(self, stage: Stage, work: Work[BlockJob, JobResult]) -> float:
        begun = time.monotonic()
        progress = self._begin(stage)

        def wanted() -> tuple[BlockJob, ...]:
            jobs = self._next_jobs(stage)
            progress.before(jobs)
            return jobs

        results = self._runtime.execute(wanted, work, on_event=self._on_event)
        progress.finish(time.monotonic() - begun)
        return sum(result.seconds for result in results)

    def _run_both(self, work: Work[BlockJob, JobResult]) -> float:
        """Run stage 1, and stage 2 behind it; what is missing of stage 2 in the end must be computed by itself."""
        begun = time.monotonic()
        ledger = self._ledger
        first, second = self._begin(1), self._begin(2)

        def wanted() -> tuple[BlockJob, ...]:
            jobs = self._next_jobs(1)
            if not jobs and not ledger.finished("stage1"):
                # Now, not when stage 2 is done as well: its bounds say whether that may go on.
                first.finish(time.monotonic() - begun)
            return (*jobs, *following_jobs(ledger, self._facts, device=self._device, fence=self._fence))

        results = self._runtime.execute(wanted, work, on_event=self._on_event)
        self._settle()
        if not self._next_jobs(2):
            second.finish(time.monotonic() - begun)
        return sum(result.seconds for result in results)

    def _begin(self, stage: Stage) -> StageProgress:
        progress = StageProgress(self._store, self._ledger, stage, self._on_event)
        if stage == 1 and self._facts.plan.follow_obstacle is None:
            (behind,) = self._store.blocks(2)
            withdraw_what_is_ahead(self._ledger, behind, self._on_event)
        return progress

    def _next_jobs(self, stage: Stage) -> tuple[BlockJob, ...]:
        return next_jobs(
            self._ledger, self._facts, stage, device=self._device, eager=self._runtime.workers > 1, fence=self._fence
        )

    def _settle(self) -> None:
        """Take stage 2 back where it followed stage 1 in an expectation that was not met, in this run or before."""
        plan = self._facts.plan
        if plan.follow_obstacle is not None:
            return
        (block,) = self._store.blocks(2)
        works: tuple[KindOfWork, ...] = ("conditioning", "window")
        jobs = [BlockJob(self._facts, block, work, self._device, plan.slab, self._fence) for work in works]
        settle(self._ledger, jobs, bounds_of_stage1(self._ledger, plan, block.tile), self._on_event)

    def _say_what_is_flat(self) -> None:
        plan = self._facts.plan
        for bounds in {bounds_of_stage1(self._ledger, plan, tile.index) for tile in plan.tiles}:
            if bounds.flat:
                self._on_event(Notice(
                    f"Stage 1 gave the same logit, {bounds.minimum:g}, everywhere (it found nothing): stage 2 sees the "
                    "tomogram alone.", warning=True,
                ))  # fmt: skip
