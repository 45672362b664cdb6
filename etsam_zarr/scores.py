"""Stored native logits seen at full resolution, slice by slice, as ETSAM would have returned them.

Where a slice was cut into tiles they are blended here, when they are read; nothing blended is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.runstore import RunStore
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, Stage, StageArrays, read_stored
from etsam_zarr.tiling import Tile, TileGrid, recorded_grid

Logits = npt.NDArray[np.float32]


def stage_scores(store: RunStore, stage: Stage, *, backwards: Mapping[int, int] | None = None) -> ScoreView:
    """Return the full-resolution logits of a stage of a run; ``backwards`` is that of :class:`ScoreView`."""
    return ScoreView(store.stage(stage), store.shape, grid=recorded_grid(store.record), backwards=backwards)


def final_scores(store: RunStore, stage: Stage = 2) -> ScoreView:
    """Return the full-resolution logits of a stage as the run's settings want them shown.

    Prompted slices show their backward prediction if the run was asked for it.
    """
    predicted = store.record["settings"]["prompted_slices"] == "predict"
    prompted = store.record["prompted"][str(stage)]
    shown = {z: index for index, z in enumerate(prompted)} if predicted else {}
    return stage_scores(store, stage, backwards=shown)


class ScoreView:
    """Full-resolution logits of one stage, computed from the native ones when read; never stored.

    A tile's native logits are upsampled to the tile's size; where tiles overlap, each voxel is the sum of theirs,
    weighted by :meth:`~etsam_zarr.tiling.TileGrid.weights`, in float32 and in the order of the tiles.

    Parameters
    ----------
    arrays
        The stage's stored arrays.
    shape
        Of the volume, z, y, x.
    grid
        The tiles; None for one, the whole slice.
    backwards
        For prompted slices that shall show their backward prediction: slice to index in ``arrays.backwards``.
        Empty shows them as ETSAM does.
    """

    def __init__(
        self, arrays: StageArrays, shape: Shape3, *, grid: TileGrid | None = None,
        backwards: Mapping[int, int] | None = None,
    ) -> None:  # fmt: skip
        self._arrays = arrays
        self._backwards = backwards or {}
        self._grid = grid or TileGrid("whole", 0, (Span(0, shape[1]),), (Span(0, shape[2]),), None)
        self.shape = shape

    @property
    def tiled(self) -> bool:
        """Whether the model was given parts of a slice, not the slice."""
        return self._grid.tiling != "whole"

    def native(self) -> ScoreView:
        """Return the same scores as the model made them, without upsampling.

        Raises
        ------
        RunStoreError
            The run is tiled: there are native scores of each tile, but none of a slice.
        """
        if self.tiled:
            raise RunStoreError(
                f"The slices of this run were cut into {len(self._grid.tiles)} tiles, so there are no native scores of "
                f"whole slices. Read those of full resolution, or each tile's own in {self._arrays.logits.store_path}."
            )
        _, depth, height, width = self._arrays.logits.shape
        return ScoreView(self._arrays, (depth, height, width), backwards=self._backwards)

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Logits:
        """Return logits of a box, float32 of shape (z.size, y.size, x.size)."""
        _, height, width = self.shape
        rows, columns = y or Span(0, height), x or Span(0, width)
        box = np.empty((z.size, rows.size, columns.size), dtype=np.float32)
        for index, plane in enumerate(self.planes(z, rows, columns)):
            box[index] = plane
        return box

    def planes(self, z: Span, y: Span | None = None, x: Span | None = None) -> Iterator[Logits]:
        """Yield the slices of a box one by one, float32 of shape (y.size, x.size).

        Only native logits are held of more than one slice, and of no more than a chunk layer of them.
        """
        _, height, width = self.shape
        rows, columns = y or Span(0, height), x or Span(0, width)
        tiles = tuple(self._grid.touching(rows, columns))
        for layer in cut(z, LOGIT_CHUNK_DEPTH):
            native = [self._native(tile, layer) for tile in tiles]
            for index in range(layer.size):
                yield self._blended(tiles, [logits[index] for logits in native], rows, columns)

    def planes_in_turn(self) -> Iterator[Logits]:
        """Yield all slices one by one, float32 of shape (y, x), reading chunk layer after chunk layer."""
        yield from self.planes(Span(0, self.shape[0]))

    def _native(self, tile: Tile, z: Span) -> Logits:
        native = read_stored(self._arrays.logits, tile.index, z.as_slice())
        for prompted, index in self._backwards.items():
            if z.start <= prompted < z.stop:
                native[prompted - z.start] = read_stored(self._arrays.backwards, tile.index, index)
        return native

    def _blended(self, tiles: tuple[Tile, ...], native: list[Logits], y: Span, x: Span) -> Logits:
        """Return a box of a slice, shape (y.size, x.size), from the native logits of the tiles that touch it."""
        if len(self._grid.tiles) == 1:
            plane = upsample(native[0], tiles[0].height, tiles[0].width)
            return plane[y.as_slice(), x.as_slice()]
        box = np.zeros((y.size, x.size), dtype=np.float32)
        for tile, logits in zip(tiles, native, strict=True):
            rows, columns = tile.y.common(y), tile.x.common(x)
            of_rows, of_columns = self._grid.weights(tile)
            in_tile = rows.within(tile.y).as_slice(), columns.within(tile.x).as_slice()
            part = upsample(logits, tile.height, tile.width)[in_tile] * of_rows[in_tile[0], None]
            part *= of_columns[in_tile[1]]
            box[rows.within(y).as_slice(), columns.within(x).as_slice()] += part
        return box


def upsample(native: Logits, height: int, width: int) -> Logits:
    """Bring native logits of one slice to (height, width), bilinearly, by the operation that SAM 2 itself uses."""
    planes = torch.from_numpy(np.ascontiguousarray(native))[None, None]
    if native.shape == (height, width):
        return native
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    result: Logits = resized[0, 0].numpy()
    return result
