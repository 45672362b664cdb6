"""Checks, before a stage goes on, that what the ledger notes of it is really on disk: a power failure can lose it."""

from __future__ import annotations

from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.geometry import Span, cut
from etsam_zarr.ledger import Block, Ledger, RepairRecord, by_slice, conditioning_of
from etsam_zarr.repair import discard_journal
from etsam_zarr.runstore import RunStore
from etsam_zarr.slabs import SlabValues
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, Stage, StageArrays
from etsam_zarr.statefile import read_state


def check_stage(store: RunStore, ledger: Ledger, stage: Stage, on_event: OnEvent) -> None:
    """Compare stored slices with their checksums and open the states; take back what cannot be built on.

    1. Of a repair that has not ended, damage costs the repair alone.
    2. Any other damage costs what is noted of the stage of the tile, which is computed again from its start.

    A finished stage has no states any more.
    """
    finished = ledger.finished(f"stage{stage}") is not None
    for tile in sorted({block.tile for block in store.blocks(stage)}):
        blocks = [block for block in store.blocks(stage) if block.tile == tile]
        if ledger.finished(conditioning_of(stage, tile)) is None:
            continue
        try:
            for block in blocks:
                _check_journal(store, ledger, block, on_event)
                _check_block(store, ledger, block)
                if not finished:
                    _check_states(store, ledger, block)
            if not finished and (ledger.reached(blocks[-1]) < store.shape[0] or len(blocks) > 1):
                read_state(store.conditioning_file(stage, tile))
        except RunStoreError as error:
            where = f"Stage {stage}" if len(store.blocks(stage)) == len(blocks) else f"Tile {tile} of stage {stage}"
            on_event(Notice(f"{where} is computed again from its start. {error}", warning=True))
            ledger.forget(stage, tile)


def _check_block(store: RunStore, ledger: Ledger, block: Block) -> None:
    """Check the slices that count of a block."""
    wanted = {z: {checksum} for z, (checksum, _) in ledger.accepted(block).items()}
    for repair in ledger.repairs(block):
        if repair.progress == "ended":
            # It may have been stopped while its slices were taking the place of the earlier ones.
            for z, (checksum, _) in by_slice(ledger.slabs(block, generation=repair.generation)).items():
                wanted[z].add(checksum)
    _check_slices(store.stage(block.stage), block, wanted)


def _check_states(store: RunStore, ledger: Ledger, block: Block) -> None:
    """Open the states at the ends of what is computed of a block."""
    reached = ledger.reached(block)
    if reached > block.span.start and reached < store.shape[0]:
        read_state(store.recent_file(block, 0, reached))
    for repair in ledger.repairs(block):
        if repair.counts and not repair.agreed and block.span.stop < store.shape[0]:
            read_state(store.recent_file(block, repair.generation, block.span.stop))


def _check_journal(store: RunStore, ledger: Ledger, block: Block, on_event: OnEvent) -> None:
    """Check the journal of a repair that goes on; one that has only to be copied must be whole."""
    unfinished = [repair for repair in ledger.repairs(block) if not repair.counts]
    for repair in unfinished:
        try:
            slabs = ledger.slabs(block, generation=repair.generation)
            wanted = {z: {checksum} for z, (checksum, _) in by_slice(slabs).items()}
            _check_slices(store.journal(block.stage), block, wanted)
            if repair.progress == "begun" and slabs:
                read_state(store.recent_file(block, repair.generation, slabs[-1].stop))
        except RunStoreError as error:
            if repair.progress == "ended":
                raise
            _discard(store, ledger, block, repair)
            on_event(Notice(
                f"The repair of slices {block.span} of stage {block.stage} is begun again. {error}", warning=True
            ))  # fmt: skip


def _discard(store: RunStore, ledger: Ledger, block: Block, repair: RepairRecord) -> None:
    ledger.forget_generation(block, repair.generation)
    discard_journal(store, block, repair)


def _check_slices(arrays: StageArrays, block: Block, wanted: dict[int, set[int]]) -> None:
    """Compare slices from the block's start on with the checksums that each may have."""
    for span in cut(Span(block.span.start, block.span.start + len(wanted)), LOGIT_CHUNK_DEPTH):
        for z, checksum in zip(
            range(span.start, span.stop), SlabValues.read(arrays, block.tile, span).checksums(), strict=True
        ):
            if checksum not in wanted[z]:
                raise RunStoreError(f"Slice {z} of stage {block.stage} is damaged.")
