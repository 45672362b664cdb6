"""Several binary masks of one volume as one: membrane where any of them says so."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.masks import BinaryMask
from etsam_zarr.volume import Array, Volume


class UnionVolume(Volume):
    """The union of masks that lie in one grid, read box by box; closing it closes them.

    Parameters
    ----------
    parts
        One mask or more, each with zero and at most one other value.

    Raises
    ------
    InputError
        The masks differ in shape; or, while reading, one has more than two values.
    """

    def __init__(self, parts: Sequence[Volume]) -> None:
        first = parts[0].info
        for part in parts[1:]:
            if part.info.shape != first.shape:
                ours, theirs = (" x ".join(map(str, info.shape)) for info in (first, part.info))
                raise InputError(
                    f"The masks {first.uri} ({ours}) and {part.info.uri} ({theirs}, z y x) have different shapes, so "
                    "they cannot be united. Give masks that belong to one tomogram."
                )
        super().__init__(
            dataclasses.replace(
                first,
                uri=" + ".join(part.info.uri for part in parts),
                dtype=np.dtype(np.uint8),
                warnings=tuple(warning for part in parts for warning in part.info.warnings),
            )
        )
        self._parts = tuple(parts)
        self._masks = [BinaryMask(part, name=part.info.uri) for part in parts]

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return 1 where a mask is not 0, uint8, shape (z.size, y.size, x.size)."""
        union = self._masks[0].read(z, y, x).astype(np.uint8)
        for mask in self._masks[1:]:
            union |= mask.read(z, y, x).astype(np.uint8)
        return union

    def digest(self) -> str:
        """Return a digest of all parts, in any order."""
        return hashlib.sha256(" ".join(sorted(part.digest() for part in self._parts)).encode()).hexdigest()

    def close(self) -> None:
        """Close all parts."""
        for part in self._parts:
            part.close()
