"""Where windows meet: what it took to bring each window to agree with the one before it."""

from __future__ import annotations

from dataclasses import dataclass

from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import RunStore
from etsam_zarr.stage_arrays import Stage


@dataclass(frozen=True)
class SeamReport:
    """What it took to bring a window to agree with the one before it."""

    stage: int
    tile: int
    window: int
    z: int
    """The window's first slice."""
    recomputed: int
    """Slices computed besides those that are kept once: repairs, and the context before the window."""
    settled: bool
    """Whether the last repair has ended."""
    agreed: bool
    """Whether the last repair ended before the window did."""
    difference: float
    """Largest difference of a slice as a whole that was let through."""
    largest: float
    """Largest difference of a single logit that was let through."""


def seams(store: RunStore, ledger: Ledger, stage: Stage) -> tuple[SeamReport, ...]:
    """Return what is known of the places where windows meet, as far as their repairs have come."""
    found = []
    context = store.record["fingerprint"].get("context", 0)
    for block in store.blocks(stage):
        repairs = ledger.repairs(block) if block.window else ()
        if not repairs:
            continue
        recomputed = sum(ledger.reached(block, generation=repair.generation) - block.span.start for repair in repairs)
        found.append(SeamReport(
            stage, block.tile, block.window, block.span.start, recomputed + min(context, block.span.start),
            repairs[-1].counts, repairs[-1].agreed, repairs[-1].difference, repairs[-1].largest,
        ))  # fmt: skip
    return tuple(found)


def seam_text(seam: SeamReport) -> str:
    """Say what became of a seam, in one line."""
    where = f"Stage {seam.stage}, tile {seam.tile}, windows meet at slice {seam.z}"
    if not seam.settled:
        return f"{where}: {seam.recomputed} slices recomputed so far."
    if not seam.agreed:
        return f"{where}: {seam.recomputed} slices recomputed, the whole window among them: no difference let through."
    return (
        f"{where}: {seam.recomputed} slices recomputed, largest difference let through {seam.difference:.3g} "
        f"(mean of a slice; {seam.largest:.3g} of a logit)."
    )
