"""Which jobs a stage needs next, from what the ledger says; every runtime asks here, and so does a resumed run.

Within a tile: the prompts; then all windows, each a guess but the first; then repairs. A window is settled when it was
repaired from the final end of a settled window before it. A repair that runs to the end of its window changes that
end, so the next window is repaired (again).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etsam_zarr.follow import may_follow
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.jobs import ASSUMED_BOUNDS, BlockJob, RunFacts, Work
from etsam_zarr.lease import Fence
from etsam_zarr.ledger import Block, Ledger, RepairRecord, conditioning_of
from etsam_zarr.stage_arrays import Stage


@dataclass(frozen=True)
class WindowState:
    """What is done of a window."""

    computed: bool
    """Whether all its slices are there, repaired or not."""
    repairs: tuple[RepairRecord, ...] = ()
    """Oldest first; all but the last are promoted."""

    @property
    def end(self) -> int:
        """The generation that computed its last slice."""
        ran_through = [repair.generation for repair in self.repairs if _done(repair) and not repair.agreed]
        return max(ran_through, default=0)


@dataclass(frozen=True, order=True)
class Task:
    """What to do about a window."""

    window: int
    work: Work
    generation: int = 0
    base: int = 0


def next_tasks(prompted: bool, windows: Sequence[WindowState], *, eager: bool) -> tuple[Task, ...]:
    """Return what can be done now about a tile, all of it at once if there are workers.

    Parameters
    ----------
    prompted
        Whether the prompts are given.
    windows
        What is done of each window.
    eager
        Whether to repair a window while the one before it may still change: right with idle workers, in vain with one.

    >>> done = WindowState(computed=True)
    >>> next_tasks(True, [done, WindowState(False), done], eager=True)
    (Task(window=1, work='window', generation=0, base=0),)
    >>> next_tasks(True, [done, done, done], eager=False)
    (Task(window=1, work='repair', generation=1, base=0),)
    """
    if not prompted:
        return (Task(0, "conditioning"),)
    tasks = [Task(index, "window") for index, window in enumerate(windows) if not window.computed]
    settled = windows[0].computed
    for index in range(1, len(windows)):
        left, window = windows[index - 1], windows[index]
        repair = _repair_of(window, left.end) if left.computed and window.computed else None
        if repair is not None and (settled or eager):
            tasks.append(Task(index, "repair", *repair))
        settled = settled and window.computed and repair is None
    return tuple(tasks)


def _repair_of(window: WindowState, left_end: int) -> tuple[int, int] | None:
    """Return generation and base of the repair that a window needs, or None."""
    if not window.repairs:
        return 1, left_end
    last = window.repairs[-1]
    if last.progress in ("ended", "copied"):
        return last.generation, last.base
    if last.progress == "begun":
        return last.generation, left_end
    return None if last.base == left_end else (last.generation + 1, left_end)


def _done(repair: RepairRecord) -> bool:
    return repair.progress == "promoted"


def next_jobs(
    ledger: Ledger, run: RunFacts, stage: Stage, *, device: str, eager: bool = False, fence: Fence | None = None
) -> tuple[BlockJob, ...]:
    """Return the jobs of a stage that can be done now or are under way; none means that the stage is done.

    Parameters
    ----------
    device
        Where they shall be computed; whoever hands them out may replace it.
    eager
        As in :func:`next_tasks`.
    fence
        What the jobs check before they write.
    """
    jobs: list[BlockJob] = []
    for tile in range(len(run.plan.tiles)):
        blocks = [Block(stage, tile, window, span) for window, span in enumerate(run.plan.windows)]
        prompted = ledger.finished(conditioning_of(stage, tile)) is not None
        states = [WindowState(ledger.reached(block) == block.span.stop, ledger.repairs(block)) for block in blocks]
        jobs += [
            BlockJob(
                run, blocks[task.window], task.work, device, slab=run.plan.slab, fence=fence,
                generation=task.generation, base=task.base,
            )
            for task in next_tasks(prompted, states, eager=eager)
        ]  # fmt: skip
    return tuple(jobs)


def following_jobs(
    ledger: Ledger, run: RunFacts, *, device: str, fence: Fence | None = None
) -> tuple[BlockJob, ...]:  # fmt: skip
    """Return the job of stage 2 that can be done, or is under way, while stage 1 is: for one tile in one window.

    There is none where stage 2 has come as far as stage 1, or cannot follow it: what is there of it was begun with
    other bounds, or stage 1 has ended with others.
    """
    (window,) = run.plan.windows
    reached = ledger.reached(Block(1, 0, 0, window))
    block = Block(2, 0, 0, window)
    begins = ledger.reached(block)
    ended = ledger.finished("stage1")
    known = ASSUMED_BOUNDS if ended is None else LogitBounds(*ended["bounds"][0])
    if begins >= reached or known != ASSUMED_BOUNDS or not may_follow(ledger, 0):
        return ()
    prompted = ledger.finished(conditioning_of(2, 0)) is not None
    job = BlockJob(
        run, block, "window" if prompted else "conditioning", device, slab=run.plan.slab, fence=fence,
        assumed=ASSUMED_BOUNDS, begins=begins,
    )  # fmt: skip
    return (job,)
