"""Stored native logits seen at full resolution, slice by slice, as ETSAM would have returned them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.runstore import LOGIT_CHUNK_DEPTH, StageArrays, read_stored

Logits = npt.NDArray[np.float32]


class ScoreView:
    """Full-resolution logits of one stage, computed from the native ones when read; never stored.

    Parameters
    ----------
    arrays
        The stage's stored arrays.
    shape
        Of the volume, z, y, x.
    backwards
        For prompted slices that shall show their backward prediction: slice to index in ``arrays.backwards``.
        Empty shows them as ETSAM does.
    """

    def __init__(self, arrays: StageArrays, shape: Shape3, *, backwards: Mapping[int, int] | None = None) -> None:
        self._arrays = arrays
        self._backwards = backwards or {}
        self.shape = shape

    def native(self) -> ScoreView:
        """Return the same scores as the model made them, without upsampling."""
        _, depth, height, width = self._arrays.logits.shape
        return ScoreView(self._arrays, (depth, height, width), backwards=self._backwards)

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Logits:
        """Return logits of a box, float32 of shape (z.size, y.size, x.size)."""
        _, height, width = self.shape
        rows, columns = y or Span(0, height), x or Span(0, width)
        box = np.empty((z.size, rows.size, columns.size), dtype=np.float32)
        for index, plane in enumerate(self.planes(z)):
            box[index] = plane[rows.as_slice(), columns.as_slice()]
        return box

    def planes(self, z: Span) -> Iterator[Logits]:
        """Yield the slices of a run one by one, float32 of shape (y, x); only the native ones are held at once."""
        _, height, width = self.shape
        for plane in self._native(z):
            yield upsample(plane, height, width)

    def planes_in_turn(self) -> Iterator[Logits]:
        """Yield all slices one by one, float32 of shape (y, x), reading chunk layer after chunk layer."""
        for span in cut(Span(0, self.shape[0]), LOGIT_CHUNK_DEPTH):
            yield from self.planes(span)

    def _native(self, z: Span) -> Logits:
        native = read_stored(self._arrays.logits, 0, z.as_slice())
        for prompted, index in self._backwards.items():
            if z.start <= prompted < z.stop:
                native[prompted - z.start] = read_stored(self._arrays.backwards, 0, index)
        return native


def upsample(native: Logits, height: int, width: int) -> Logits:
    """Bring native logits of one slice to (height, width), bilinearly, by the operation that SAM 2 itself uses."""
    planes = torch.from_numpy(np.ascontiguousarray(native))[None, None]
    if native.shape == (height, width):
        return native
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    result: Logits = resized[0, 0].numpy()
    return result
