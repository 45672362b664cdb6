"""Runs one job: gives a tile's prompts, computes a window, or repairs one.

The same code in every runtime. It opens everything itself from the job's addresses; who computes in the same process
may hand over what is open already.
"""

from __future__ import annotations

import contextlib

from etsam_zarr.desk import Desk, opened_desk, walked_slabs
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.follow import note_assumption, stops
from etsam_zarr.geometry import Span
from etsam_zarr.jobs import BlockJob, JobResult
from etsam_zarr.ledger import conditioning_of
from etsam_zarr.predictors import OF_PROCESS, Predictors
from etsam_zarr.repair import repair_window
from etsam_zarr.slabs import FinishedSlab
from etsam_zarr.statefile import read_state, write_state
from etsam_zarr.volume import Volume


def run_block(
    job: BlockJob, on_event: OnEvent = ignore, *, volume: Volume | None = None, predictors: Predictors = OF_PROCESS
) -> JobResult:
    """Do a job, or what is missing of it; return when all of it is stored and noted.

    Parameters
    ----------
    volume
        The volume, where it is open already; None opens the job's own.
    predictors
        Where the model is built and kept.

    Raises
    ------
    InputError
        The volume cannot be read.
    ModelError
        The model cannot be built.
    OutputError
        The store cannot be written; what was finished stays.
    RunStoreError
        What the job builds on is damaged.
    """
    works = {"conditioning": give_prompts, "window": compute_window, "repair": repair_window}
    with opened_desk(job, on_event, volume, predictors) as desk:
        slices = works[job.work](desk)
        return JobResult(slices, desk.walk.seconds)


def give_prompts(desk: Desk) -> int:
    """Prompt the slices of a tile and keep what the model made of them, which every window starts from."""
    block = desk.job.block
    desk.job.check_fence()
    note_assumption(desk)
    for z in desk.inputs.prompts:
        desk.walk.prompt(z, desk.inputs.prompt_mask(z))
    desk.job.check_fence()
    write_state(desk.store.conditioning_file(block.stage, block.tile), desk.walk.conditioning_state())
    desk.ledger.finish(conditioning_of(block.stage, block.tile), {"seconds": desk.walk.seconds})
    return len(desk.inputs.prompts)


def compute_window(desk: Desk) -> int:
    """Compute what is missing of a window.

    1. Restore the state after the last slab that is noted; at the window's start there is none but the prompts.
    2. At the start of a window that does not begin the volume: walk through its context, storing nothing.
    3. For each slab: walk the slices, then let the writer store values, state and record, in this order.

    Where the job follows stage 1 it may end before the window does.
    """
    job, block = desk.job, desk.job.block
    start = desk.ledger.reached(block)
    if start == block.span.stop:
        return 0
    job.check_fence()
    desk.store.forget_slices(block.stage, block.tile, Span(start, block.span.stop))
    begun = start > block.span.start
    desk.restore(read_state(desk.store.recent_file(block, 0, start)) if begun else {})
    seams = job.run.plan.seams
    lead = min(seams.context, start) if seams and not begun else 0
    predictions, reached = desk.predictions(desk.accepted), start
    with desk.writer(desk.accepted) as writer:
        for stop in stops(desk, start):
            walk = walked_slabs(desk, reached, predictions, slab=job.slab, stop=stop, lead=lead)
            with contextlib.closing(walk):
                for slab, state, seconds in walk:
                    writer.put(FinishedSlab(slab.span, slab.values(), tuple(slab.bounds), state, seconds))
            reached = stop
    return lead + reached - start
