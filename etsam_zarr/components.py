"""Connected components of a mask of any size, block by block, in memory set by the block.

1. Every block is read, labelled on its own and measured; its local ids go to a scratch Zarr, its statistics and its six
   faces to a small record (:mod:`etsam_zarr.component_scratch`).
2. The ids of neighbouring blocks that touch are merged (:mod:`etsam_zarr.component_graph`), and the statistics with
   them. From here on every component of the volume is known: size, extent, place.
3. Filters decide on the table, then one pass writes the result through a look-up table per block.

Components are numbered by their first voxel in raster order, so that ids depend on neither the block size nor the
kernel. Steps 1 and 3 leave a mark for every finished block: a killed labelling goes on where it was.

Memory beyond the blocks at work grows with the number of components (some 90 bytes each), not with the volume.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.block_grid import BlockGrid, block_near, covering
from etsam_zarr.block_label import Kernel, chosen_kernel, label_block, measure_pieces, pack_record
from etsam_zarr.blockwork import for_each
from etsam_zarr.component_graph import merge_components, reach_of
from etsam_zarr.component_scratch import ComponentScratch, open_scratch
from etsam_zarr.component_table import ComponentTable, Flags
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.geometry import Shape3
from etsam_zarr.masks import BinaryMask
from etsam_zarr.pyramid import write_unit

DEFAULT_BLOCK: Shape3 = (64, 256, 256)
"""Some 60 MB of working memory for each worker."""

COMFORTABLE_VOXELS = 2**23
"""A volume of at most this many voxels is one block and goes through dask-image's public ``label``."""

_WRITING_KEY = "etsam_zarr_labelling_in_progress"


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
    labelling = open_scratch(scratch, grid, facts, on_event)

    def work(number: int) -> None:
        box = grid.box(number)
        labels, count = label_block(mask.read(*box), connectivity=settings.connectivity, kernel=kernel)
        pieces = measure_pieces(labels, count, box=box, shape=grid.shape)
        if count:
            labelling.write_local(number, labels, count)
        # The record comes last: it says that the block's labels are there.
        write_atomically(labelling.record(number), pack_record(pieces, labels))

    left = [number for number in range(len(grid)) if not labelling.record(number).exists()]
    with disk_errors("labelling", scratch):
        for_each(
            work,
            left,
            name="label",
            done=len(grid) - len(left),
            workers=settings.workers,
            on_event=on_event,
        )
    return _merge(labelling, settings)


class Labelling:
    """Components that have been found, and the way to write them. Made by :func:`find_components`."""

    def __init__(self, scratch: ComponentScratch, settings: LabelSettings, table: ComponentTable, rows: _Rows) -> None:
        self.table = table
        """All components, ordered by their first voxels."""
        self._scratch = scratch
        self._settings = settings
        self._rows = rows

    @property
    def block(self) -> Shape3:
        """The block size in use; what is written to must have a write unit that divides it."""
        return self._scratch.grid.block

    def write(
        self, destination: zarr.Array[Any], keep: Flags, *, as_mask: bool = False, on_event: OnEvent = ignore
    ) -> None:
        """Write the components that are kept, numbered from 1, into a Zarr array.

        Parameters
        ----------
        destination
            Integer array of the mask's shape, whose chunks (shards) divide the block, since each is written once.
        keep
            Which rows of :attr:`table` to write, shape (components,).
        as_mask
            Write 1 instead of ids.
        on_event
            Listener for progress.

        Raises
        ------
        SettingsError
            The array has another shape, a write unit that does not divide the block, or a type too small for the ids.
        OutputError
            The destination cannot be written.
        """
        grid = self._scratch.grid
        _check_destination(destination, grid, 1 if as_mask else int(keep.sum()))
        # Zarr drops chunks of fill value, so writing zeros where nothing is kept costs nothing and clears old content.
        ids = np.zeros(len(self.table) + 1, destination.dtype)
        ids[1:][keep] = 1 if as_mask else np.arange(1, int(keep.sum()) + 1)

        marks = self._scratch.marks(keep, as_mask=as_mask)
        mark = marks.name
        if destination.attrs.get(_WRITING_KEY) != mark:
            # Marks of a destination that has been replaced since say nothing of this one.
            shutil.rmtree(marks, ignore_errors=True)
            destination.attrs[_WRITING_KEY] = mark
        marks.mkdir(parents=True, exist_ok=True)

        def work(number: int) -> None:
            lookup = ids[self._rows.of_block(number)]
            kept = lookup.any()
            values = lookup[self._scratch.read_local(number, lookup.size - 1)] if kept else 0
            destination[self._scratch.slices(number)] = values
            (marks / str(number)).touch()

        left = [number for number in range(len(grid)) if not (marks / str(number)).exists()]
        with disk_errors("writing components", str(destination.store_path)):
            for_each(
                work,
                left,
                name="write mask" if as_mask else "write components",
                done=len(grid) - len(left),
                workers=self._settings.workers,
                on_event=on_event,
            )
            del destination.attrs[_WRITING_KEY]

    def discard(self) -> None:
        """Remove the scratch folder; nothing can be written afterwards."""
        self._scratch.discard()


@dataclass(frozen=True)
class _Rows:
    """For every block and local id, the row (from 1) of the table of components; 0 is outside."""

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]

    def of_block(self, number: int) -> npt.NDArray[np.int32]:
        """Return the rows of a block's local ids, index 0 (outside) included."""
        inside = self.rows[self.offsets[number] : self.offsets[number + 1]]
        return np.concatenate([np.zeros(1, np.int32), inside])


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
    return Labelling(scratch, settings, table, _Rows(offsets, rank[component]))


def _check_destination(destination: zarr.Array[Any], grid: BlockGrid, largest: int) -> None:
    if tuple(destination.shape) != grid.shape:
        raise SettingsError(f"The destination has shape {tuple(destination.shape)}, the mask {grid.shape}.")
    unit = write_unit(destination)
    several = [n > 1 for n in grid.counts]
    if any(cut and size % step for cut, size, step in zip(several, grid.block, unit, strict=True)):
        raise SettingsError(
            f"Blocks of {grid.block} voxels would write parts of chunks of {tuple(unit)}, and two blocks that share a "
            "chunk lose data. Take a block size that is a multiple of the chunks."
        )
    limit = int(np.iinfo(destination.dtype).max)
    if largest > limit:
        raise SettingsError(
            f"There are {largest} components, {destination.dtype} numbers at most {limit}. Drop small ones "
            "(--min-voxels, --min-slices), or choose a larger type."
        )
