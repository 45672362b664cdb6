"""Fills the coarser levels of an image from its finest one, on disk, block by block."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span, ceil_div, cut
from etsam_zarr.volume import Array

Reduction = Literal["mean", "max", "mode"]

# Finer voxels held at once, and a few times as much in passing.
_BLOCK_BYTES = 64 << 20


def build_pyramid(
    arrays: Sequence[zarr.Array[Any]],
    *,
    reduce: Reduction,
    on_event: OnEvent = ignore,
    done: int = 0,
    after_layer: Callable[[int], None] | None = None,
) -> None:
    """Fill each level from the one below it.

    1. Each level is walked in layers as deep as its write unit (shard or chunk), finest level first.
    2. A layer is cut into blocks of whole write units, about 64 MiB of finer voxels each, so that memory
    does not
       grow with the volume and no stored chunk is written twice.
    3. A block's finer voxels, twice as many along each axis, are read, reduced and written.

    Parameters
    ----------
    arrays
        The levels, finest first, shapes as :func:`~etsam_zarr.geometry.pyramid_shapes` gives them; the first
        is filled.
    reduce
        How eight voxels become one, see :func:`halve`. Intensities: ``"mean"``. A mask: ``"max"``, since a
        membrane is one to three voxels thin and a mean or majority would make it vanish one level up. Labels
        of objects: ``"mode"``.
    on_event
        Told about each layer.
    done
        Layers to skip, all levels counted on: those a pass before this one has finished.
    after_layer
        Called with the number of finished layers after each.

    Raises
    ------
    OutputError
        A block cannot be written.
    """
    layers = [
        (finer, coarser, z)
        for finer, coarser in pairwise(arrays)
        for z in cut(Span(0, coarser.shape[0]), write_unit(coarser)[0])
    ]
    if not layers:
        return
    begun = time.monotonic()
    on_event(Started("pyramid", total=len(layers), done=done, unit="layers"))
    for number, (finer, coarser, z) in enumerate(layers[done:], start=done + 1):
        for y, x in _columns(coarser, z, finer.dtype.itemsize):
            source = tuple(
                slice(2 * span.start, min(2 * span.stop, size))
                for span, size in zip((z, y, x), finer.shape, strict=True)
            )
            block = halve(np.asarray(finer[source]), reduce=reduce)
            with disk_errors("writing a coarser level", str(coarser.store_path)):
                coarser[z.as_slice(), y.as_slice(), x.as_slice()] = block
        if after_layer is not None:
            after_layer(number)
        on_event(Advanced("pyramid"))
    on_event(Finished("pyramid", time.monotonic() - begun))


def pyramid_layers(arrays: Sequence[zarr.Array[Any]]) -> int:
    """Return how many layers :func:`build_pyramid` goes through."""
    return sum(ceil_div(array.shape[0], write_unit(array)[0]) for array in arrays[1:])


def write_unit(array: zarr.Array[Any]) -> Shape3:
    """Return what must be written as a whole: the shard, or the chunk where there are none."""
    z, y, x = array.shards or array.chunks
    return z, y, x


def _columns(coarser: zarr.Array[Any], z: Span, itemsize: int) -> Iterator[tuple[Span, Span]]:
    """Cut a layer into blocks of whole write units whose finer voxels fit the memory meant for them."""
    _, y_unit, x_unit = write_unit(coarser)
    _, y_size, x_size = coarser.shape
    units = max(1, _BLOCK_BYTES // (8 * z.size * y_unit * x_unit * itemsize))
    # Whole rows of chunks first: finer chunks are then decoded once.
    across = min(units, ceil_div(x_size, x_unit))
    down = max(1, units // across)
    for y in cut(Span(0, y_size), down * y_unit):
        for x in cut(Span(0, x_size), across * x_unit):
            yield y, x


def halve(block: Array, *, reduce: Reduction) -> Array:
    """Make one voxel of every 2 x 2 x 2; where an axis is odd, its last voxels are made of those that exist.

    Parameters
    ----------
    block
        Voxels, (z, y, x).
    reduce
        ``"mean"``: integers are rounded, halves up. ``"max"``: the largest. ``"mode"``: the most frequent
        value other than 0, the largest of equally frequent ones; 0 only where all are 0.

    Returns
    -------
    array of shape (ceil(z / 2), ceil(y / 2), ceil(x / 2)) and the type of ``block``

    >>> halve(np.array([[[0, 1, 7]]], np.uint8), reduce="mean").tolist()
    [[[1, 7]]]
    """
    # Repeating the last voxel of an odd axis leaves mean, maximum and mode of those that exist as they are.
    missing = [(0, size % 2) for size in block.shape]
    even = np.pad(block, missing, mode="edge") if np.any(missing) else block
    if reduce == "max":
        return _combined(even, np.maximum)
    if reduce == "mean":
        return _mean(even)
    z, y, x = (size // 2 for size in even.shape)
    eight = even.reshape(z, 2, y, 2, x, 2)
    return _most_frequent(eight.transpose(1, 3, 5, 0, 2, 4).reshape(8, z, y, x))


def _combined(even: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """Combine the two voxels of each pair axis by axis: several times as fast as all eight at once."""
    for axis in range(3):
        first, second = (even[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
        even = combine(first, second)
    return even


def _mean(even: Array) -> Array:
    dtype = even.dtype
    if dtype.kind in "iub":
        exact = np.int32 if dtype.itemsize <= 2 else np.float64
        total = _combined(even, functools.partial(np.add, dtype=exact))
        return ((total + 4) >> 3 if exact is np.int32 else np.floor(total / 8 + 0.5)).astype(dtype)
    adding = np.float64 if dtype.itemsize > 4 else np.float32
    total = _combined(even, functools.partial(np.add, dtype=adding))
    return (total / 8).astype(dtype)


def _most_frequent(candidates: Array) -> Array:
    """Return the most frequent value other than 0 along the first axis, of length 8."""
    best = np.zeros(candidates.shape[1:], candidates.dtype)
    best_count = np.zeros(candidates.shape[1:], np.uint8)
    for candidate in candidates:
        count = (candidates == candidate).sum(axis=0, dtype=np.uint8)
        better = (candidate != 0) & ((count > best_count) | ((count == best_count) & (candidate > best)))
        best = np.where(better, candidate, best)
        best_count = np.where(better, count, best_count)
    return best
