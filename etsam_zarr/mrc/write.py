"""Writes MRC files slab by slab: statistics as the voxels pass, the header last, the name at the very end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import OutputExistsError, SettingsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.mrc.statistics import Statistics
from etsam_zarr.volume import Array, Volume

_MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
# IMOD's stamp and flags at bytes 152 and 156: bytes are signed (1), the origin has the sign of MRC2014 (4).
_IMOD_STAMP = b"IMOD" + (1 | 4).to_bytes(4, "little")
_IMOD_STAMP_IN_EXTRA2 = 152 - 112
_SLAB_BYTES = 64 << 20


@dataclass(frozen=True)
class MrcPlan:
    """What is going to be written, known before the first voxel."""

    shape: Shape3
    dtype: np.dtype[Any]
    """Type of the slabs that will come, of those :func:`stored_type` accepts."""
    voxel_size: tuple[float, float, float] | None
    """Angstrom, z, y, x; None writes 0, which programs read as "not known"."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Angstrom, z, y, x."""
    is_mask: bool = False
    """uint8 of only 0 and 1, written as mode 0, which every program reads."""
    keep_float16: bool = False
    """Write float16 as mode 12, which few programs read, instead of float32."""
    label: str = "Written by etsam-zarr"
    """First text label of the header, at most 80 characters."""


def stored_type(dtype: npt.DTypeLike, *, is_mask: bool = False, keep_float16: bool = False) -> np.dtype[Any]:
    """Return the type in which MRC stores voxels of ``dtype`` without changing a value.

    int8, int16, uint16 and float32 stay. uint8 becomes uint16 (mode 6), since MRC2014 has no unsigned bytes,
    or int8 (mode 0) where it is a mask; bool becomes int8; float16 becomes float32 unless it is to be kept.

    Raises
    ------
    SettingsError
        No mode holds all values of the type.

    >>> stored_type("uint8"), stored_type("uint8", is_mask=True), stored_type("float16")
    (dtype('uint16'), dtype('int8'), dtype('float32'))
    """
    given = np.dtype(dtype).newbyteorder("=")
    if given == np.bool_ or (given == np.uint8 and is_mask):
        return np.dtype(np.int8)
    if given == np.uint8:
        return np.dtype(np.uint16)
    if given == np.float16 and not keep_float16:
        return np.dtype(np.float32)
    if given.name in _MODES:
        return given
    raise SettingsError(
        f"MRC has no mode for values of type {given}; it stores int8, uint8, int16, uint16, float16 and "
        "float32. Write OME-Zarr, or convert the values to float32 first."
    )


def write_mrc(
    path: Path, plan: MrcPlan, slabs: Iterable[Array], *, overwrite: bool = False, on_event: OnEvent = ignore
) -> Path:
    """Write a volume that arrives slab by slab.

    Parameters
    ----------
    path
        The file to make.
    plan
        Shape, type and place in space.
    slabs
        Consecutive slabs (depth, y, x) of ``plan.dtype`` that add up to ``plan.shape``.
    overwrite
        Replace a file at ``path``, once the new one is complete.
    on_event
        Told about each slab.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    OutputExistsError
        ``path`` exists and ``overwrite`` is false.
    OutputError
        It cannot be written.
    SettingsError
        MRC cannot store the type, or a mask holds other values than 0 and 1.
    """
    begun = time.monotonic()
    name = f"writing {path.name}"
    with MrcWriter(path, plan, overwrite=overwrite) as writer:
        on_event(Started(name, total=plan.shape[0]))
        for slab in slabs:
            writer.write(slab)
            on_event(Advanced(name, slab.shape[0]))
    on_event(Finished(name, time.monotonic() - begun))
    return path


def slabs_of(volume: Volume, *, slab_bytes: int = _SLAB_BYTES) -> Iterator[Array]:
    """Yield a volume's consecutive slabs of about ``slab_bytes``, cut at its chunks where they are thicker."""
    depth, height, width = volume.info.shape
    fitting = max(1, slab_bytes // (height * width * volume.info.dtype.itemsize))
    chunk = volume.info.chunks[0]
    size = fitting // chunk * chunk if fitting >= chunk else fitting
    for z in cut(Span(0, depth), size):
        yield volume.read(z)


class MrcWriter:
    """An MRC file in the making; it gets its name when the ``with`` block ends without an error.

    Parameters
    ----------
    path
        The file to make; until it is complete its voxels lie in ``<name>.partial`` beside it.
    plan
        Shape, type and place in space.
    overwrite
        Replace what lies at ``path``.

    Raises
    ------
    OutputExistsError, OutputError, SettingsError
        See :func:`write_mrc`.
    """

    def __init__(self, path: Path, plan: MrcPlan, *, overwrite: bool = False) -> None:
        self._stored = stored_type(plan.dtype, is_mask=plan.is_mask, keep_float16=plan.keep_float16)
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder, so no MRC can be written there. Choose another name.")
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists already. Choose another name, or replace it with --overwrite.")
        self._path = path
        self._plan = plan
        self._partial = path.with_name(f"{path.name}.partial")
        self._written = 0
        self._statistics = Statistics()
        with disk_errors("creating an MRC", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._file.seek(HEADER_DTYPE.itemsize)

    def write(self, slab: Array) -> None:
        """Append consecutive slices, (depth, y, x)."""
        depth, height, width = self._plan.shape
        if slab.ndim != 3 or slab.shape[1:] != (height, width) or self._written + slab.shape[0] > depth:
            raise ValueError(
                f"a slab of shape {slab.shape} does not fit at slice {self._written} of {self._plan.shape}"
            )
        if slab.dtype != self._plan.dtype:
            raise ValueError(f"a slab of type {slab.dtype} was given, {self._plan.dtype} was planned")
        if self._plan.is_mask and slab.size and slab.max() > 1:
            raise SettingsError(
                f"The mask holds the value {slab.max()}; only 0 and 1 can be written as a mask. Write it "
                "as an image of labels instead."
            )
        self._statistics.add(slab)
        with disk_errors("writing voxels", self._path):
            # "tofile" would go around the file's position; the little-endian bytes are what the header
            # announces.
            self._file.write(np.ascontiguousarray(slab, self._stored.newbyteorder("<")).data)
        self._written += slab.shape[0]

    def __enter__(self) -> MrcWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _complete(self) -> None:
        if self._written != self._plan.shape[0]:
            raise ValueError(f"{self._written} slices were written, {self._plan.shape[0]} were planned")
        with disk_errors("finishing an MRC", self._path):
            self._file.seek(0)
            self._file.write(_header(self._plan, self._stored, self._statistics))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._path)


def _header(plan: MrcPlan, stored: np.dtype[Any], statistics: Statistics) -> bytes:
    """Return the 1024 bytes of an MRC2014 header, little-endian."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    nz, ny, nx = plan.shape
    header["nx"], header["ny"], header["nz"] = header["mx"], header["my"], header["mz"] = nx, ny, nz
    header["mode"] = _MODES[stored.name]
    sizes = plan.voxel_size or (0.0, 0.0, 0.0)
    for axis, count, size, start in zip("zyx", plan.shape, sizes, plan.origin, strict=True):
        header["cella"][axis] = count * size
        header["origin"][axis] = start
    for angle in ("alpha", "beta", "gamma"):
        header["cellb"][angle] = 90
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    if np.isfinite([statistics.smallest, statistics.largest, statistics.mean]).all():
        header["dmin"], header["dmax"] = statistics.smallest, statistics.largest
        header["dmean"] = statistics.mean
        header["rms"] = statistics.deviation
    else:
        # MRC2014's way to say "not determined": maximum below minimum, mean below both, negative deviation.
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
    header["ispg"] = 1  # a volume
    header["nversion"] = 20141
    extra = bytearray(84)
    extra[_IMOD_STAMP_IN_EXTRA2 : _IMOD_STAMP_IN_EXTRA2 + len(_IMOD_STAMP)] = _IMOD_STAMP
    header["extra2"] = bytes(extra)
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = plan.label.encode("ascii", "replace")[:80]
    return header.tobytes()
