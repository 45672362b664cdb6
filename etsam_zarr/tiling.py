"""Tiles: the yx windows of a slice that the model sees as one image each, and how their results are blended.

Three tilings: ``whole`` is one tile, the slice; ``quadrants`` are four that meet at ``height // 2`` and ``width // 2``
without overlap, as ETSAM's split processing makes them; ``tiles`` are windows of exactly the model's image size that
overlap, so that no slice is ever resized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from etsam_zarr.config import Tiling
from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Span, ceil_div

ResolvedTiling = Literal["whole", "tiles", "quadrants"]
Weights = npt.NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)

LARGEST_OVERLAP = 0.5
"""Of the image size: beyond it every voxel would be computed four times or more."""


@dataclass(frozen=True)
class Tile:
    """A yx window that the model sees as one image."""

    index: int
    y: Span
    """Rows of the slice that it covers."""
    x: Span
    """Columns of the slice that it covers."""
    height: int
    """Rows that the model is given: those of ``y``, and below them their mirror image where there are more."""
    width: int
    """Columns that the model is given."""


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a slice: every run of rows with every run of columns.

    >>> grid = lay_tiles("tiles", 100, 230, image_size=128, overlap=16)
    >>> [f"{tile.y} {tile.x}" for tile in grid.tiles]
    ['0:100 0:128', '0:100 102:230']
    >>> grid.tiles[0].height, grid.tiles[0].width
    (128, 128)
    """

    tiling: ResolvedTiling
    overlap: int
    """The least overlap asked for, in voxels; 0 where tiles do not overlap."""
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    edge: int | None
    """Rows and columns that the model is given of each tile; None: as many as the tile has, to be resized."""

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """All tiles, row by row."""
        return tuple(
            Tile(number, y, x, self.edge or y.size, self.edge or x.size)
            for number, (y, x) in enumerate((y, x) for y in self.rows for x in self.columns)
        )

    @property
    def independent(self) -> bool:
        """Whether each tile is a volume of its own, as ETSAM's quadrants: nothing of one enters another."""
        return self.tiling == "quadrants"

    def touching(self, y: Span, x: Span) -> Iterator[Tile]:
        """Yield the tiles that have a part of a box, in order."""
        return (tile for tile in self.tiles if _meet(tile.y, y) and _meet(tile.x, x))

    def weights(self, tile: Tile) -> tuple[Weights, Weights]:
        """Return the weights of a tile's rows, shape (y,), and columns, shape (x,), float32.

        A voxel's weight is their product. Within an overlap they rise and fall as a raised cosine; over all tiles they
        sum to 1 in every voxel. A tile that nothing overlaps has ones.
        """
        row, column = divmod(tile.index, len(self.columns))
        return self._row_weights[row], self._column_weights[column]

    @cached_property
    def _row_weights(self) -> tuple[Weights, ...]:
        return axis_weights(self.rows)

    @cached_property
    def _column_weights(self) -> tuple[Weights, ...]:
        return axis_weights(self.columns)


def resolve_tiling(tiling: Tiling, height: int, width: int, image_size: int) -> ResolvedTiling:
    """Say what ``auto`` means for slices of (height, width): ``whole`` where they fit into the image, else ``tiles``.

    >>> resolve_tiling("auto", 924, 956, 1024), resolve_tiling("auto", 600, 1440, 1024)
    ('whole', 'tiles')
    """
    if tiling == "auto":
        return "whole" if max(height, width) <= image_size else "tiles"
    return tiling


def overlap_voxels(overlap: float, image_size: int) -> int:
    """Return the least overlap in voxels; ``overlap`` below 1 is a fraction of the image size, else voxels.

    Raises
    ------
    SettingsError
        It is more than half of the image size.

    >>> overlap_voxels(0.125, 1024), overlap_voxels(100, 1024)
    (128, 100)
    """
    voxels = round(overlap * image_size) if overlap < 1 else round(overlap)
    limit = int(image_size * LARGEST_OVERLAP)
    if voxels > limit:
        raise SettingsError(
            f"--overlap is {overlap:g}, which is {voxels} voxels of tiles of {image_size}; at most half of a tile, "
            f"{limit} voxels, can be. Give less; the default is 1/8."
        )
    return voxels


def lay_tiles(tiling: Tiling, height: int, width: int, *, image_size: int, overlap: float) -> TileGrid:
    """Lay the tiles over slices of (height, width).

    Parameters
    ----------
    image_size
        Edge of the model's image in pixels, and of each of the ``tiles``.
    overlap
        Least overlap of ``tiles``: below 1 a fraction of the image size, else voxels. No other tiling has any.

    Raises
    ------
    SettingsError
        The overlap is more than half of the image size, or slices are too small for quadrants.
    """
    resolved = resolve_tiling(tiling, height, width, image_size)
    if resolved == "whole":
        return TileGrid("whole", 0, (Span(0, height),), (Span(0, width),), None)
    if resolved == "quadrants":
        if min(height, width) < 2:
            raise SettingsError(f"Slices of {height} x {width} voxels have no quadrants. Give --tiling whole.")
        rows, columns = ((Span(0, size // 2), Span(size // 2, size)) for size in (height, width))
        return TileGrid("quadrants", 0, rows, columns, None)
    voxels = overlap_voxels(overlap, image_size)
    return TileGrid("tiles", voxels, _runs(height, image_size, voxels), _runs(width, image_size, voxels), image_size)


def recorded_grid(record: Mapping[str, Any]) -> TileGrid:
    """Return how the slices of a run were cut into tiles, from what its ``run.json`` says."""
    _, height, width = record["shape"]
    settings = record["settings"]
    # Stores of versions that knew no tiles say neither.
    tiling, overlap = settings.get("tiling", "whole"), settings.get("overlap", 0)
    return lay_tiles(tiling, height, width, image_size=record.get("image_size", 0), overlap=overlap)


def padded(plane: npt.NDArray[Value], tile: Tile) -> npt.NDArray[Value]:
    """Return what the model is given, shape (height, width), of a tile's part of a slice, shape (y, x).

    A window of exactly the image size that is larger than the slice goes on beyond the slice's lower or right edge
    with its mirror image, the edge repeated.
    """
    below, right = tile.height - tile.y.size, tile.width - tile.x.size
    return np.pad(plane, ((0, below), (0, right)), mode="symmetric") if below or right else plane


def axis_weights(runs: tuple[Span, ...]) -> tuple[Weights, ...]:
    """Return the weights of overlapping runs along one axis, float32, one array a run; in every place they sum to 1."""
    raw = [_ramps(runs, number) for number in range(len(runs))]
    total = np.zeros(runs[-1].stop)
    for run, weights in zip(runs, raw, strict=True):
        total[run.as_slice()] += weights
    return tuple(
        (weights / total[run.as_slice()]).astype(np.float32) for run, weights in zip(runs, raw, strict=True)
    )  # fmt: skip


def _runs(size: int, edge: int, overlap: int) -> tuple[Span, ...]:
    """Cut an axis into as few runs of ``edge`` as overlap by ``overlap`` at least, spread evenly."""
    if size <= edge:
        return (Span(0, size),)
    count = ceil_div(size - overlap, edge - overlap)
    starts = (number * (size - edge) // (count - 1) for number in range(count))
    return tuple(Span(start, start + edge) for start in starts)


def _ramps(runs: tuple[Span, ...], number: int) -> npt.NDArray[np.float64]:
    """Return 1, but rising and falling where the runs before and after reach in."""
    run = runs[number]
    weights = np.ones(run.size)
    if number and (overlap := runs[number - 1].stop - run.start) > 0:
        weights[:overlap] *= _rise(overlap)
    if number + 1 < len(runs) and (overlap := run.stop - runs[number + 1].start) > 0:
        weights[run.size - overlap :] *= _rise(overlap)[::-1]
    return weights


def _rise(size: int) -> npt.NDArray[np.float64]:
    """Return half a raised cosine from 0 to 1, at the centres of ``size`` voxels; it and its mirror image add to 1."""
    return (1 - np.cos(np.pi * (np.arange(size) + 0.5) / size)) / 2


def _meet(a: Span, b: Span) -> bool:
    return a.start < b.stop and b.start < a.stop
