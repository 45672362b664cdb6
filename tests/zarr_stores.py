"""Zarr arrays in memory, and what is said to open them."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from etsam_zarr.zarr_source import ZarrSource


def source(store: Any, **given: Any) -> ZarrSource:
    return ZarrSource(store, "memory", "x", **given)


def bare(voxels: np.ndarray, *, chunks: tuple[int, ...], version: int = 2, **more: Any) -> MemoryStore:
    store = MemoryStore()
    array = zarr.create_array(store, shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, zarr_format=version, **more)
    array[...] = voxels
    return store
