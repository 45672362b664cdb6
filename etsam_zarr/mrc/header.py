"""What an MRC header says, read with the tolerance that files in the wild need.

The layout is MRC2014 (Cheng et al. 2015, https://doi.org/10.1016/j.jsb.2015.04.002); where files of IMOD
differ, its own description decides (https://bio3d.colorado.edu/imod/doc/mrc_format.txt). The choices, besides
that of the byte order (see :mod:`etsam_zarr.mrc.fields`):

bytes of mode 0
    Signed, as MRC2014 says, except: a file stamped by IMOD says it in its flags; without that stamp a header
    maximum above 127 means unsigned. The CryoET Data Portal takes the latter for the mark of files from
    before the standard (and stores value - 128; here the values stay 0 to 255).
origin
    Position of voxel (0, 0, 0) in angstrom. IMOD stores the opposite sign unless bit 4 of its flags is set,
    and before 2000 it lay elsewhere in the header, in the order z, x, y. Where the origin is 0, the index of
    the first voxel (nstart) times the voxel size is used, as ChimeraX does; both together would count a
    shift twice.
axes
    mapc, mapr and maps other than 1, 2, 3 are followed, so that a volume is always z, y, x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Shape3, ceil_div
from etsam_zarr.mrc.fields import (
    HEADER_BYTES,
    REFUSED_MODES,
    VOXEL_TYPES,
    ByteOrder,
    decode,
    find_byte_order,
    find_imod_flags,
)

# Bits of IMOD's flags.
_IMOD_SIGNED_BYTES = 1
_IMOD_ORIGIN_AS_STANDARD = 4
_IMOD_PACKED_BYTES = 16
_OLD_ORIGIN_AT = 208


@dataclass(frozen=True)
class MrcHeader:
    """Where the voxels lie in the file, what they are, and where the volume lies in space."""

    byte_order: ByteOrder
    mode: int
    stored_shape: Shape3
    """Sections, rows, columns as they follow each other in the file."""
    axes: tuple[int, int, int]
    """Which of the stored axes is z, y and x: ``(0, 1, 2)`` almost always."""
    dtype: np.dtype[Any]
    """Type of a voxel once read, native byte order."""
    data_at: int
    """Offset of the first voxel in bytes: 1024 and the extended header."""
    voxel_size: tuple[float, float, float] | None
    """Angstrom, z, y, x."""
    origin: tuple[float, float, float]
    """Angstrom, z, y, x."""
    warnings: tuple[str, ...]

    @property
    def shape(self) -> Shape3:
        """The volume's shape in z, y, x."""
        z, y, x = (self.stored_shape[axis] for axis in self.axes)
        return z, y, x

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row; two 4-bit voxels share a byte, and a row starts on a byte."""
        columns = self.stored_shape[2]
        return ceil_div(columns, 2) if self.mode == 101 else columns * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        sections, rows, _ = self.stored_shape
        return sections * rows * self.row_bytes


def parse_mrc_header(
    raw: bytes, *, name: str, file_size: int, voxel_size: tuple[float, float, float] | None = None
) -> MrcHeader:
    """Read a header.

    Parameters
    ----------
    raw
        The first 1024 bytes of the file.
    name
        Path of the file, for messages.
    file_size
        Bytes of the whole file; breaks the tie where both byte orders make sense.
    voxel_size
        Angstrom, z, y, x, in place of the header's.

    Raises
    ------
    InputError
        This is no MRC header, or one of an image, a stack of volumes, or voxels that cannot be used.
    """
    warnings: list[str] = []
    order = find_byte_order(raw, name=name, file_size=file_size, warnings=warnings)
    header = decode(raw, order)
    mode = int(header["mode"])
    imod_flags = find_imod_flags(raw, order)
    if mode in REFUSED_MODES:
        raise InputError(
            f"{name} is an MRC of mode {mode} ({REFUSED_MODES[mode]}); a tomogram has modes 0, 1, 2, 6, "
            "12 or 101. Give the real-space tomogram instead."
        )
    if mode == 0 and imod_flags is not None and imod_flags & _IMOD_PACKED_BYTES:
        raise InputError(
            f"{name} packs two 4-bit values into each byte of mode 0, IMOD's old way of storing camera "
            "frames, which is not read here. Convert it to bytes or shorts first, for example with IMOD's "
            "newstack -mode 0."
        )
    stored_shape = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    _refuse_images_and_stacks(header, stored_shape, name)
    axes = _axes(header, name, warnings)
    if voxel_size is None:
        voxel_size = _voxel_size(header, stored_shape[axes[0]], warnings)
    return MrcHeader(
        byte_order=order,
        mode=mode,
        stored_shape=stored_shape,
        axes=axes,
        dtype=_voxel_type(header, mode, imod_flags, warnings),
        data_at=HEADER_BYTES + int(header["nsymbt"]),
        voxel_size=voxel_size,
        origin=_origin(raw, header, order, imod_flags, axes, voxel_size),
        warnings=tuple(warnings),
    )


def _refuse_images_and_stacks(header: np.void, stored_shape: Shape3, name: str) -> None:
    sections, rows, columns = stored_shape
    if min(stored_shape) < 2:
        raise InputError(
            f"{name} holds {sections} section(s) of {rows} x {columns}: an image, not a volume. At least 2 "
            "slices are needed; give the reconstructed tomogram, not a projection or a single slice of it."
        )
    volume_sections = int(header["mz"])
    if 401 <= int(header["ispg"]) <= 630 and 0 < volume_sections < sections:
        raise InputError(
            f"{name} is a stack of {sections // volume_sections} volumes of {volume_sections} sections "
            "each; one volume is needed. Split the stack first and give one of its volumes."
        )


def _axes(header: np.void, name: str, warnings: list[str]) -> tuple[int, int, int]:
    """Return which stored axis (0 sections, 1 rows, 2 columns) is z, y and x."""
    stored = [int(header[key]) for key in ("maps", "mapr", "mapc")]
    if stored in ([3, 2, 1], [0, 0, 0]):
        return 0, 1, 2
    if sorted(stored) != [1, 2, 3]:
        raise InputError(
            f"{name} maps columns, rows and sections to the axes {stored[2]}, {stored[1]} and {stored[0]}; "
            "each of 1 (x), 2 (y) and 3 (z) is needed once. Correct mapc, mapr and maps in the header."
        )
    names = ", ".join("xyz"[axis - 1] for axis in reversed(stored))
    warnings.append(
        f"Columns, rows and sections of the file are the axes {names}; they are turned to z, y, x while "
        "reading, which is slow for a large file: convert it first."
    )
    return stored.index(3), stored.index(2), stored.index(1)


def _voxel_type(header: np.void, mode: int, imod_flags: int | None, warnings: list[str]) -> np.dtype[Any]:
    if mode != 0:
        return np.dtype(VOXEL_TYPES[mode])
    smallest, largest = float(header["dmin"]), float(header["dmax"])
    if imod_flags is not None:
        signed = bool(imod_flags & _IMOD_SIGNED_BYTES)
        if not signed and smallest < 0 and largest <= 127:
            # The flags survive programs that rewrite the voxels without knowing them; a negative minimum
            # does not lie.
            warnings.append(
                "IMOD's flags call the bytes unsigned, but the header's minimum is negative: read as signed."
            )
            signed = True
    else:
        signed = not (largest > 127 and smallest >= min(0.0, 127 - largest))
    if not signed and largest > 127:
        warnings.append(f"The bytes are read as unsigned (0 to 255), since the header gives a maximum of {largest:g}.")
    return np.dtype("i1" if signed else "u1")


def _voxel_size(header: np.void, slices: int, warnings: list[str]) -> tuple[float, float, float] | None:
    cell = [float(header["cella"][key]) for key in "zyx"]
    grid = [int(header[key]) for key in ("mz", "my", "mx")]
    sizes = [
        length / n if n > 0 and math.isfinite(length) and length > 0 else 0.0
        for length, n in zip(cell, grid, strict=True)
    ]
    z, y, x = sizes
    if y == 0 or x == 0:
        warnings.append("The header gives no voxel size; give it with --voxel-size.")
        return None
    if z == 0:
        warnings.append(f"The header gives no voxel size in z; {x:g} A is taken from x. Correct it with --voxel-size.")
        z = x
    elif grid[0] == 1 and slices > 1 and math.isclose(cell[0] / slices, x, rel_tol=0.01):
        warnings.append(
            f"The header counts 1 grid step in z (mz) for {slices} slices, which would make voxels {z:g} "
            f"A thick; {cell[0] / slices:g} A is used."
        )
        z = cell[0] / slices
    elif z == x == y == 1.0:
        warnings.append(
            "The header gives a voxel size of exactly 1 A, often a placeholder; correct it with --voxel-size."
        )
    elif not 0.1 <= z / x <= 10:
        warnings.append(
            f"The header gives voxels {z:g} A thick but {x:g} A wide; if that is wrong, correct it with --voxel-size."
        )
    return z, y, x


def _origin(
    raw: bytes,
    header: np.void,
    order: ByteOrder,
    imod_flags: int | None,
    axes: tuple[int, int, int],
    voxel_size: tuple[float, float, float] | None,
) -> tuple[float, float, float]:
    if bytes(header["map"])[:3] == b"MAP":
        origin = [float(header["origin"][key]) for key in "zyx"]
        by_imod = imod_flags is not None and not imod_flags & _IMOD_ORIGIN_AS_STANDARD
    else:
        z, x, y = np.frombuffer(raw, np.dtype("f4").newbyteorder(order), count=3, offset=_OLD_ORIGIN_AT)
        origin = [float(z), float(y), float(x)]
        by_imod = True
    if not all(math.isfinite(value) and abs(value) < 1e7 for value in origin):
        origin = [0.0, 0.0, 0.0]  # other programs' bytes, not a position
    if any(origin):
        z0, y0, x0 = (0.0 if value == 0 else -value if by_imod else value for value in origin)
        return z0, y0, x0
    if voxel_size is None:
        return 0.0, 0.0, 0.0
    start = [int(header[key]) for key in ("nzstart", "nystart", "nxstart")]
    z0, y0, x0 = (start[axis] * size for axis, size in zip(axes, voxel_size, strict=True))
    return z0, y0, x0
