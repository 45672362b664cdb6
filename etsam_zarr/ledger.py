"""What of a run is done: one small file per finished slab or pass, written after the data it speaks of.

Nothing is ever inferred from chunks: a chunk of zeros is not stored at all, and a chunk may be there only half filled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Span


@dataclass(frozen=True)
class SlabRecord:
    """A run of slices of one stage of one tile that is computed and stored."""

    stage: int
    tile: int
    start: int
    stop: int
    checksum: int
    """CRC-32 of the native logits, so that a store damaged by a power failure is noticed."""
    minimum: float
    """Least and greatest clipped full-resolution logit; both 0 in stage 2, which does not need them."""
    maximum: float
    seconds: float
    """Time the model took."""

    @property
    def span(self) -> Span:
        """The slices."""
        return Span(self.start, self.stop)


class Ledger:
    """The records in a folder of a run store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, record: SlabRecord) -> None:
        """Note a finished slab. Its data and state must be on disk."""
        path = self._slabs(record.stage, record.tile) / f"{record.start:07d}-{record.stop:07d}.json"
        write_atomically(path, json.dumps(asdict(record)).encode())

    def slabs(self, stage: int, tile: int) -> tuple[SlabRecord, ...]:
        """Return the finished slabs of a stage of a tile that follow each other from slice 0, in order."""
        found: list[SlabRecord] = []
        for path in sorted(self._slabs(stage, tile).glob("[0-9]*.json")):
            facts = _read(path)
            try:
                record = SlabRecord(**facts)
            except TypeError as error:
                raise _damaged(path, error) from error
            if record.start != (found[-1].stop if found else 0):
                break
            found.append(record)
        return tuple(found)

    def forget(self, stage: int, tile: int) -> None:
        """Take back all slabs of a stage of a tile: their data is no longer trusted."""
        for path in self._slabs(stage, tile).glob("*.json"):
            path.unlink()

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

    def _slabs(self, stage: int, tile: int) -> Path:
        return self._folder / f"stage{stage}" / f"tile{tile:05d}"


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
