"""Which provisional components of neighbouring blocks are one: contacts across faces, edges and corners.

Blocks are labelled one by one, each with ids of its own. What decides whether two of these ids belong
together is only the outermost voxels of the blocks, so each block leaves its six faces; the contacts
between them are the edges of a graph whose connected parts are the components of the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from etsam_zarr.components.grid import BlockGrid, forward_offsets
from etsam_zarr.errors import DoesNotFitError, SettingsError
from etsam_zarr.geometry import Shape3

LocalIds = npt.NDArray[np.uint32]
Ids = npt.NDArray[np.int64]
FaceReader = Callable[[int, int, int], LocalIds | None]
"""Returns a face (block, axis, side 0 or 1) as a 2-D array of local ids; None where it is empty."""

MOST_PROVISIONAL = 2**31 - 2
"""scipy's graph routines count nodes in int32."""


def reach_of(connectivity: int) -> int:
    """Return along how many axes at once two neighbours may differ: 6 gives 1, 18 gives 2, 26 gives 3.

    Raises
    ------
    SettingsError
        ``connectivity`` is none of the three.
    """
    try:
        return {6: 1, 18: 2, 26: 3}[connectivity]
    except KeyError:
        raise SettingsError(f"The connectivity is {connectivity}; it is 6, 18 or 26 (--connectivity).") from None


def faces_of(labels: LocalIds) -> Iterator[tuple[int, int, LocalIds]]:
    """Yield (axis, side, face) for the faces of a block of labels (z, y, x) that are not empty."""
    for axis, side in itertools.product(range(3), range(2)):
        face: LocalIds = np.take(labels, -1 if side else 0, axis=axis)
        if face.any():
            yield axis, side, face


def merge_components(
    grid: BlockGrid, counts: Ids, read_face: FaceReader, *, connectivity: int
) -> tuple[int, npt.NDArray[np.int32]]:
    """Find which provisional components are one.

    1. Offsets: block b's local id i (from 1) becomes node ``offset[b] + i - 1``.
    2. For every pair of touching blocks, the pairs of ids in contact.
    3. Connected parts of that graph.

    Parameters
    ----------
    grid
        The blocks.
    counts
        Number of provisional components in each block, shape (blocks,).
    read_face
        Where the faces are.
    connectivity
        6, 18 or 26.

    Returns
    -------
    number of components, and for every node the component it belongs to (from 0, in no particular order)

    Raises
    ------
    DoesNotFitError
        There are more provisional components than the graph can number.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = int(counts.sum())
    if nodes > MOST_PROVISIONAL:
        raise DoesNotFitError(
            f"The mask falls into {nodes} pieces, more than the {MOST_PROVISIONAL} that can be numbered. It is "
            "probably noise: raise the threshold, or label a region of it."
        )
    offsets = np.cumsum(counts) - counts
    found = [np.empty((2, 0), np.int64)]
    reach = reach_of(connectivity)
    for number in np.flatnonzero(counts).tolist():
        for offset in forward_offsets(reach):
            other = grid.neighbour(number, offset)
            if other is None or counts[other] == 0:
                continue
            pairs = _contacts(number, other, offset, read_face, reach=reach)
            if pairs.shape[1]:
                found.append(pairs + np.array([[offsets[number] - 1], [offsets[other] - 1]]))
    first, second = np.concatenate(found, axis=1)
    weights = np.ones(first.size, np.bool_)
    graph = coo_array((weights, (first, second)), shape=(nodes, nodes))
    count, component = connected_components(graph, directed=False)
    return int(count), component.astype(np.int32, copy=False)


def _contacts(number: int, other: int, offset: Shape3, read_face: FaceReader, *, reach: int) -> Ids:
    """Return the distinct pairs of local ids, shape (2, pairs), that touch across two blocks' border."""
    axis = next(i for i, step in enumerate(offset) if step)
    here = read_face(number, axis, int(offset[axis] > 0))
    there = read_face(other, axis, int(offset[axis] < 0))
    if here is None or there is None:
        return np.empty((2, 0), np.int64)
    # Along the face's own axes: a line or a voxel of it where the blocks meet at an edge or a corner only.
    sliding: list[int] = []
    for place, step in enumerate(offset[:axis] + offset[axis + 1 :]):
        if step:
            here = here.take([-1 if step > 0 else 0], axis=place)
            there = there.take([0 if step > 0 else -1], axis=place)
        else:
            sliding.append(place)
    apart = sum(abs(step) for step in offset)
    packed = []
    for shift in itertools.product((-1, 0, 1), repeat=len(sliding)):
        if apart + sum(abs(step) for step in shift) > reach:
            continue
        a, b = here, there
        for place, step in zip(sliding, shift, strict=True):
            a = _shifted(a, -step, place)
            b = _shifted(b, step, place)
        touching = (a != 0) & (b != 0)
        # One 64-bit number for each pair: sorting these is far faster than sorting rows of two.
        packed.append(np.unique(a[touching].astype(np.int64) << 32 | b[touching]))
    pairs = np.unique(np.concatenate(packed))
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF])


def _shifted(face: LocalIds, step: int, axis: int) -> LocalIds:
    """Drop the first row along ``axis`` for a step of 1, the last for -1."""
    rows = slice(1, None) if step > 0 else slice(None, -1) if step < 0 else slice(None)
    return face[(slice(None),) * axis + (rows,)]
