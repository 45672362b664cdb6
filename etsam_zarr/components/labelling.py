"""Writes components that have been found into Zarr arrays: each block once, through a look-up table of its local ids.

Every finished block leaves a mark in the scratch folder: a killed writing goes on where it was.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.components.blockwork import for_each
from etsam_zarr.components.grid import BlockGrid
from etsam_zarr.components.scratch import ComponentScratch
from etsam_zarr.components.table import ComponentTable, Flags
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.geometry import Shape3
from etsam_zarr.ome.pyramid import write_unit

_WRITING_KEY = "etsam_zarr_labelling_in_progress"


class Labelling:
    """Components that have been found, and the way to write them.

    Made by :func:`etsam_zarr.components.find.find_components`.

    Parameters
    ----------
    scratch
        Where the blocks' local ids are.
    table
        All components, ordered by their first voxels.
    rows
        Which row of the table a local id belongs to.
    workers
        Threads that write; None takes one for each processor.
    """

    def __init__(
        self, scratch: ComponentScratch, table: ComponentTable, rows: TableRows, *, workers: int | None
    ) -> None:
        self.table = table
        """All components, ordered by their first voxels."""
        self._scratch = scratch
        self._rows = rows
        self._workers = workers

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
                workers=self._workers,
                on_event=on_event,
            )
            del destination.attrs[_WRITING_KEY]

    def discard(self) -> None:
        """Remove the scratch folder; nothing can be written afterwards."""
        self._scratch.discard()


@dataclass(frozen=True)
class TableRows:
    """For every block and local id, the row (from 1) of the table of components; 0 is outside."""

    offsets: npt.NDArray[np.int64]
    """Where each block's rows begin, and where the last one's end, shape (blocks + 1,)."""
    rows: npt.NDArray[np.int32]
    """Of all blocks one after the other, without index 0, shape (pieces,)."""

    def of_block(self, number: int) -> npt.NDArray[np.int32]:
        """Return the rows of a block's local ids, index 0 (outside) included."""
        inside = self.rows[self.offsets[number] : self.offsets[number + 1]]
        return np.concatenate([np.zeros(1, np.int32), inside])


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
