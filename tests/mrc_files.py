"""Makes small MRC files with the headers that are met in the wild, byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

MODES = {"int8": 0, "uint8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}


def write_raw_mrc(
    path: Path,
    voxels: np.ndarray,
    *,
    order: str = "<",
    stamp: bytes | None = None,
    map_id: bytes = b"MAP ",
    mode: int | None = None,
    cell: tuple[float, float, float] | None = None,
    extended: bytes = b"",
    payload: bytes | None = None,
    fields: dict[int, tuple[str, Any]] | None = None,
) -> Path:
    """Write ``voxels`` (sections, rows, columns); ``fields`` sets (struct code, value) at byte offsets."""
    nz, ny, nx = voxels.shape
    header = bytearray(1024)

    def put(offset: int, code: str, *values: Any) -> None:
        struct.pack_into(order + code, header, offset, *values)

    put(0, "4i", nx, ny, nz, MODES[voxels.dtype.name] if mode is None else mode)
    put(28, "3i", nx, ny, nz)
    put(40, "3f", *(cell or (10.0 * nx, 10.0 * ny, 10.0 * nz)))
    put(64, "3i", 1, 2, 3)
    put(76, "3f", float(voxels.min()), float(voxels.max()), float(voxels.mean()))
    put(88, "2i", 1, len(extended))
    header[208:212] = map_id
    header[212:216] = {"<": b"\x44\x44\x00\x00", ">": b"\x11\x11\x00\x00"}[order] if stamp is None else stamp
    for offset, (code, value) in (fields or {}).items():
        put(offset, code, value)
    stored = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes() if payload is None else payload
    path.write_bytes(bytes(header) + extended + stored)
    return path


def voxels_of(dtype: str, shape: tuple[int, int, int] = (4, 5, 6), seed: int = 0) -> np.ndarray:
    """Return values over the whole range of a type (of -1000 to 1000 for floating-point types)."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.uniform(-1000, 1000, shape).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
