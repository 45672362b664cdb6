"""MRC files as volumes, read slab by slab straight from the file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span, box_within
from etsam_zarr.mrc.fields import HEADER_BYTES
from etsam_zarr.mrc.header import MrcHeader, parse_mrc_header
from etsam_zarr.volume import Array, Volume, VolumeInfo

_SAMPLES = 64
_SAMPLE_BYTES = 4096


class MrcVolume(Volume):
    """An MRC file of mode 0, 1, 2, 6, 12 or 101 in either byte order.

    Voxels are read with ``pread``, not through a memory map: the pages of a map count as resident memory of
    the process until the kernel takes them back, so that reading a 1 GB file through one was seen to raise
    the resident memory by 1 GB, and a truncated file would end the process with SIGBUS instead of an error.

    Parameters
    ----------
    path
        The file.
    name
        Base name without suffix, for :attr:`VolumeInfo.name`.
    voxel_size
        Edge lengths in angstrom, z, y, x, that replace the header's.

    Raises
    ------
    InputError
        The file is no MRC volume, or shorter than its header says.
    """

    def __init__(self, path: Path, *, name: str, voxel_size: tuple[float, float, float] | None = None) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error
        try:
            self._size = os.fstat(self._file).st_size
            self._raw_header = os.pread(self._file, HEADER_BYTES, 0)
            self._header = self._checked_header(voxel_size)
        except BaseException:
            os.close(self._file)
            raise
        super().__init__(_info(self._header, path, name))

    def _checked_header(self, voxel_size: tuple[float, float, float] | None) -> MrcHeader:
        if len(self._raw_header) < HEADER_BYTES:
            raise InputError(
                f"{self._path} holds {self._size} bytes, less than the {HEADER_BYTES} bytes of an MRC "
                "header. The file is truncated or not an MRC; copy or download it again."
            )
        header = parse_mrc_header(self._raw_header, name=str(self._path), file_size=self._size, voxel_size=voxel_size)
        expected = header.data_at + header.data_bytes
        if self._size < expected:
            z, y, x = header.stored_shape
            raise InputError(
                f"{self._path} is truncated: its header promises {z} x {y} x {x} voxels of mode "
                f"{header.mode}, so {expected} bytes, and the file holds {self._size}. Copy or download it "
                "again."
            )
        if self._size > expected:
            surplus = f"The file holds {self._size - expected} bytes after its last voxel, which are ignored."
            header = replace(header, warnings=(*header.warnings, surplus))
        return header

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box; see :meth:`Volume.read`."""
        header = self._header
        box = box_within(self.info.shape, z, y, x)
        sections, rows, columns = (box[header.axes.index(stored)] for stored in range(3))
        stored = np.empty((sections.size, rows.size, columns.size), header.dtype)
        _, all_rows, all_columns = header.stored_shape
        whole_sections = rows.size == all_rows and columns.size == all_columns
        if whole_sections and header.mode != 101:
            # One read for the whole slab: the sections follow each other in the file.
            self._read_into(stored, self._offset(sections.start, 0))
        else:
            for index in range(sections.size):
                stored[index] = self._read_rows(sections.start + index, rows)[:, columns.as_slice()]
        if header.byte_order != _NATIVE and header.dtype.itemsize > 1:
            stored.byteswap(inplace=True)
        return np.ascontiguousarray(stored.transpose(header.axes))

    def _read_rows(self, section: int, rows: Span) -> Array:
        """Return whole rows of one section, (rows, columns), in the byte order of the file."""
        header = self._header
        packed = header.mode == 101
        itemsize = header.dtype.itemsize
        raw = np.empty((rows.size, header.row_bytes // (1 if packed else itemsize)), header.dtype)
        self._read_into(raw, self._offset(section, rows.start))
        if not packed:
            return raw
        # Of two 4-bit voxels the first lies in the low half of the byte.
        pairs = np.stack([raw & 0x0F, raw >> 4], axis=-1)
        return pairs.reshape(rows.size, -1)[:, : header.stored_shape[2]]

    def _offset(self, section: int, row: int) -> int:
        header = self._header
        return header.data_at + (section * header.stored_shape[1] + row) * header.row_bytes

    def _read_into(self, target: Array, offset: int) -> None:
        view = target.reshape(-1).view(np.uint8).data
        while view:
            try:
                count = os.preadv(self._file, [view], offset)
            except OSError as error:
                raise InputError(
                    f"{self._path} cannot be read at byte {offset}: {error.strerror}. Check the disk or "
                    "the network share it lies on, then give the same command again."
                ) from error
            if count == 0:
                raise InputError(
                    f"{self._path} ended at byte {offset} while it was read; it held {self._size} bytes "
                    "when it was opened. Another program has shortened it: restore the file and give the "
                    "same command again."
                )
            view = view[count:]
            offset += count

    def digest(self) -> str:
        """Return a SHA-256 over header, file size and 64 blocks of 4 KiB spread over the voxels."""
        digest = hashlib.sha256(self._raw_header)
        digest.update(str(self._size).encode())
        last = max(HEADER_BYTES, self._size - _SAMPLE_BYTES)
        for index in range(_SAMPLES):
            offset = HEADER_BYTES + (last - HEADER_BYTES) * index // (_SAMPLES - 1)
            digest.update(os.pread(self._file, _SAMPLE_BYTES, offset))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_NATIVE = "<" if np.little_endian else ">"


def _info(header: MrcHeader, path: Path, name: str) -> VolumeInfo:
    _, y, x = header.shape
    return VolumeInfo(
        uri=str(path),
        name=name,
        format="mrc",
        shape=header.shape,
        dtype=header.dtype,
        chunks=(1, y, x),
        voxel_size=header.voxel_size,
        origin=header.origin,
        warnings=header.warnings,
    )
