"""The fields of an MRC header as they are stored, in the byte order in which they make sense.

The byte order is that of the machine stamp, unless sizes and mode make sense only in the other one; without a stamp
(headers before 2000) it is the order in which they do. What the fields mean is for :mod:`etsam_zarr.mrc.header`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from etsam_zarr.errors import InputError

HEADER_BYTES = 1024
VOXEL_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
"""Numpy's type of a voxel of each mode that is read; mode 0 may be unsigned, mode 101 has 4 bits."""
REFUSED_MODES = {
    3: "complex 16-bit integers, a Fourier transform",
    4: "complex floats, a Fourier transform",
    16: "red, green and blue, a picture",
}
_KNOWN_MODES = VOXEL_TYPES.keys() | REFUSED_MODES.keys()
# Larger axes are taken for a wrong byte order or another kind of file.
_LONGEST_AXIS = 1 << 20
# The bytes "IMOD" at offset 152 announce the flags at offset 156.
_IMOD_STAMP = 1146047817
_IMOD_STAMP_AT = 152

ByteOrder = Literal["<", ">"]
_STAMPS: dict[bytes, ByteOrder] = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}


def decode(raw: bytes, order: ByteOrder) -> np.void:
    """Return the fields of a header of 1024 bytes, under the names that mrcfile gives them."""
    decoded: np.void = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order), count=1)[0]
    return decoded


def find_byte_order(raw: bytes, *, name: str, file_size: int, warnings: list[str]) -> ByteOrder:
    """Return the order in which a header and the voxels after it are to be read.

    Parameters
    ----------
    raw
        The first 1024 bytes of the file.
    name
        Path of the file, for messages.
    file_size
        Bytes of the whole file; breaks the tie where both orders make sense.
    warnings
        Gets a sentence if the machine stamp is wrong.

    Raises
    ------
    InputError
        In neither order is this an MRC header.
    """
    orders: tuple[ByteOrder, ...] = ("<", ">")
    possible = [order for order in orders if _is_plausible(decode(raw, order))]
    if not possible:
        little = decode(raw, "<")
        raise InputError(
            f"{name} is not an MRC file: read as one, its header would mean {little['nx']} x {little['ny']} x "
            f"{little['nz']} voxels of mode {little['mode']}, in either byte order out of range. Check that the file "
            "is the tomogram (.mrc, .rec, .map) and was downloaded completely."
        )
    stamped = _STAMPS.get(raw[212:214])
    if stamped is not None and stamped in possible:
        return stamped
    if stamped is not None:
        warnings.append(
            f"The machine stamp says {_order_in_words(stamped)}-endian, but size and mode make sense only as "
            f"{_order_in_words(possible[0])}-endian, so they are read that way."
        )
    if len(possible) == 2:
        for order in possible:
            header = decode(raw, order)
            voxels = math.prod(int(header[key]) for key in ("nx", "ny", "nz"))
            # At least half a byte a voxel: the wrong order asks for astronomically more than the file holds.
            if HEADER_BYTES + int(header["nsymbt"]) + voxels // 2 <= file_size:
                return order
    return possible[0]


def find_imod_flags(raw: bytes, order: ByteOrder) -> int | None:
    """Return IMOD's flags; None for a header without IMOD's stamp."""
    stamp, flags = np.frombuffer(raw, np.dtype("i4").newbyteorder(order), count=2, offset=_IMOD_STAMP_AT)
    return int(flags) if stamp == _IMOD_STAMP else None


def _is_plausible(header: np.void) -> bool:
    sizes = [int(header[key]) for key in ("nx", "ny", "nz")]
    axes = [int(header[key]) for key in ("mapc", "mapr", "maps")]
    return (
        all(0 < size <= _LONGEST_AXIS for size in sizes)
        and int(header["mode"]) in _KNOWN_MODES
        and int(header["nsymbt"]) >= 0
        and (axes == [0, 0, 0] or all(1 <= axis <= 3 for axis in axes))
    )


def _order_in_words(order: ByteOrder) -> str:
    return "little" if order == "<" else "big"
