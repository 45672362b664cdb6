"""What of a run is done: one small file per finished slab, repair or pass, written after the data it speaks of.

Nothing is ever inferred from chunks: a chunk of zeros is not stored at all, and a chunk may be there only half filled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Span

Bounds = tuple[float, float]
REDONE = "stage2-redone"
"""Name under which it is noted that stage 2 had followed stage 1 in an expectation that was not met."""


@dataclass(frozen=True)
class Block:
    """A window of a tile of a stage: what is computed by one propagation."""

    stage: Literal[1, 2]
    tile: int
    window: int
    span: Span
    """The window's slices."""


@dataclass(frozen=True)
class SlabRecord:
    """A run of slices of a block that is computed and stored; per slice, so that nothing depends on the slab."""

    start: int
    stop: int
    checksums: tuple[int, ...]
    """CRC-32 of each slice's native logits, object score and pointer, so that a store damaged by a power failure is
    noticed."""
    bounds: tuple[Bounds, ...]
    """Least and greatest clipped full-resolution logit of each slice; empty in stage 2, which does not need them."""
    seconds: float
    """Time the model took."""
    differences: tuple[tuple[float, float], ...] = ()
    """In a repair: how far each slice is from what was accepted before, as a whole and where it is furthest."""

    @property
    def span(self) -> Span:
        """The slices."""
        return Span(self.start, self.stop)


@dataclass(frozen=True)
class RepairRecord:
    """A repair of the beginning of a window: generation 1, 2, ... of a block (0 is its first computation)."""

    generation: int
    base: int
    """Generation of the left neighbour's end state from which it set out."""
    progress: Literal["begun", "ended", "copied", "promoted"]
    """Whether its slices are being computed, are all in the journal, have taken the place of the earlier ones, or are
    gone from the journal as well."""
    stop: int = 0
    """End of the recomputed slices, once it has ended."""
    agreed: bool = False
    """Whether it came to agree with the slices computed before; else it ran to the end of the window."""
    difference: float = 0.0
    """Largest difference of a slice as a whole that was let through where it agreed."""
    largest: float = 0.0
    """Largest difference of a single logit there."""

    @property
    def counts(self) -> bool:
        """Whether its slices have taken the place of the earlier ones."""
        return self.progress in ("copied", "promoted")


class Ledger:
    """The records in a folder of a run store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, block: Block, record: SlabRecord, *, generation: int = 0) -> None:
        """Note a finished slab. Its data and state must be on disk."""
        path = self._generation(block, generation) / f"{record.start:07d}-{record.stop:07d}.json"
        write_atomically(path, json.dumps(asdict(record)).encode())

    def reached(self, block: Block, *, generation: int = 0) -> int:
        """Return the end of the finished slabs that follow each other from the block's start; reads no file."""
        slabs = self._slab_paths(block, generation)
        return slabs[-1][0].stop if slabs else block.span.start

    def slabs(self, block: Block, *, generation: int = 0) -> tuple[SlabRecord, ...]:
        """Return the finished slabs that follow each other from the block's start, in order."""
        return tuple(_slab_record(path) for _, path in self._slab_paths(block, generation))

    def accepted(self, block: Block) -> dict[int, tuple[int, Bounds | None]]:
        """Return checksum and bounds (if measured) of the slices that count, by slice; repairs replace earlier ones."""
        found = by_slice(self.slabs(block))
        for repair in self.repairs(block):
            if repair.counts:
                found |= by_slice(self.slabs(block, generation=repair.generation))
        return found

    def repairs(self, block: Block) -> tuple[RepairRecord, ...]:
        """Return the repairs of a block, oldest first."""
        found = []
        for path in sorted(self._block(block).glob("generation*/repair.json")):
            facts = _read(path)
            try:
                found.append(RepairRecord(**facts))
            except TypeError as error:
                raise _damaged(path, error) from error
        return tuple(found)

    def note_repair(self, block: Block, record: RepairRecord) -> None:
        """Note how far a repair is."""
        write_atomically(
            self._generation(block, record.generation) / "repair.json", json.dumps(asdict(record)).encode()
        )

    def forget_generation(self, block: Block, generation: int) -> None:
        """Take back a generation of a block: its data is not trusted, or not wanted."""
        folder = self._generation(block, generation)
        # Backwards, so that an interruption leaves slabs that follow each other; the repair's own record goes last.
        for path in (*sorted(folder.glob("[0-9]*.json"), reverse=True), folder / "repair.json"):
            path.unlink(missing_ok=True)

    def forget(self, stage: int, tile: int) -> None:
        """Take back all that is noted of a stage of a tile, and that the stage is finished."""
        self.reopen(f"stage{stage}")
        folder = self._tile(stage, tile)
        with disk_errors("taking back records", folder):
            if folder.exists():
                doomed = folder.with_name(f".{folder.name}.deleted")
                shutil.rmtree(doomed, ignore_errors=True)
                folder.rename(doomed)
                shutil.rmtree(doomed)

    def finish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Note that the pass ``name`` is done, with what it found."""
        write_atomically(self._folder / f"{name}.json", json.dumps(facts, sort_keys=True).encode())

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return what :meth:`finish` noted of a pass, or None if it is not done."""
        path = self._folder / f"{name}.json"
        return _read(path) if path.is_file() else None

    def reopen(self, name: str) -> None:
        """Take back that the pass ``name`` is done."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def _tile(self, stage: int, tile: int) -> Path:
        return self._folder / f"stage{stage}" / f"tile{tile:05d}"

    def _block(self, block: Block) -> Path:
        return self._tile(block.stage, block.tile) / f"window{block.window:05d}"

    def _generation(self, block: Block, generation: int) -> Path:
        return self._block(block) / f"generation{generation:03d}"

    def _slab_paths(self, block: Block, generation: int) -> list[tuple[Span, Path]]:
        """Return the records that follow each other from the block's start; their names tell their slices."""
        found: list[tuple[Span, Path]] = []
        for path in sorted(self._generation(block, generation).glob("[0-9]*.json")):
            start, stop = (int(part) for part in path.stem.split("-"))
            if start != (found[-1][0].stop if found else block.span.start):
                break
            found.append((Span(start, stop), path))
        return found


def conditioning_of(stage: int, tile: int) -> str:
    """Return the name under which the ledger notes that the prompts of a stage of a tile are given."""
    return f"stage{stage}/tile{tile:05d}/conditioning"


def assumption_of(tile: int) -> str:
    """Return the name under which the ledger notes what stage 2 of a tile assumes of stage 1 until that has ended.

    It lies among the stage's records, and is taken back with them.
    """
    return f"stage2/tile{tile:05d}/assumed"


def computed_slices(ledger: Ledger, blocks: Sequence[Block]) -> int:
    """Return how many slices of these blocks are computed and stored, repaired or not."""
    return sum(ledger.reached(block) - block.span.start for block in blocks)


def by_slice(slabs: Sequence[SlabRecord]) -> dict[int, tuple[int, Bounds | None]]:
    """Return checksum and bounds (if measured) of each slice of some slabs, by slice."""
    return {
        slab.start + index: (checksum, slab.bounds[index] if slab.bounds else None)
        for slab in slabs
        for index, checksum in enumerate(slab.checksums)
    }


def _slab_record(path: Path) -> SlabRecord:
    facts = _read(path)
    try:
        facts["checksums"] = tuple(facts["checksums"])
        facts |= {name: tuple((one, other) for one, other in facts[name]) for name in ("bounds", "differences")}
        return SlabRecord(**facts)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}")
    return content


def _damaged(path: Path, reason: object) -> RunStoreError:
    return RunStoreError(
        f"The record {path} cannot be read ({reason}). Delete this file: what it spoke of is computed again."
    )
