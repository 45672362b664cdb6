"""How a volume is cut into blocks, and which blocks touch: integers only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Box, Shape3, Span, ceil_div


@dataclass(frozen=True)
class BlockGrid:
    """A volume of ``shape`` cut into blocks (smaller ones at the far ends), numbered in raster order.

    >>> grid = BlockGrid((5, 4, 4), (3, 4, 2))
    >>> len(grid), [str(s) for s in grid.box(3)]
    (4, ['3:5', '0:4', '2:4'])
    """

    shape: Shape3
    block: Shape3

    def __post_init__(self) -> None:
        if min(self.block) < 1:
            raise SettingsError(f"The block size is {self.block}; every axis takes at least 1 voxel.")

    @property
    def counts(self) -> Shape3:
        """Number of blocks along z, y, x."""
        z, y, x = (ceil_div(n, size) for n, size in zip(self.shape, self.block, strict=True))
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def index(self, number: int) -> Shape3:
        """Return the place of a block along z, y, x."""
        _, y, x = self.counts
        return number // (y * x), number // x % y, number % x

    def number(self, index: Shape3) -> int:
        """Return the number of the block at a place, the inverse of :meth:`index`."""
        _, y, x = self.counts
        return (index[0] * y + index[1]) * x + index[2]

    def box(self, number: int) -> Box:
        """Return the voxels that belong to a block."""
        z, y, x = (
            Span(i * size, min((i + 1) * size, n))
            for i, size, n in zip(self.index(number), self.block, self.shape, strict=True)
        )
        return z, y, x

    def neighbour(self, number: int, offset: Shape3) -> int | None:
        """Return the number of the block ``offset`` blocks away, None beyond the volume's edge."""
        z, y, x = (i + d for i, d in zip(self.index(number), offset, strict=True))
        if all(0 <= i < n for i, n in zip((z, y, x), self.counts, strict=True)):
            return self.number((z, y, x))
        return None


def forward_offsets(reach: int) -> tuple[Shape3, ...]:
    """Return the neighbour offsets that come later in raster order and differ along at most ``reach`` axes.

    Each pair of touching blocks (or voxels) appears once: 3, 9 and 13 offsets for a reach of 1, 2 and 3.

    >>> forward_offsets(1)
    ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    """
    steps = (-1, 0, 1)
    return tuple(
        (z, y, x)
        for z, y, x in itertools.product(steps, steps, steps)
        if (z, y, x) > (0, 0, 0) and abs(z) + abs(y) + abs(x) <= reach
    )


def block_near(target: Shape3, *, multiple_of: Shape3, shape: Shape3) -> Shape3:
    """Return the block size nearest to ``target`` from below that ends on chunks of ``multiple_of`` voxels.

    It is at least one chunk, and no larger than the chunks that cover ``shape``.

    >>> block_near((128, 256, 256), multiple_of=(64, 100, 300), shape=(500, 500, 500))
    (128, 200, 300)
    """
    z, y, x = (
        min(max(1, want // chunk), ceil_div(n, chunk)) * chunk
        for want, chunk, n in zip(target, multiple_of, shape, strict=True)
    )
    return z, y, x


def covering(shape: Shape3, chunks: Shape3) -> Shape3:
    """Return the size of whole ``chunks`` that cover ``shape``.

    >>> covering((5, 8, 9), (4, 4, 4))
    (8, 8, 12)
    """
    z, y, x = (max(1, ceil_div(n, chunk)) * chunk for n, chunk in zip(shape, chunks, strict=True))
    return z, y, x
