"""Lets stage 2 follow stage 1 a slab behind, on another device, before all is known that it is made from.

Stage 2 reads the tomogram plus stage 1's logits, clipped to -5..5 and scaled to 0..1 with the least and the greatest of
the whole volume. Slice by slice it needs no other slices of stage 1, as long as it prompts none but the first. What is
known only at the end of stage 1 are those two numbers. After clipping they are nearly always -5 and 5: the prompt of
slice 0 comes out at -10, and one voxel above 5 is enough. So this is assumed, and compared when stage 1 has ended.

1. The assumption is noted before anything of stage 2 is stored.
2. Stage 2 is walked as far as stage 1 has come, each of whose slices is first compared with its checksum.
3. When stage 1 has ended otherwise, all of stage 2 is taken back and computed again: nothing of it was true.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from etsam_zarr.desk import Desk
from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import Advanced, Notice, OnEvent
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span, cut
from etsam_zarr.jobs import ASSUMED_BOUNDS, BlockJob
from etsam_zarr.ledger import REDONE, Block, Ledger, assumption_of, conditioning_of
from etsam_zarr.slabs import SlabValues
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH

PATIENCE_SECONDS = 5.0
"""How long a job waits for stage 1's next slab before it gives its worker back. It goes on when that is there; what
matters is that stage 1 gets a worker again if there is only this one left."""
_LOOK_SECONDS = 0.2
_SLABS_AT_ONCE = 4
"""Slabs that are walked before stage 1 is looked at again."""


def note_assumption(desk: Desk) -> None:
    """Note what stage 2 of a tile is about to be computed with, if that is not known but assumed.

    Raises
    ------
    RunStoreError
        Slice 0 of stage 1 is not there as it was noted.
    """
    block, assumed = desk.job.block, desk.job.assumed
    if assumed is not None:
        _compare(desk, Span(0, 1))
        desk.ledger.finish(assumption_of(block.tile), asdict(assumed))


def stops(desk: Desk, start: int) -> Iterator[int]:
    """Yield how far a window can be walked from ``start`` on, then how far from there, and so on.

    That is its end at once, unless the job follows stage 1: then as far as that has come. It ends early where stage 1
    has ended with other bounds than are assumed, and where it has not gone on for :data:`PATIENCE_SECONDS`.

    Raises
    ------
    RunStoreError
        Slices of stage 1 are not there as they were noted.
    """
    job, stop = desk.job, desk.job.block.span.stop
    if job.assumed is None:
        yield stop
        return
    ahead = replace(job.block, stage=1)
    while start < stop:
        reached = _awaited(desk, ahead, start)
        ended_otherwise = reached == stop and measured_bounds(desk.ledger, [ahead]) != job.assumed
        if reached <= start or ended_otherwise:
            return
        reached = min(reached, start + _SLABS_AT_ONCE * job.slab)
        _compare(desk, Span(start, reached))
        yield reached
        start = reached


def measured_bounds(ledger: Ledger, blocks: Sequence[Block]) -> LogitBounds:
    """Return the bounds of the slices that count of some blocks of stage 1."""
    bounds = LogitBounds()
    for block in blocks:
        for _, found in ledger.accepted(block).values():
            bounds = bounds.union(LogitBounds(*found) if found else LogitBounds())
    return bounds


def may_follow(ledger: Ledger, tile: int) -> bool:
    """Say whether nothing of stage 2 is there yet, or what is there was begun with the same assumption."""
    noted = ledger.finished(assumption_of(tile))
    if noted is None:
        return ledger.finished(conditioning_of(2, tile)) is None
    return noted == asdict(ASSUMED_BOUNDS)


def withdraw_what_is_ahead(ledger: Ledger, behind: Block, on_event: OnEvent) -> None:
    """Take stage 2 of a tile back where stage 1 has not come as far: its store was damaged after stage 2 had read it.

    Parameters
    ----------
    behind
        The tile's block of stage 2.
    """
    prompted = ledger.finished(conditioning_of(2, behind.tile)) is not None
    if max(ledger.reached(behind), int(prompted)) > ledger.reached(replace(behind, stage=1)):
        on_event(Notice("Stage 2, which had followed stage 1, is computed again as well.", warning=True))
        ledger.forget(2, behind.tile)


def settle(ledger: Ledger, jobs: Sequence[BlockJob], found: LogitBounds, on_event: OnEvent) -> None:
    """Compare what stage 2 was begun with, if with an assumption, with how stage 1 has ended; take back what is wrong.

    Parameters
    ----------
    jobs
        Those by which stage 2 of a tile was begun: no worker that has one of them, and was taken for dead, may write
        any more.
    found
        The bounds of stage 1.
    """
    tile = jobs[0].block.tile
    assumed = ledger.finished(assumption_of(tile))
    if assumed is None or assumed == asdict(found):
        return
    for job in jobs:
        if job.fence is not None:
            job.fence.claiming(job.name)
    slices = ledger.reached(jobs[0].block)
    # Noted first: if this process dies now, the next one takes it back, and the note is there all the same.
    ledger.finish(REDONE, {"assumed": assumed, "found": asdict(found), "slices": slices})
    ledger.forget(2, tile)
    on_event(Notice(
        f"Stage 1's logits, clipped to -5..5, ended within {found.minimum:g}..{found.maximum:g}. Stage 2 had followed "
        f"in the expectation of {assumed['minimum']:g}..{assumed['maximum']:g}, so its {slices} slices are computed "
        "again, with the true bounds."
    ))  # fmt: skip


def _awaited(desk: Desk, ahead: Block, start: int) -> int:
    """Return how far stage 1 has come, as soon as that is beyond ``start``, or in the end all the same."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (reached := desk.ledger.reached(ahead)) <= start and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        desk.on_event(Advanced(desk.name, 0))  # a sign of life
    return reached


def _compare(desk: Desk, span: Span) -> None:
    """Compare stored slices of stage 1 with their checksums.

    On a network file system the data may come into sight after the record that speaks of them, so this is patient.
    """
    ahead = replace(desk.job.block, stage=1)
    noted = desk.ledger.accepted(ahead)
    arrays = desk.store.stage(1)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for part in cut(span, LOGIT_CHUNK_DEPTH):
        wanted = tuple(noted[z][0] for z in range(part.start, part.stop))
        while SlabValues.read(arrays, ahead.tile, part).checksums() != wanted:
            if time.monotonic() > deadline:
                raise RunStoreError(
                    f"Slices {part} of stage 1 are not in the run store as they were noted, so stage 2 cannot follow. "
                    "Give the same command again with --no-follow; if that fails as well, with --overwrite."
                )
            time.sleep(_LOOK_SECONDS)
