"""Cuts the short rungs that join parallel membranes by mistake, slice by slice.

The method is ETSAM's (https://github.com/jianlin-cheng/ETSAM, ``postprocess.py``, profile ``etsam-v2``):
on the skeleton of a slice, a short segment between two different junctions is a rung; it is removed at the
mask's full width.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.components.blockwork import checked_workers
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Span, cut
from etsam_zarr.masks import BinaryMask
from etsam_zarr.ome.pyramid import write_unit

Plane = npt.NDArray[np.bool_]

_AROUND = tuple(step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0))


@dataclass(frozen=True)
class BridgeSettings:
    """What is short enough to be cut, in pixels of the skeleton."""

    max_bridge_length: int = 5
    """Longest segment between two junctions that is cut; 0 cuts none."""
    max_spur_length: int = 0
    """Longest dead end at one junction that is cut; 0 cuts none."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-bridge-length", self.max_bridge_length),
            ("--max-spur-length", self.max_spur_length),
        ):
            if value < 0:
                raise SettingsError(f"{flag} is {value}; it takes 0 (cut none) or more pixels.")


def sever_plane(plane: Plane, settings: BridgeSettings) -> Plane:
    """Cut the rungs of one slice.

    1. Skeletonise. A skeleton pixel with 3 or more skeleton neighbours (of 8) is a junction, one with 1 an
       endpoint.
    2. Segments are what is left of the skeleton without junctions; its length is its number of pixels.
    3. A segment goes if it is short and touches two or more different clusters of junctions, or, if spurs
       are to go, if it
       is short, touches exactly one and ends in an endpoint.
    4. A mask pixel belongs to its nearest skeleton pixel, and goes if that lies on a segment that goes.

    Parameters
    ----------
    plane
        Mask of a whole slice, shape (y, x).
    settings
        Lengths.

    Returns
    -------
    the mask without rungs, a new array of shape (y, x)
    """
    from scipy import ndimage

    if not plane.any():
        return plane.copy()
    skeleton: Plane = _skeletonize()(plane)
    everywhere = np.ones((3, 3), np.uint8)
    around = ndimage.convolve(skeleton.astype(np.uint8), everywhere, mode="constant")
    # The sum counts the pixel itself too.
    junctions = skeleton & (around >= 4)
    segments, count = ndimage.label(skeleton & ~junctions, structure=everywhere)
    if count == 0:
        return plane.copy()
    clusters, _ = ndimage.label(junctions, structure=everywhere)

    length = np.bincount(segments.ravel(), minlength=count + 1)
    touched = _clusters_touched(segments, clusters, count)
    goes = (length <= settings.max_bridge_length) & (touched >= 2)
    if settings.max_spur_length > 0:
        # An endpoint is no junction, so the segment that touches it is the one it lies on.
        ends = np.zeros(count + 1, np.bool_)
        ends[segments[skeleton & (around == 2)]] = True
        goes |= (length <= settings.max_spur_length) & (touched == 1) & ends
    goes[0] = False
    if not goes.any():
        return plane.copy()
    nearest = ndimage.distance_transform_edt(~skeleton, return_distances=False, return_indices=True)
    inside = np.nonzero(plane)
    owner = segments[nearest[0][inside], nearest[1][inside]]
    severed = plane.copy()
    severed[inside] = ~goes[owner]
    return severed


def sever_bridges(
    mask: BinaryMask,
    destination: zarr.Array[Any],
    *,
    settings: BridgeSettings | None = None,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> int:
    """Cut the rungs of every slice and write the result.

    1. The volume is walked in layers as deep as the destination's chunks (shards), since a chunk must be
       written at once.
    2. A layer is read as a whole, its slices are cut in parallel, and it is written.

    Parameters
    ----------
    mask
        The mask, shape (z, y, x); it may be ``destination`` itself, read layer by layer before it is written.
    destination
        Integer array of the mask's shape; receives 0 and 1.
    settings
        Lengths.
    workers
        Threads; None takes one for each processor.
    on_event
        Listener for progress.

    Returns
    -------
    number of voxels removed

    Notes
    -----
    Memory: two bytes a voxel of one layer, and some 30 bytes a pixel for every worker's slice.
    """
    import dask.base
    from dask.delayed import delayed

    settings = settings or BridgeSettings()
    # scikit-image's lazy loader is not made for a first import from several threads at once.
    _skeletonize()
    count = checked_workers(workers)
    compute: Any = dask.base.compute
    begun = time.monotonic()
    depth = mask.shape[0]
    removed = 0
    on_event(Started("sever bridges", total=depth))

    def work(layer: Plane, index: int) -> int:
        before = int(np.count_nonzero(layer[index]))
        layer[index] = sever_plane(layer[index], settings)
        return before - int(np.count_nonzero(layer[index]))

    for z in cut(Span(0, depth), write_unit(destination)[0]):
        layer = mask.read(z)
        # A closure, not an argument: dask would look at the whole array to name the task.
        call: Any = delayed(lambda index, layer=layer: work(layer, index), pure=False, traverse=False)
        lazy = [call(index) for index in range(z.size)]
        scheduler = "synchronous" if count == 1 else "threads"
        removed += sum(compute(*lazy, scheduler=scheduler, num_workers=count, optimize_graph=False))
        with disk_errors("writing the mask", str(destination.store_path)):
            destination[z.as_slice()] = layer.astype(destination.dtype)
        on_event(Advanced("sever bridges", z.size))
    on_event(Finished("sever bridges", seconds=time.monotonic() - begun))
    return removed


@functools.cache
def _skeletonize() -> Callable[[Plane], Plane]:
    """Import scikit-image's function, which takes a second, where it is first needed."""
    from skimage.morphology import skeletonize

    function: Callable[[Plane], Plane] = skeletonize
    return function


def _clusters_touched(
    segments: npt.NDArray[np.int32], clusters: npt.NDArray[np.int32], count: int
) -> npt.NDArray[np.int64]:
    """Return for every segment (index 0 unused) how many clusters of junctions its pixels are 8-adjacent to."""
    rows, columns = np.nonzero(segments)
    ids = segments[rows, columns].astype(np.int64)
    # A margin instead of a test for the edge of the slice.
    framed = np.pad(clusters, 1)
    pairs = [ids << 32 | framed[rows + 1 + y, columns + 1 + x] for y, x in _AROUND]
    distinct = np.unique(np.concatenate(pairs))
    distinct = distinct[distinct & 0xFFFFFFFF != 0]
    return np.bincount(distinct >> 32, minlength=count + 1)
