"""Stores as the CryoET Data Portal has them: Zarr 2, OME-Zarr 0.4, Blosc (lz4, shuffle) chunks, three levels, no
consolidated metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.geometry import Shape3


def write_portal_store(
    path: Path, voxels: npt.NDArray[np.generic], *, chunks: Shape3 = (256, 256, 256), voxel_size: float = 10.0,
    old: bool = False, levels: int = 3,
) -> Path:  # fmt: skip
    """Write a pyramid of a volume; ``old`` lists the axes as x, y, z and gives no unit, as earlier stores do."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for level in range(levels):
        array = group.create_array(
            str(level), shape=voxels.shape, dtype=voxels.dtype,
            chunks=tuple(min(c, n) for c, n in zip(chunks, voxels.shape, strict=True)), fill_value=0,
            compressors=numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )  # fmt: skip
        array[...] = voxels
        scale = [voxel_size * 2.0**level] * 3
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        voxels = voxels[::2, ::2, ::2]
    unit = {} if old else {"unit": "angstrom"}
    axes = [{"name": name, "type": "space", **unit} for name in ("xyz" if old else "zyx")]
    image = {"axes": axes, "datasets": datasets, "name": "/", "version": "0.4"}
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    return path


def stored_bytes(path: Path, level: int = 0) -> int:
    """Bytes of all chunks of a level."""
    return sum(
        chunk.stat().st_size for chunk in (path / str(level)).rglob("*") if chunk.is_file() and chunk.name.isdigit()
    )
