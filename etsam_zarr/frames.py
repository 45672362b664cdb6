"""Slices as the image encoder wants them, prepared ahead of the model by a thread of their own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from etsam_zarr.geometry import Span, cut

Slab = npt.NDArray[np.float32]
ReadSlab = Callable[[Span], Slab]
"""Returns the model's input for a run of slices, float32, shape (n, y, x)."""

# ImageNet's statistics, which SAM 2 was trained with.
_MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
_DEVIATION = torch.tensor((0.229, 0.224, 0.225))[:, None, None]

FRAMES_AHEAD = 4
"""Prepared slices that wait for the model at most."""


def to_frame(plane: npt.NDArray[np.float32], image_size: int) -> torch.Tensor:
    """Bring a slice of shape (y, x) to the model's input, float32 of shape (3, image_size, image_size).

    As ETSAM does: Pillow's default resize of a float image, three equal channels, ImageNet's mean and deviation.
    """
    resized = np.array(Image.fromarray(plane).resize((image_size, image_size)))
    frame = torch.from_numpy(resized)[None].repeat(3, 1, 1)
    frame -= _MEAN
    frame /= _DEVIATION
    return frame


class StreamedFrames:
    """A sequence of frames that are read slab by slab when needed, and never kept.

    Parameters
    ----------
    read_slab
        Delivers the slices; called by the preparing thread within :meth:`ahead`, by the caller's otherwise.
    depth
        Slices of the whole volume.
    image_size
        Edge of a frame in pixels.
    slab
        Slices to read at once.
    """

    def __init__(self, read_slab: ReadSlab, *, depth: int, image_size: int, slab: int) -> None:
        self._read_slab = read_slab
        self._depth = depth
        self._image_size = image_size
        self._slab = slab
        self._prepared: queue.Queue[tuple[int, torch.Tensor] | BaseException] | None = None

    def __len__(self) -> int:
        return self._depth

    def __getitem__(self, z: int) -> torch.Tensor:
        """Return the frame of slice ``z``: the next prepared one, or one made now."""
        if self._prepared is None:
            return to_frame(self._read_slab(Span(z, z + 1))[0], self._image_size)
        item = self._prepared.get()
        if isinstance(item, BaseException):
            raise item
        prepared, frame = item
        if prepared != z:
            raise RuntimeError(f"slice {z} was asked for where {prepared} comes next")
        return frame

    @contextlib.contextmanager
    def ahead(self, order: Span, *, skipping: frozenset[int] = frozenset()) -> Iterator[None]:
        """Within this context the slices of ``order`` but those of ``skipping`` are taken in order, each once."""
        prepared: queue.Queue[tuple[int, torch.Tensor] | BaseException] = queue.Queue(maxsize=FRAMES_AHEAD)
        stop = threading.Event()

        def put(item: tuple[int, torch.Tensor] | BaseException) -> bool:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    prepared.put(item, timeout=0.1)
                    return True
            return False

        def prepare() -> None:
            try:
                for span in cut(order, self._slab):
                    slab = self._read_slab(span)
                    for z in range(span.start, span.stop):
                        if z in skipping:
                            continue
                        if not put((z, to_frame(slab[z - span.start], self._image_size))):
                            return
            except BaseException as error:  # noqa: BLE001 - whatever it is, the taker of the frame must see it
                put(error)

        thread = threading.Thread(target=prepare, name="prepare-slices", daemon=True)
        thread.start()
        self._prepared = prepared
        try:
            yield
        finally:
            self._prepared = None
            stop.set()
            thread.join()
