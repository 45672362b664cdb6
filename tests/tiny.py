"""Volumes and requests so small that the real model runs on them in seconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mrcfile
import numpy as np
import numpy.typing as npt
import zarr
from scipy import ndimage

from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.volume import Array, Volume, VolumeInfo

Floats = npt.NDArray[np.float32]

SHAPE = (12, 40, 48)
# Every sixth slice is prompted, so that conditioning memories differ between the stages.
OPTIONS = ("--model", "seeded-256", "--precision", "float32", "--grid-interval", "6", "--slab", "3")


def texture(shape: Shape3 = SHAPE, seed: int = 0) -> Floats:
    """Smooth noise in -1..1: neighbouring slices resemble each other, as in a tomogram."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (noise / np.abs(noise).max()).astype(np.float32)


def write_tomogram(path: Path, voxels: npt.NDArray[np.generic], *, voxel_size: float = 10.0) -> Path:
    with mrcfile.new(path, voxels) as file:
        file.voxel_size = voxel_size
        file.header.origin = (10.0, 20.0, 30.0)
    return path


class ArrayVolume(Volume):
    """A volume in memory."""

    def __init__(self, voxels: Array, voxel_size: tuple[float, float, float] | None = (10.0, 10.0, 10.0)) -> None:
        z, y, x = voxels.shape
        super().__init__(
            VolumeInfo(
                uri="memory", name="memory", format="mrc", shape=(z, y, x), dtype=voxels.dtype, chunks=(1, y, x),
                voxel_size=voxel_size,
            )
        )  # fmt: skip
        self._voxels = voxels

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        rows = slice(None) if y is None else y.as_slice()
        columns = slice(None) if x is None else x.as_slice()
        return self._voxels[z.as_slice(), rows, columns].copy()

    def digest(self) -> str:
        return hashlib.sha256(self._voxels.tobytes()).hexdigest()


def results_of(store: Path) -> dict[str, Array]:
    """All that a run computed, by the path of the array within its store."""
    names = [f"stages/{stage}/{name}" for stage in (1, 2) for name in ("logits", "object_score", "object_pointer")]
    names.append("labels/membranes/0")
    return {name: np.asarray(zarr.open_array(store / name, mode="r")) for name in names}


def assert_same_results(store: Path, other: Path) -> None:
    """Logits, scores, pointers and mask of two run stores are equal, bit for bit."""
    for (name, mine), theirs in zip(results_of(store).items(), results_of(other).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
