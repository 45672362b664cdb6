"""Connected components of a mask of any size, block by block, in memory set by the block.

1. Every block is read, labelled on its own and measured; its local ids go to a scratch Zarr, its statistics and its six
   faces to a small record (:mod:`etsam_zarr.components.scratch`).
2. The ids of neighbouring blocks that touch are merged (:mod:`etsam_zarr.components.graph`), and the statistics with
   them. From here on every component of the volume is known: size, extent, place.
3. Filters decide on the table, then one pass writes the result through a look-up table per block
   (:mod:`etsam_zarr.components.labelling`).

Components are numbered by their first voxel in raster order, so that ids depend on neither the block size nor the
kernel. Steps 1 and 3 leave a mark for every finished block: a killed labelling goes on where it was.

Memory beyond the blocks at work grows with the number of components (some 90 bytes each), not with the volume.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.components.block import Kernel, chosen_kernel, label_block, measure_pieces, pack_record
from etsam_zarr.components.blockwork import for_each
from etsam_zarr.components.graph import merge_components, reach_of
from etsam_zarr.components.grid import BlockGrid, block_near, covering
from etsam_zarr.components.labelling import Labelling, TableRows
from etsam_zarr.components.scratch import ComponentScratch, open_scratch
from etsam_zarr.components.table import ComponentTable
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.geometry import Shape3
from etsam_zarr.masks import BinaryMask

DEFAULT_BLOCK: Shape3 = (64, 256, 256)
"""Some 60 MB of working memory for each worker."""

COMFORTABLE_VOXELS = 2**23
"""A volume of at most this many voxels is one block and goes through dask-image's public ``label``."""


@dataclass(frozen=True)
class LabelSettings:
    """How to label."""

    connectivity: int = 26
    """Neighbours of a voxel: 6 (faces), 18 (and edges) or 26 (and corners)."""
    block: Shape3 | None = None
    """Voxels labelled at once along z, y, x; None chooses. It changes memory and speed, never the result."""
    workers: int | None = None
    """Threads; None takes one for each processor."""
    kernel: Kernel = "auto"
    """What labels a block. ``auto``: dask-image if it is the only one, else cc3d if installed, else scipy."""


def find_components(
    mask: BinaryMask,
    scratch: Path,
    *,
    source_id: str,
    chunks: Shape3 = (64, 64, 64),
    settings: LabelSettings | None = None,
    on_event: OnEvent = ignore,
) -> Labelling:
    """Find the connected components of a mask; nothing is written yet but the scratch folder.

    Parameters
    ----------
    mask
        The mask, shape (z, y, x).
    scratch
        A folder for intermediate results, about as large as the result; an unfinished labelling of the same mask found
        there is gone on with. :meth:`Labelling.discard` removes it.
    source_id
        Anything that tells this mask's content from another's (a digest), to recognise leftovers of another mask.
    chunks
        Write unit (shards, where there are any) of the arrays that the result will be written to.
    settings
        Connectivity and work.
    on_event
        Listener for progress.

    Raises
    ------
    InputError
        The mask is not binary or cannot be read.
    SettingsError
        A setting is out of range.
    OutputExistsError
        ``scratch`` is a folder of something else.
    DoesNotFitError
        There are more pieces than can be numbered.
    """
    settings = settings or LabelSettings()
    reach_of(settings.connectivity)
    kernel = settings.kernel
    if settings.block is not None:
        grid = BlockGrid(mask.shape, settings.block)
    elif int(np.prod(mask.shape)) <= COMFORTABLE_VOXELS:
        grid = BlockGrid(mask.shape, covering(mask.shape, chunks))
        kernel = "dask-image" if kernel == "auto" else kernel
    else:
        grid = BlockGrid(mask.shape, block_near(DEFAULT_BLOCK, multiple_of=chunks, shape=mask.shape))
    kernel = chosen_kernel(kernel)
    facts = {
        "format": 1,
        "source": source_id,
        "shape": list(mask.shape),
        "block": list(grid.block),
        "connectivity": settings.connectivity,
    }
    blocks = open_scratch(scratch, grid, facts, on_event)

    def work(number: int) -> None:
        box = grid.box(number)
        labels, count = label_block(mask.read(*box), connectivity=settings.connectivity, kernel=kernel)
        pieces = measure_pieces(labels, count, box=box, shape=grid.shape)
        if count:
            blocks.write_local(number, labels, count)
        # The record comes last: it says that the block's labels are there.
        write_atomically(blocks.record(number), pack_record(pieces, labels))

    left = [number for number in range(len(grid)) if not blocks.record(number).exists()]
    with disk_errors("labelling", scratch):
        for_each(
            work,
            left,
            name="label",
            done=len(grid) - len(left),
            workers=settings.workers,
            on_event=on_event,
        )
    return _merge(blocks, settings)


def _merge(scratch: ComponentScratch, settings: LabelSettings) -> Labelling:
    """Step 2: merge provisional components and their statistics, and order them."""
    grid = scratch.grid
    counts = np.array([scratch.pieces(number).voxels.size for number in range(len(grid))], np.int64)
    # Each face is wanted by up to nine neighbours, most of them soon after one another.
    read_face = functools.lru_cache(maxsize=64)(scratch.face)
    count, component = merge_components(grid, counts, read_face, connectivity=settings.connectivity)
    offsets = np.concatenate([[0], np.cumsum(counts)])

    voxels = np.zeros(count, np.int64)
    first = np.full(count, np.iinfo(np.int64).max)
    lower = np.full((count, 3), np.iinfo(np.int64).max)
    upper = np.zeros((count, 3), np.int64)
    sums = np.zeros((count, 3), np.int64)
    for number in np.flatnonzero(counts).tolist():
        rows = component[offsets[number] : offsets[number + 1]]
        pieces = scratch.pieces(number)
        np.add.at(voxels, rows, pieces.voxels)
        np.minimum.at(first, rows, pieces.first)
        np.minimum.at(lower, rows, pieces.lower)
        np.maximum.at(upper, rows, pieces.upper)
        np.add.at(sums, rows, pieces.sums)

    order = np.argsort(first)
    rank = np.empty(count, np.int32)
    rank[order] = np.arange(1, count + 1, dtype=np.int32)
    table = ComponentTable(grid.shape, voxels[order], first[order], lower[order], upper[order], sums[order])
    return Labelling(scratch, table, TableRows(offsets, rank[component]), workers=settings.workers)
