"""Which decoded slices of deep chunks stay in memory: bands of a chunk layer, as thick as the memory allows."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from etsam_zarr.geometry import Box, Shape3, Span, aligned, cut
from etsam_zarr.volume import Array

# Decoded chunks that zarr may hold at once while it fills an array.
_DECODE_BYTES = 256 << 20


def within_layers(z: Span, chunk: int, depth: int) -> Iterator[Span]:
    """Cut a run of slices at the borders of chunk layers, and of the bands of ``depth`` slices within them."""
    for part in cut(z, chunk):
        if depth < 1 or depth >= chunk:
            yield part
            continue
        start = part.start // chunk * chunk
        for band in cut(Span(part.start - start, part.stop - start), depth):
            yield Span(band.start + start, band.stop + start)


def band_of(part: Span, layer: Span, depth: int) -> Span | None:
    """Return the band of ``depth`` slices of a layer that holds ``part``; None if none can be kept."""
    if depth < 1:
        return None
    inside = aligned(Span(part.start - layer.start, part.stop - layer.start), depth, layer.size)
    return Span(inside.start + layer.start, inside.stop + layer.start)


def chunk_groups(box: Box, chunks: Shape3, itemsize: int) -> Iterator[Box]:
    """Cut a box at chunk borders into parts of as many chunks as may be decoded at once."""
    spans = [cut(span, size) for span, size in zip(box, chunks, strict=True)]
    most = max(1, _DECODE_BYTES // (math.prod(chunks) * itemsize))
    if math.prod(len(runs) for runs in spans) <= most:
        yield box
        return
    for z, y in itertools.product(spans[0], spans[1]):
        for xs in (spans[2][i : i + most] for i in range(0, len(spans[2]), most)):
            yield z, y, Span(xs[0].start, xs[-1].stop)


class BandCache:
    """Decoded slices, for each column of chunks the last ones, the least recently used dropped first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Span, Span], tuple[Span, Array]] = OrderedDict()

    def get(self, box: Box, decode: Callable[[Box], Array]) -> Array:
        """Return the slices of a box, which ``decode`` makes if they are not here."""
        z, *column = box
        key = (column[0], column[1])
        # Decoding under the lock: threads that ask for the same layer wait for it instead of decoding it
        # twice.
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept[0] == z:
                self._kept.move_to_end(key)
                return kept[1]
            self._kept.pop(key, None)
            kept = None  # or the old slices would stay until the new ones are there
            layer = decode(box)
            self._kept[key] = (z, layer)
            while sum(array.nbytes for _, array in self._kept.values()) > self.most_bytes:
                self._kept.popitem(last=False)
            return layer

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
