"""The outputs of a walk on their way to the store: gathered slab by slab, written by a thread of their own."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from etsam_zarr.atomic import disk_errors
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Block, Ledger, SlabRecord
from etsam_zarr.runstore import RunStore
from etsam_zarr.sam.propagation import Propagation, SliceOutput
from etsam_zarr.sam.walk_state import Tensors
from etsam_zarr.stage_arrays import StageArrays, read_stored
from etsam_zarr.statefile import write_state

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SlabValues:
    """What is stored of a run of slices."""

    logits: Floats
    """Native logits, shape (slices, native, native)."""
    scores: Floats
    """Object scores, shape (slices,)."""
    pointers: Floats
    """Object pointers, shape (slices, hidden dim)."""

    @classmethod
    def read(cls, arrays: StageArrays, tile: int, span: Span) -> SlabValues:
        """Read a run of slices.

        Raises
        ------
        RunStoreError
            A chunk is damaged.
        """
        z = span.as_slice()
        stored = (read_stored(array, tile, z) for array in (arrays.logits, arrays.object_score, arrays.object_pointer))
        return cls(*stored)

    def write(self, arrays: StageArrays, tile: int, span: Span) -> None:
        """Write them as the slices ``span`` of a tile."""
        z = span.as_slice()
        arrays.logits[tile, z] = self.logits
        arrays.object_score[tile, z] = self.scores
        arrays.object_pointer[tile, z] = self.pointers

    def checksums(self) -> tuple[int, ...]:
        """Return the CRC-32 of all that is stored of each slice."""
        return tuple(
            zlib.crc32(pointer.tobytes(), zlib.crc32(score.tobytes(), zlib.crc32(logits.data)))
            for logits, score, pointer in zip(self.logits, self.scores, self.pointers, strict=True)
        )

    def differences(self, other: SlabValues) -> tuple[tuple[float, float], ...]:
        """Return for each slice how far apart it is: as a whole, and where its logits are furthest apart.

        As a whole is the mean absolute difference of the logits, of the object pointers, or that of the object
        scores, whichever is most; 0 only if all are equal to the last bit.
        """
        pairs = ((self.logits, other.logits), (self.scores, other.scores), (self.pointers, other.pointers))
        apart = [np.abs(mine - theirs, dtype=np.float64).reshape(len(mine), -1) for mine, theirs in pairs]
        whole = np.max([values.mean(axis=1) for values in apart], axis=0)
        return tuple((float(mean), float(most)) for mean, most in zip(whole, apart[0].max(axis=1), strict=True))


class Slab:
    """The outputs of a run of slices, gathered as they come."""

    def __init__(self, span: Span, *, native: int, measure_bounds: bool) -> None:
        self.span = span
        self.bounds: list[tuple[float, float]] = []
        self._logits = np.empty((span.size, native, native), dtype=np.float32)
        self._scores = np.empty(span.size, dtype=np.float32)
        self._pointers: list[Floats] = []
        self._measure_bounds = measure_bounds

    def take(self, output: SliceOutput) -> None:
        """Take in the next slice; called within the walk."""
        index = output.z - self.span.start
        self._logits[index] = output.native.numpy()
        self._scores[index] = output.object_score
        self._pointers.append(output.object_pointer.numpy())
        if self._measure_bounds:
            bounds = LogitBounds().including(output.full.numpy())
            self.bounds.append((bounds.minimum, bounds.maximum))

    def values(self) -> SlabValues:
        """Return all of it, when the last slice has come."""
        return SlabValues(self._logits, self._scores, np.stack(self._pointers))


@dataclass(frozen=True)
class FinishedSlab:
    """A slab with what is noted of it."""

    span: Span
    values: SlabValues
    bounds: tuple[tuple[float, float], ...]
    state: Tensors
    """What the slice after it needs."""
    seconds: float
    differences: tuple[tuple[float, float], ...] = ()


class SlabWriter:
    """Stores slabs in a thread of its own, so that the model does not wait for the disk.

    One slab may wait while one is being written; more would only cost memory. For each slab: values, state, record,
    in this order; the state before it goes when the record is there.

    Parameters
    ----------
    check
        Raises where nothing may be written any more; called before each slab.
    """

    def __init__(
        self, block: Block, arrays: StageArrays, store: RunStore, ledger: Ledger, *, generation: int,
        check: Callable[[], None],
    ) -> None:  # fmt: skip
        self._block, self._arrays, self._store, self._ledger = block, arrays, store, ledger
        self._generation, self._check = generation, check
        self._waiting: queue.Queue[FinishedSlab | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="write-slabs", daemon=True)

    def __enter__(self) -> SlabWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error (or Ctrl-C) in the model: finished slabs are stored before the run ends.
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def put(self, slab: FinishedSlab) -> None:
        """Hand over a finished slab; raises what went wrong with an earlier one."""
        if self._error is not None:
            raise self._error
        self._waiting.put(slab)

    def _work(self) -> None:
        while (slab := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # keep taking, so that nobody waits for ever
            try:
                self._write(slab)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that computes
                self._error = error

    def _write(self, slab: FinishedSlab) -> None:
        self._check()
        block, span = self._block, slab.span
        with disk_errors(f"storing slices {span} of stage {block.stage}", self._store.path):
            slab.values.write(self._arrays, block.tile, span)
        write_state(self._store.recent_file(block, self._generation, span.stop), slab.state)
        record = SlabRecord(
            span.start, span.stop, slab.values.checksums(), slab.bounds, slab.seconds, slab.differences
        )  # fmt: skip
        self._ledger.add(block, record, generation=self._generation)
        self._store.recent_file(block, self._generation, span.start).unlink(missing_ok=True)


class BackwardPredictions:
    """Predicts prompted slices backwards as soon as the slices that they look at are there.

    Parameters
    ----------
    prompts
        All prompted slices of the volume, in the order of ``arrays.backwards``; those within ``span`` are predicted.
    """

    def __init__(
        self, prompts: Sequence[int], span: Span, walk: Propagation, arrays: StageArrays, *, tile: int
    ) -> None:
        self._tile, self._walk, self._array = tile, walk, arrays.backwards
        self._span, depth = span, arrays.logits.shape[1]
        self._due: dict[int, list[tuple[int, int]]] = {}
        for index, z in enumerate(prompts):
            if span.start <= z < span.stop:
                self._due.setdefault(min(depth - 1, z + walk.reach), []).append((index, z))

    @property
    def stop(self) -> int:
        """How far the walk must go for all of them: the end of the last slice needed, 0 if there are none."""
        return max(self._due, default=-1) + 1

    def made_by(self, stop: int) -> tuple[int, ...]:
        """Return the indices of those made by a walk up to ``stop``; at the window's end that is all."""
        return tuple(
            index for due, found in self._due.items() if due < stop or stop == self._span.stop for index, _ in found
        )

    def after(self, output: SliceOutput) -> None:
        """Predict what can be predicted now that the walk has computed this slice."""
        for index, z in self._due.get(output.z, ()):
            native = self._walk.predict_backwards(z).numpy()
            with disk_errors(f"storing the prediction of slice {z}", str(self._array.store_path)):
                self._array[self._tile, index] = native
