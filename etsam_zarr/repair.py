"""Repairs the beginning of a window: computes it again from the true end of the window before it, until both agree.

The slices go into a journal, arrays and records of their own, so that a repair that is resumed after a crash compares
with what was there before it, and never with itself. Only when it has ended do they take the place of the earlier
ones.

Why agreement ends it: a slice depends on what the model kept of the slices within its reach, and on the prompted
ones. Where logits, object scores and object pointers of as many slices in a row are equal, everything after them is
equal too. With a tolerance above 0 this is an approximation, whose quality is measured (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from etsam_zarr.atomic import disk_errors
from etsam_zarr.desk import Desk, walked_slabs
from etsam_zarr.geometry import Span, cut
from etsam_zarr.ledger import Block, RepairRecord
from etsam_zarr.runstore import RunStore
from etsam_zarr.slabs import FinishedSlab, SlabValues
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, read_stored
from etsam_zarr.statefile import read_state

REPAIR_SLAB = 4
"""Slices per slab of a repair at most: it can end at each slab's end."""


def repair_window(desk: Desk) -> int:
    """Do what is missing of a repair.

    1. Take up the repair where its last slab ended, or begin it from the end of the window before.
    2. Slab by slab: compute, compare with the slices that count, store in the journal; stop when enough slices in a
       row agree, or at the end of the window.
    3. Note that it has ended; copy its slices to their place; note that; clear the journal.
    """
    desk.job.check_fence()
    block, record, computed = desk.job.block, _taken_up(desk), 0
    if record.progress == "begun":
        before = desk.ledger.reached(block, generation=record.generation)
        record = _computed(desk, record)
        computed = record.stop - before
        desk.ledger.note_repair(block, record)
    desk.job.check_fence()
    if record.progress == "ended":
        _promote(desk, Span(block.span.start, record.stop))
        record = dataclasses.replace(record, progress="copied")
        desk.ledger.note_repair(block, record)
    discard_journal(desk.store, block, record)
    # Last of all: from now on the next repair of the window may be begun.
    desk.ledger.note_repair(block, dataclasses.replace(record, progress="promoted"))
    return computed


def _taken_up(desk: Desk) -> RepairRecord:
    """Return the record of the repair; one that set out from another state is begun anew."""
    block, generation, base = desk.job.block, desk.job.generation, desk.job.base
    known = [repair for repair in desk.ledger.repairs(block) if repair.generation == generation]
    if known and (known[0].progress != "begun" or known[0].base == base):
        return known[0]
    desk.ledger.forget_generation(block, generation)
    desk.store.forget_slices(block.stage, block.tile, block.span, journal=True)
    record = RepairRecord(generation, base, "begun")
    desk.ledger.note_repair(block, record)
    return record


def _computed(desk: Desk, record: RepairRecord) -> RepairRecord:
    """Compute slabs until the repair agrees or the window ends; return the record of an ended repair."""
    block, ledger, plan = desk.job.block, desk.ledger, desk.job.run.plan
    if plan.seams is None:
        raise ValueError("a run in stream mode has no windows to repair")
    reach, tolerance = desk.walk.horizon, plan.seams.tolerance
    slabs = ledger.slabs(block, generation=record.generation)
    differences = [difference for slab in slabs for difference in slab.differences]
    start = block.span.start + len(differences)
    if start < block.span.stop and not agrees(differences, tolerance, reach):
        desk.restore(read_state(_state_before(desk, record, start)))
        journal = desk.store.journal(block.stage)
        walk = walked_slabs(
            desk, start, desk.predictions(journal), slab=min(desk.job.slab, REPAIR_SLAB), name=f"{desk.name} seams"
        )
        with desk.writer(journal, generation=record.generation) as writer, closing(walk):
            for slab, state, seconds in walk:
                values, start = slab.values(), slab.span.stop
                found = values.differences(SlabValues.read(desk.accepted, block.tile, slab.span))
                writer.put(FinishedSlab(slab.span, values, tuple(slab.bounds), state, seconds, found))
                differences.extend(found)
                if agrees(differences, tolerance, reach):
                    break
    agreed = agrees(differences, tolerance, reach)
    let_through = differences[-reach:] if agreed else [(0.0, 0.0)]
    return dataclasses.replace(
        record,
        progress="ended",
        stop=start,
        agreed=agreed,
        difference=max(whole for whole, _ in let_through),
        largest=max(largest for _, largest in let_through),
    )


def agrees(differences: Sequence[tuple[float, float]], tolerance: float, reach: int) -> bool:
    """Say whether the last ``reach`` slices are all, as a whole, within the tolerance.

    >>> agrees([(3, 9), (0, 9), (0, 9)], 0.5, 2), agrees([(0, 0), (0, 0), (3, 9)], 0.5, 2), agrees([(0, 0)], 0.5, 2)
    (True, False, False)
    """
    return len(differences) >= reach and max(whole for whole, _ in differences[-reach:]) <= tolerance


def _state_before(desk: Desk, record: RepairRecord, z: int) -> Path:
    """Return where the state is from which slice ``z`` is computed: the repair's own, or the window's before it."""
    block = desk.job.block
    if z > block.span.start:
        return desk.store.recent_file(block, record.generation, z)
    left = dataclasses.replace(block, window=block.window - 1, span=desk.job.run.plan.windows[block.window - 1])
    return desk.store.recent_file(left, record.base, left.span.stop)


def _promote(desk: Desk, span: Span) -> None:
    """Copy slices from the journal to their place, and backward predictions with them."""
    block, accepted, journal = desk.job.block, desk.accepted, desk.store.journal(desk.job.block.stage)
    made = desk.predictions(journal).made_by(span.stop)
    with disk_errors(f"storing the repaired slices {span} of stage {block.stage}", desk.store.path):
        for piece in cut(span, LOGIT_CHUNK_DEPTH):
            SlabValues.read(journal, block.tile, piece).write(accepted, block.tile, piece)
        for index in made:
            accepted.backwards[block.tile, index] = read_stored(journal.backwards, block.tile, index)


def discard_journal(store: RunStore, block: Block, record: RepairRecord) -> None:
    """Delete a repair's slices from the journal, and its states but the one that is the window's end from now on."""
    store.forget_slices(block.stage, block.tile, block.span, journal=True)
    end = store.recent_file(block, record.generation, block.span.stop)
    for path in end.parent.glob("recent-*.safetensors"):
        if path != end or record.agreed:
            path.unlink(missing_ok=True)
