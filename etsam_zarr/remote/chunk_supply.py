"""Which stored chunks a box of voxels needs, and getting them in time."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from etsam_zarr.geometry import Box, Shape3, Span, ceil_div
from etsam_zarr.remote.chunk_cache import ChunkStore
from etsam_zarr.remote.chunk_shelf import Shelf

# Chunks that are asked for their size at most: more would take longer than the figure is worth.
_SIZES_ASKED = 64


class ChunkLayout:
    """How the stored objects of an array (chunks, or shards where there are any) lie in the volume."""

    def __init__(self, array: zarr.Array[Any], spatial: tuple[int, int, int]) -> None:
        self._array = array
        self._spatial = spatial
        self._stored = array.shards or array.chunks
        self.sharded = array.shards is not None
        self.stored_bytes = math.prod(self._stored) * array.dtype.itemsize
        """Bytes of one stored object if it were not compressed."""
        self.shape: Shape3 = self._pick(array.shape)
        self.stored: Shape3 = self._pick(self._stored)

    def _pick(self, sizes: tuple[int, ...]) -> Shape3:
        z, y, x = (sizes[dimension] for dimension in self._spatial)
        return z, y, x

    def positions(self, box: Box) -> list[tuple[int, ...]]:
        """Return the grid positions of the stored objects that touch a box, in order of z, y, x."""
        ranges = [
            range(span.start // size, ceil_div(span.stop, size) if span.size else span.start // size)
            for span, size in zip(box, self.stored, strict=True)
        ]
        return [self._position(found) for found in itertools.product(*ranges)]

    def _position(self, zyx: tuple[int, ...]) -> tuple[int, ...]:
        position = [0] * self._array.ndim
        for dimension, index in zip(self._spatial, zyx, strict=True):
            position[dimension] = index
        return tuple(position)

    def key(self, position: tuple[int, ...]) -> str:
        """Return the key of a stored object within its store."""
        path = self._array.store_path.path
        key: str = self._array.metadata.encode_chunk_key(position)
        return f"{path}/{key}" if path else key

    def keys(self, box: Box) -> list[str]:
        """Return the keys of the stored objects that touch a box."""
        return [self.key(position) for position in self.positions(box)]

    def region(self, position: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the part of the array that a stored object holds."""
        return tuple(
            slice(index * size, min(end, (index + 1) * size))
            for index, size, end in zip(position, self._stored, self._array.shape, strict=True)
        )

    def sampled_keys(self, count: int, box: Box | None) -> list[str]:
        """Return the keys of ``count`` objects (or all) spread evenly over the array, or those that touch a box."""
        if box is not None:
            keys = self.keys(box)
            return [keys[number] for number in _spread(len(keys), count)]
        grid = tuple(math.ceil(size / chunk) for size, chunk in zip(self._array.shape, self._stored, strict=True))
        return [
            self.key(tuple(int(i) for i in np.unravel_index(number, grid)))
            for number in _spread(math.prod(grid), count)
        ]

    def described(self) -> str:
        """Return the array's metadata as text, to tell it from others."""
        return json.dumps(self._array.metadata.to_dict(), sort_keys=True, default=str)


@dataclass(frozen=True)
class Need:
    """What reading a box will bring over the network."""

    chunks: int
    """Stored objects that touch the box."""
    most_bytes: int
    """Their size without compression: they take no more, but for a few bytes."""
    known_bytes: int | None
    """Their stored size, as the server says or as estimated from some of them; None if it does not say."""
    exact: bool
    """Whether all of them were asked for."""
    layer_most_bytes: int
    """As ``most_bytes``, for two layers of chunks: what ``--cache none`` holds."""


class ChunkSupply:
    """Has the chunks of a remote array there when they are needed: the present layer at once, the next one ahead.

    Parameters
    ----------
    store
        The array's store.
    layout
        Of the array.
    """

    def __init__(self, store: ChunkStore, layout: ChunkLayout) -> None:
        self.store = store
        self.region: Box | None = None
        """Outside of it nothing is fetched ahead; None for the whole array."""
        self._layout = layout
        self._lock = threading.Lock()
        self._last_stop: dict[tuple[Span, Span], int] = {}
        self._ready: dict[tuple[Span, Span], int] = {}
        self._layer = -1
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="fetch-ahead")
        self._under_way: Future[None] | None = None
        store.expect_chunks_of(layout.stored_bytes)

    def goes_on(self, box: Box) -> bool:
        """Say whether reading a box goes on where the last one of these columns ended; to be asked once a reading."""
        z, column = box[0], (box[1], box[2])
        with self._lock:
            in_order = self._last_stop.get(column) == z.start
            self._last_stop[column] = z.stop
        return in_order

    def prepare(self, box: Box, *, ahead: bool) -> None:
        """Fetch what a box within one layer of chunks needs and is not on the shelf.

        Sharded arrays are read by parts of their shards, as zarr asks for them.

        Parameters
        ----------
        box
            Aligned to chunks in y and x.
        ahead
            Begin with the next layer as well.
        """
        if self._layout.sharded:
            return
        z, column = box[0], (box[1], box[2])
        layer = z.start // self._layout.stored[0]
        with self._lock:
            ready = self._ready.get(column) == layer
            self._ready[column] = layer
            moved, self._layer = layer != self._layer, layer
        if not ready:
            sync(self.store.fetch(self._layout.keys(box)))
        if moved and not self.store.shelf.lasting:
            self._drop_other_layers(layer)
        if ahead:
            self._fetch_ahead(layer + 1, column)

    def _fetch_ahead(self, layer: int, column: tuple[Span, Span]) -> None:
        end = self._layout.shape[0] if self.region is None else self.region[0].stop
        depth = self._layout.stored[0]
        if layer * depth >= end or (self._under_way is not None and not self._under_way.done()):
            return
        near = (Span(layer * depth, min(end, (layer + 1) * depth)), *column)
        keys = [
            key for key in self._layout.keys(near) if key not in self.store.missing and not self.store.shelf.has(key)
        ]
        if keys:
            # What goes wrong here goes wrong again, and is said, when the layer is needed.
            self._under_way = self._ahead.submit(sync, self.store.fetch(keys))

    def _drop_other_layers(self, layer: int) -> None:
        depth = self._layout.stored[0]
        end = self._layout.shape
        near = Span(layer * depth, min(end[0], (layer + 2) * depth))
        kept = set(self._layout.keys((near, Span(0, end[1]), Span(0, end[2]))))
        with self._lock:
            self._ready = {column: there for column, there in self._ready.items() if there == layer}
        self.store.shelf.drop(lambda name: name.partition("@")[0] in kept)

    def need(self, box: Box) -> Need:
        """Say what reading a box will bring; asks the server for the sizes of at most 64 objects.

        Raises
        ------
        RemoteError
            The server cannot be reached.
        """
        keys = self._layout.keys(box)
        asked = [keys[number] for number in _spread(len(keys), _SIZES_ASKED)]
        sizes = sync(self.store.sizes(asked))
        known = None if sizes is None else round(sum(sizes) * len(keys) / max(1, len(asked)))
        layers = max(1, ceil_div(box[0].stop, self._layout.stored[0]) - box[0].start // self._layout.stored[0])
        most = len(keys) * self._layout.stored_bytes
        return Need(len(keys), most, known, len(asked) == len(keys), most * min(2, layers) // layers)

    def keep_on(self, shelf: Shelf) -> None:
        """Keep chunks on another shelf from now on."""
        self.store.shelf = shelf
        with self._lock:
            self._ready.clear()

    def identity(self, uri: str) -> str:
        """Return what tells the chunks of this array from those of others."""
        return f"{uri} {self._layout.described()}"

    def close(self) -> None:
        """Let go of connections; what is on its way is waited for."""
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self.store.close()


def _spread(total: int, count: int) -> Iterable[int]:
    """Return at most ``count`` of ``total`` numbers from 0, spread evenly, first and last among them.

    >>> list(_spread(10, 4)), list(_spread(3, 4))
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if total <= 1 or count <= 1:
        return range(min(total, 1))
    return sorted({index * (total - 1) // (count - 1) for index in range(count)})
