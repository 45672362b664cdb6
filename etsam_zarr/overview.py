"""A reduced copy of the tomogram in the run store, so that the store opens in viewers as an image with labels on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.events import ignore
from etsam_zarr.geometry import Shape3, ceil_div
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid
from etsam_zarr.ome.pyramid import build_pyramid

LARGEST_EDGE = 512
# Few slices deep: as many reduced slices wait to be written, and twice as many are read for the next level.
_CHUNK = (16, 256, 256)


def overview_factor(shape: Shape3) -> int:
    """Return by how much the overview is smaller, along each axis: the power of 2 that brings it below 512 voxels.

    >>> overview_factor((500, 924, 956)), overview_factor((30, 512, 512))
    (2, 1)
    """
    factor = 1
    while ceil_div(max(shape), factor) > LARGEST_EDGE:
        factor *= 2
    return factor


class Overview:
    """Averages slabs that pass by in order to a small image, and writes it chunk by chunk.

    Parameters
    ----------
    group
        The group that becomes the image.
    shape
        Of the volume, z, y, x.
    voxel_size, origin
        Of the volume, angstrom, z, y, x.
    """

    def __init__(
        self, group: zarr.Group, *, shape: Shape3, voxel_size: tuple[float, float, float] | None,
        origin: tuple[float, float, float], version: OmeVersion, name: str,
    ) -> None:  # fmt: skip
        self._factor = factor = overview_factor(shape)
        z, y, x = (ceil_div(size, factor) for size in shape)
        spacing = voxel_size or (1.0, 1.0, 1.0)
        # The centre of a reduced voxel lies half a reduced minus half a full voxel further on.
        z0, y0, x0 = (start + (factor - 1) / 2 * step for start, step in zip(origin, spacing, strict=True))
        reduced = None if voxel_size is None else (spacing[0] * factor, spacing[1] * factor, spacing[2] * factor)
        self._levels: list[zarr.Array[Any]] = create_pyramid(
            group, shape=(z, y, x), dtype=np.float32, voxel_size=reduced, origin=(z0, y0, x0), chunks=_CHUNK,
            version=version, name=name,
        )  # fmt: skip
        self._planes: list[npt.NDArray[np.float32]] = []
        self._written = 0
        self._sum = np.zeros((y, x), dtype=np.float32)
        self._summed = 0

    def add(self, slab: npt.NDArray[Any]) -> None:
        """Take in the next slab, shape (n, y, x)."""
        for plane in slab:
            self._sum += self._reduced(plane)
            self._summed += 1
            if self._summed == self._factor:
                self._end_plane()

    def finish(self) -> None:
        """Write what is left, and the coarser levels."""
        if self._summed:
            self._end_plane()
        self._write()
        build_pyramid(self._levels, reduce="mean", on_event=ignore)

    def _reduced(self, plane: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        factor = self._factor
        if factor == 1:
            return plane.astype(np.float32)
        height, width = self._sum.shape
        margins = ((0, height * factor - plane.shape[0]), (0, width * factor - plane.shape[1]))
        padded = np.pad(plane.astype(np.float32, copy=False), margins, mode="edge")
        averaged: npt.NDArray[np.float32] = padded.reshape(height, factor, width, factor).mean(axis=(1, 3))
        return averaged

    def _end_plane(self) -> None:
        self._planes.append(self._sum / np.float32(self._summed))
        self._sum = np.zeros_like(self._sum)
        self._summed = 0
        if len(self._planes) == _CHUNK[0]:
            self._write()

    def _write(self) -> None:
        if not self._planes:
            return
        finest = self._levels[0]
        stop = self._written + len(self._planes)
        with disk_errors("writing the overview", str(finest.store_path)):
            finest[self._written : stop] = np.stack(self._planes)
        self._written = stop
        self._planes = []
