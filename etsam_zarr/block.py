"""Runs one stage over one tile: resume, prompt, walk slab by slab, store, note it in the ledger."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from etsam_zarr.atomic import disk_errors
from etsam_zarr.config import Precision
from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import Advanced, Notice, OnEvent
from etsam_zarr.frames import ReadPlanes, StreamedFrames
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span, cut
from etsam_zarr.ledger import Ledger, SlabRecord
from etsam_zarr.runstore import RunStore, Stage, StageArrays, read_stored
from etsam_zarr.sam import Predictor, Propagation, SliceOutput, Tensors
from etsam_zarr.statefile import read_state, write_state

Mask = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StageTask:
    """All that one stage of one tile needs to know."""

    stage: Stage
    tile: int
    height: int
    """Rows of a slice as the model is given it."""
    width: int
    """Columns of a slice as the model is given it."""
    read_planes: ReadPlanes
    """Delivers the model's input."""
    prompts: tuple[int, ...]
    """The slices to prompt, in order."""
    prompt_mask: Callable[[int], Mask]
    """Makes the prompt of a slice, shape (height, width)."""
    image_size: int
    slab: int
    """Slices per slab: read at once, and saved at its end."""
    precision: Precision
    keep_bounds: bool
    """Whether to measure the bounds of the full-resolution logits (stage 1)."""
    predict_prompted: bool
    """Whether to predict prompted slices backwards, besides."""


def run_stage(task: StageTask, predictor: Predictor, store: RunStore, ledger: Ledger, on_event: OnEvent) -> None:
    """Compute what is missing of a stage of a tile; return when all of it is stored.

    Steps:

    1. find the last slab that is noted, stored and undamaged, and whose state is there;
    2. restore the state after it, or give the prompts and save the conditioning state;
    3. for each slab: walk the slices, then let the writer store logits, state and record, in this order.

    Raises
    ------
    OutputError
        The store cannot be written; what was finished stays.
    """
    depth = store.shape[0]
    arrays, folder = store.stage(task.stage), store.state_folder(task.stage, task.tile)
    start = _resume_point(task, arrays, ledger, folder, on_event)
    if start == depth:
        return
    store.forget_slices(task.stage, task.tile, start)
    frames = StreamedFrames(task.read_planes, depth=depth, image_size=task.image_size, slab=task.slab)
    walk = Propagation(predictor, frames, height=task.height, width=task.width, precision=task.precision)
    if start:
        conditioning = read_state(folder / "conditioning.safetensors")
        walk.restore(conditioning=conditioning, recent=read_state(_recent_file(folder, start)))
    else:
        for z in task.prompts:
            walk.prompt(z, task.prompt_mask(z))
        write_state(folder / "conditioning.safetensors", walk.conditioning_state())

    backwards = _BackwardPredictions(task, walk, arrays, depth)
    order = Span(start, depth)
    with (
        _Writer(task, arrays, ledger, folder) as writer,
        frames.ahead(order, skipping=frozenset(task.prompts)),
    ):
        counted = 0.0
        for span in cut(order, task.slab):
            slab = _Slab(span, task, backwards, on_event)
            walk.walk(span, slab.take)
            in_model = walk.seconds - frames.seconds_waited
            writer.put(slab, walk.recent_state(), in_model - counted)
            counted = in_model


class _Slab:
    """The outputs of a run of slices, gathered as they come."""

    def __init__(self, span: Span, task: StageTask, backwards: _BackwardPredictions, on_event: OnEvent) -> None:
        native = task.image_size // 4
        self.span = span
        self.logits = np.empty((span.size, native, native), dtype=np.float32)
        self.scores = np.empty(span.size, dtype=np.float32)
        self.pointers: list[Logits] = []
        self.bounds = LogitBounds()
        self._task = task
        self._backwards = backwards
        self._on_event = on_event

    def take(self, output: SliceOutput) -> None:
        """Take in the next slice; called within the walk."""
        index = output.z - self.span.start
        self.logits[index] = output.native.numpy()
        self.scores[index] = output.object_score
        self.pointers.append(output.object_pointer.numpy())
        if self._task.keep_bounds:
            self.bounds = self.bounds.including(output.full.numpy())
        self._backwards.after(output.z)
        self._on_event(Advanced(f"stage {self._task.stage}"))


class _Writer:
    """Stores slabs in a thread of its own, so that the model does not wait for the disk.

    One slab may wait while one is being written; more would only cost memory.
    """

    def __init__(self, task: StageTask, arrays: StageArrays, ledger: Ledger, folder: Path) -> None:
        self._task, self._arrays, self._ledger, self._folder = task, arrays, ledger, folder
        self._waiting: queue.Queue[tuple[_Slab, Tensors, float] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="write-slabs", daemon=True)

    def __enter__(self) -> _Writer:
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

    def put(self, slab: _Slab, state: Tensors, seconds: float) -> None:
        """Hand over a finished slab; raises what went wrong with an earlier one."""
        if self._error is not None:
            raise self._error
        self._waiting.put((slab, state, seconds))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # keep taking, so that nobody waits for ever
            try:
                self._store(*item)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that computes
                self._error = error

    def _store(self, slab: _Slab, state: Tensors, seconds: float) -> None:
        stage, tile, z = self._task.stage, self._task.tile, slab.span.as_slice()
        with disk_errors(f"storing slices {slab.span} of stage {stage}", self._folder):
            self._arrays.logits[tile, z] = slab.logits
            self._arrays.object_score[tile, z] = slab.scores
            self._arrays.object_pointer[tile, z] = np.stack(slab.pointers)
        write_state(_recent_file(self._folder, slab.span.stop), state)
        measured = slab.bounds if self._task.keep_bounds else LogitBounds(0.0, 0.0)
        self._ledger.add(
            SlabRecord(
                stage=stage, tile=tile, start=slab.span.start, stop=slab.span.stop,
                checksum=zlib.crc32(slab.logits.data), minimum=measured.minimum, maximum=measured.maximum,
                seconds=seconds,
            )
        )  # fmt: skip
        _recent_file(self._folder, slab.span.start).unlink(missing_ok=True)


class _BackwardPredictions:
    """Predicts prompted slices backwards as soon as the slices that they look at are there."""

    def __init__(self, task: StageTask, walk: Propagation, arrays: StageArrays, depth: int) -> None:
        self._tile, self._walk, self._array = task.tile, walk, arrays.backwards
        prompted = enumerate(task.prompts) if task.predict_prompted else ()
        self._due: dict[int, list[tuple[int, int]]] = {}
        for index, z in prompted:
            self._due.setdefault(min(depth - 1, z + walk.reach), []).append((index, z))

    def after(self, reached: int) -> None:
        """Predict what can be predicted now that the walk has reached this slice."""
        for index, z in self._due.get(reached, ()):
            native = self._walk.predict_backwards(z).numpy()
            with disk_errors(f"storing the prediction of slice {z}", str(self._array.store_path)):
                self._array[self._tile, index] = native


def _recent_file(folder: Path, z: int) -> Path:
    return folder / f"recent-{z:07d}.safetensors"


def _resume_point(task: StageTask, arrays: StageArrays, ledger: Ledger, folder: Path, on_event: OnEvent) -> int:
    """Return the first slice to compute: the end of the last slab that can be built on."""
    slabs = ledger.slabs(task.stage, task.tile)
    if not slabs:
        return 0
    stop = slabs[-1].stop
    try:
        for slab in slabs:
            if zlib.crc32(read_stored(arrays.logits, task.tile, slab.span.as_slice()).data) != slab.checksum:
                raise RunStoreError(f"Slices {slab.span} are damaged.")
        for array in (arrays.object_score, arrays.object_pointer):
            read_stored(array, task.tile, slice(0, stop))
        if stop < arrays.logits.shape[1]:
            read_state(folder / "conditioning.safetensors")
            read_state(_recent_file(folder, stop))
    except RunStoreError as error:
        problem = str(error)
    else:
        return stop
    on_event(Notice(f"Stage {task.stage} is computed again from its start. {problem}", warning=True))
    ledger.forget(task.stage, task.tile)
    return 0
