"""The scratch folder of a labelling: local ids of every block, records of its pieces, marks of what has been written.

A killed labelling is gone on with from it, so it says which mask and settings it is of. It holds ``labelling.json``,
``local16.zarr`` and ``local32.zarr``, ``blocks/<block>.npz`` and ``written/<what>/<block>``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

from etsam_zarr.atomic import write_atomically
from etsam_zarr.components.block import LocalIds, Pieces, unpack_face, unpack_pieces
from etsam_zarr.components.grid import BlockGrid
from etsam_zarr.components.table import Flags
from etsam_zarr.errors import OutputExistsError
from etsam_zarr.events import Notice, OnEvent

_SETTINGS_FILE = "labelling.json"


class ComponentScratch:
    """Intermediate results of a labelling, block by block. Made by :func:`open_scratch`.

    Parameters
    ----------
    folder
        Where they lie.
    grid
        The blocks.
    token
        What tells this labelling from any other; the same one when it is gone on with.
    """

    def __init__(self, folder: Path, grid: BlockGrid, token: str) -> None:
        self.folder = folder
        self.grid = grid
        self._token = token
        self._records = [str(self.record(number)) for number in range(len(grid))]
        self._narrow, self._wide = (self._array(f"local{bits}.zarr", f"uint{bits}") for bits in (16, 32))

    def record(self, number: int) -> Path:
        """Return the file of a block's pieces and faces; it is there when the block is done."""
        return self.folder / "blocks" / f"{number}.npz"

    def marks(self, keep: Flags, *, as_mask: bool) -> Path:
        """Return the folder of marks for the blocks of one result that have been written.

        Parameters
        ----------
        keep
            Which components the result holds, bool, shape (components,).
        as_mask
            Whether it is a mask, not ids.
        """
        what = hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()[:16]
        return self.folder / "written" / f"{self._token}-{what}-{'mask' if as_mask else 'ids'}"

    def write_local(self, number: int, labels: LocalIds, count: int) -> None:
        """Store a block's local ids, in half the space where there are few: nearly always."""
        self._local(count)[self.slices(number)] = labels

    def read_local(self, number: int, count: int) -> npt.NDArray[np.uint16] | LocalIds:
        """Return a block's local ids, shape (z, y, x), of which there are ``count``."""
        return np.asarray(self._local(count)[self.slices(number)])

    def slices(self, number: int) -> tuple[slice, ...]:
        """Return where a block lies in the volume, along z, y, x."""
        return tuple(span.as_slice() for span in self.grid.box(number))

    def pieces(self, number: int) -> Pieces:
        """Return the statistics of a block's pieces."""
        return unpack_pieces(self._records[number])

    def face(self, number: int, axis: int, side: int) -> LocalIds | None:
        """Return the local ids on one face of a block; None where there are none."""
        return unpack_face(self._records[number], axis, side)

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _local(self, count: int) -> zarr.Array[Any]:
        return self._narrow if count <= np.iinfo(np.uint16).max else self._wide

    def _array(self, name: str, dtype: str) -> zarr.Array[Any]:
        path = self.folder / name
        if path.exists():
            return zarr.open_array(path, mode="r+")
        # Fast compression: it is read once and thrown away.
        return zarr.create_array(
            path,
            shape=self.grid.shape,
            chunks=self.grid.block,
            dtype=dtype,
            compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
            fill_value=0,
        )


def open_scratch(folder: Path, grid: BlockGrid, facts: Mapping[str, object], on_event: OnEvent) -> ComponentScratch:
    """Return the scratch folder of a labelling: what is there of an earlier one of the same facts, or a new one.

    Parameters
    ----------
    folder
        Where it lies; made if need be. What another labelling has left there is removed.
    grid
        The blocks.
    facts
        What intermediate results depend on, as JSON can hold it.
    on_event
        Hears when an earlier labelling is gone on with.

    Raises
    ------
    OutputExistsError
        The folder is one of something else.
    """
    path = folder / _SETTINGS_FILE
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:
            found = {}
        if {key: found.get(key) for key in facts} == facts:
            on_event(Notice(f"Going on with the unfinished labelling in {folder}."))
            return ComponentScratch(folder, grid, str(found["token"]))
        # Derived data of another mask or other settings: of no use to anybody.
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise OutputExistsError(
            f"The scratch folder {folder} holds something that is not an unfinished labelling. Give an empty or new "
            "folder with --scratch."
        )
    token = uuid.uuid4().hex
    write_atomically(path, json.dumps({**facts, "token": token}).encode())
    return ComponentScratch(folder, grid, token)
