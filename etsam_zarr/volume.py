"""A volume as everything else sees it: shape, type, where its voxels lie, and a way to read a box of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.geometry import Shape3, Span

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class VolumeInfo:
    """Facts of a volume, known without reading voxels."""

    uri: str
    """Path or address it was opened from, without credentials."""
    name: str
    """Base name without its known suffix: ``tomo_10.5A`` for ``tomo_10.5A.mrc``."""
    format: str
    """``"mrc"``, ``"ome-zarr 0.4"``, ``"ome-zarr 0.5"`` or ``"zarr"``."""
    shape: Shape3
    """Voxels in z, y, x."""
    dtype: np.dtype[Any]
    """Type of the values that :meth:`Volume.read` returns, in native byte order."""
    chunks: Shape3
    """What one read of the storage brings, in z, y, x; one slice for MRC."""
    voxel_size: tuple[float, float, float] | None
    """Edge lengths of a voxel in angstrom, z, y, x; None where the file does not say."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position of voxel (0, 0, 0) in angstrom, z, y, x."""
    warnings: tuple[str, ...] = field(default=())
    """What looked odd in the file, one sentence each, for the user to see."""
    roi: str | None = None
    """Which voxels of the stored volume these are, ``z0:z1,y0:y1,x0:x1``; None for all of it."""
    portal: tuple[tuple[str, int | float | str], ...] = ()
    """What the CryoET Data Portal calls it, by name: ``run_id``, ``tomogram_id`` and others; empty where it is none."""


class Volume(ABC):
    """A 3-D volume that is read box by box and never as a whole. Use it as a context manager.

    ``read`` may be called from several threads at once.
    """

    def __init__(self, info: VolumeInfo) -> None:
        self.info = info

    @abstractmethod
    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box.

        Parameters
        ----------
        z, y, x
            The box in voxels; None for y or x is the whole axis.

        Returns
        -------
        array of shape (z.size, y.size, x.size) and type ``info.dtype``
            A copy that the caller may change.

        Raises
        ------
        InputError
            The storage cannot deliver these voxels (truncated file, corrupt chunk).
        """

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 hex digest that tells this volume's content from another's.

        It covers the metadata and a sample of the stored bytes, so that it is cheap on any size; it does not
        depend on where the volume lies.
        """

    def close(self) -> None:  # noqa: B027 - most volumes hold nothing open
        """Release what the volume holds open. Reading afterwards is an error."""

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        z, y, x = self.info.shape
        return f"{type(self).__name__}({self.info.uri!r}, {z} x {y} x {x} {self.info.dtype})"
