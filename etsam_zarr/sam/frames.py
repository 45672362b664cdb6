"""Slices as the image encoder wants them, prepared ahead of the model by a thread of their own, or when asked for."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from etsam_zarr.geometry import Span, cut

Plane = npt.NDArray[np.float32]
ReadPlanes = Callable[[Span], Iterable[Plane]]
"""Reads a run of slices at once and yields the model's input for them one by one, float32, shape (y, x)."""

# ImageNet's statistics, which SAM 2 was trained with.
_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)[:, None, None]
_DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float32)[:, None, None]

FRAMES_AHEAD = 4
"""Prepared slices that wait for the model at most."""


class Frames(Protocol):
    """The slices as the model's image encoder wants them, made when asked for."""

    def __len__(self) -> int:
        """Return the depth of the volume."""
        ...

    def __getitem__(self, z: int) -> torch.Tensor:
        """Return slice ``z`` as float32 of shape (3, image size, image size)."""
        ...


def to_frame(plane: npt.NDArray[np.float32], image_size: int) -> torch.Tensor:
    """Bring a slice of shape (y, x) to the model's input, float32 of shape (3, image_size, image_size).

    As ETSAM does: Pillow's default resize of a float image, three equal channels, ImageNet's mean and deviation.
    """
    if plane.shape != (image_size, image_size):  # else Pillow only copies, three times
        plane = np.array(Image.fromarray(plane).resize((image_size, image_size)))
    channels = plane - _MEAN
    channels /= _DEVIATION
    return torch.from_numpy(channels)


class StreamedFrames:
    """A sequence of frames that are read slab by slab when needed, and never kept.

    Parameters
    ----------
    read_planes
        Delivers the slices; called by the preparing thread within :meth:`in_order`, or by the caller.
    depth
        Slices of the whole volume.
    image_size
        Edge of a frame in pixels.
    slab
        Slices to read at once.
    """

    def __init__(self, read_planes: ReadPlanes, *, depth: int, image_size: int, slab: int) -> None:
        self._read_planes = read_planes
        self._depth = depth
        self._image_size = image_size
        self._slab = slab
        self._prepared: Iterator[tuple[int, torch.Tensor]] | None = None
        self._skipping: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self._depth

    def __getitem__(self, z: int) -> torch.Tensor:
        """Return the frame of slice ``z``: the next prepared one, or (outside of the order) one made now."""
        if self._prepared is None or z in self._skipping:
            (plane,) = self._read_planes(Span(z, z + 1))
            return to_frame(plane, self._image_size)
        prepared, frame = next(self._prepared, (None, None))
        if prepared != z or frame is None:
            raise RuntimeError(f"slice {z} was asked for where {prepared} comes next")
        return frame

    @contextlib.contextmanager
    def in_order(self, order: Span, *, skipping: frozenset[int] = frozenset(), beside: bool = True) -> Iterator[None]:
        """Within this context the slices of ``order`` but those of ``skipping`` are taken in order, each once.

        Parameters
        ----------
        beside
            Whether a thread prepares them ahead. Otherwise each is prepared when it is asked for: better where that
            takes a core from the model, and reading is no waiting.
        """
        with self._beside(order, skipping) if beside else contextlib.nullcontext(self._made(order, skipping)) as frames:
            self._prepared, self._skipping = frames, skipping
            try:
                yield
            finally:
                self._prepared, self._skipping = None, frozenset()

    def _made(self, order: Span, skipping: frozenset[int]) -> Iterator[tuple[int, torch.Tensor]]:
        for span in cut(order, self._slab):
            for z, plane in zip(range(span.start, span.stop), self._read_planes(span), strict=True):
                if z not in skipping:
                    yield z, to_frame(plane, self._image_size)

    @contextlib.contextmanager
    def _beside(self, order: Span, skipping: frozenset[int]) -> Iterator[Iterator[tuple[int, torch.Tensor]]]:
        prepared: queue.Queue[tuple[int, torch.Tensor] | BaseException | None] = queue.Queue(maxsize=FRAMES_AHEAD)
        stop = threading.Event()

        def put(item: tuple[int, torch.Tensor] | BaseException | None) -> bool:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    prepared.put(item, timeout=0.1)
                    return True
            return False

        def prepare() -> None:
            try:
                with _one_thread():
                    if all(map(put, self._made(order, skipping))):
                        put(None)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the taker of the frame must see it
                put(error)

        def taken() -> Iterator[tuple[int, torch.Tensor]]:
            while (item := prepared.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item

        thread = threading.Thread(target=prepare, name="prepare-slices", daemon=True)
        thread.start()
        try:
            yield taken()
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch's parallel loops of this thread in this thread.

    A second team of OpenMP threads beside the model's would spin on the same cores: measured with a small model on two
    cores, the model then takes 1.6 times as long.
    """
    torch.get_num_threads()  # on its first use in a thread PyTorch sets the number itself
    with threadpool_limits(1, user_api="openmp"):
        yield


class TimedFrames:
    """Frames, and how long whoever asked for them has waited, in seconds."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, z: int) -> torch.Tensor:
        begun = time.perf_counter()
        frame = self.frames[z]
        self.seconds += time.perf_counter() - begun
        return frame
