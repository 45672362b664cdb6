"""From voxel values to the model's input range, with limits measured over the whole volume in one streamed pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.config import NormalizeMethod
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.geometry import Shape3

Image = npt.NDArray[np.float32]

PERCENTILES = (0.1, 99.9)
# The percentiles come from a regular lattice of at most so many voxels: their error is far below the noise.
_MOST_SAMPLES = 1 << 22


@dataclass(frozen=True)
class IntensityRange:
    """Limits of a volume's values, as float32 numbers."""

    minimum: float
    maximum: float
    low: float = math.nan
    """The 0.1 percentile, estimated from a regular lattice of voxels; NaN where it was not asked for."""
    high: float = math.nan
    """The 99.9 percentile, likewise."""


class IntensityMeter:
    """Measures an :class:`IntensityRange` while a volume passes by in slabs, in any order.

    Parameters
    ----------
    shape
        Of the volume, z, y, x.
    percentiles
        Whether to estimate the percentiles as well.

    Raises
    ------
    InputError
        From ``add``: a voxel is NaN or infinite. From ``result``: all voxels are equal.
    """

    def __init__(self, shape: Shape3, *, percentiles: bool = True) -> None:
        self._percentiles = percentiles
        self._minimum = np.float32(np.inf)
        self._maximum = np.float32(-np.inf)
        self._samples: list[Image] = []
        voxels = shape[0] * shape[1] * shape[2]
        self._stride = max(1, int(np.ceil((voxels / _MOST_SAMPLES) ** (1 / 3))))

    def add(self, z: int, slab: npt.NDArray[Any]) -> None:
        """Take in a slab of shape (n, y, x) whose first slice is ``z``."""
        # Slice by slice: a float32 copy of the slab would double its memory.
        for offset, plane in enumerate(slab):
            values = plane.astype(np.float32, copy=False)
            low, high = values.min(), values.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                self._refuse_unfinite(z + offset, values)
            self._minimum = min(self._minimum, low)
            self._maximum = max(self._maximum, high)
            if self._percentiles and (z + offset) % self._stride == 0:
                self._samples.append(values[:: self._stride, :: self._stride].ravel().copy())

    def result(self) -> IntensityRange:
        """Return the limits of all that was added."""
        if self._minimum == self._maximum:
            raise InputError(
                f"All voxels of the volume have the same value, {self._minimum:g}: there is nothing to segment. "
                "Check that the reconstruction was written completely and that this is the right file."
            )
        if not self._percentiles:
            return IntensityRange(float(self._minimum), float(self._maximum))
        low, high = np.percentile(np.concatenate(self._samples), PERCENTILES)
        return IntensityRange(float(self._minimum), float(self._maximum), float(low), float(high))

    @staticmethod
    def _refuse_unfinite(z: int, values: Image) -> None:
        y, x = np.argwhere(~np.isfinite(values))[0]
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(
            f"The volume holds voxels that are no numbers: {count} in slice {z}, the first {values[y, x]} at "
            f"(z, y, x) = ({z}, {y}, {x}). The model needs finite values everywhere; replace them, for example by the "
            "volume's mean, and give the repaired file."
        )


def normalizer(method: NormalizeMethod, limits: IntensityRange) -> Callable[[npt.NDArray[Any]], Image]:
    """Return the function that turns voxel values of any type into float32 input of the model.

    ``min_max_positive_values`` and ``softplus_minmax`` are ETSAM's methods, operation by operation, so that the
    result is equal; ``percentile`` clips to the 0.1 and 99.9 percentiles and scales to 0..1.

    Raises
    ------
    SettingsError
        The method leaves nothing of a volume with these limits.
    """
    return _METHODS[method](limits)


def _min_max_positive_values(limits: IntensityRange) -> Callable[[npt.NDArray[Any]], Image]:
    if limits.maximum <= 0:
        raise SettingsError(
            f"The largest voxel value is {limits.maximum:g}, but the normalisation min_max_positive_values sets all "
            "negative values to 0, which leaves nothing. Give --normalize-method softplus_minmax or percentile."
        )
    maximum = np.float32(limits.maximum)

    def normalize(values: npt.NDArray[Any]) -> Image:
        positive: Image = np.maximum(values.astype(np.float32, copy=False), np.float32(0))
        positive /= maximum
        return positive

    return normalize


def _softplus_minmax(limits: IntensityRange) -> Callable[[npt.NDArray[Any]], Image]:
    import torch

    def softplus(values: npt.NDArray[Any]) -> Image:
        transformed: Image = torch.nn.functional.softplus(torch.from_numpy(values.astype(np.float32))).numpy()
        return transformed

    minimum, maximum = softplus(np.array([limits.minimum, limits.maximum]))
    if minimum == maximum:
        raise SettingsError(
            f"The voxel values reach from {limits.minimum:g} to {limits.maximum:g}, which softplus_minmax cannot tell "
            "apart. Give --normalize-method percentile."
        )

    def normalize(values: npt.NDArray[Any]) -> Image:
        scaled: Image = (softplus(values) - minimum) / (maximum - minimum)
        return scaled

    return normalize


def _percentile(limits: IntensityRange) -> Callable[[npt.NDArray[Any]], Image]:
    low, high = np.float32(limits.low), np.float32(limits.high)
    if low == high:
        raise SettingsError(
            f"The 0.1 and 99.9 percentiles of the voxel values are equal ({low:g}): the volume is almost constant. "
            "Give --normalize-method softplus_minmax, or check the file."
        )

    def normalize(values: npt.NDArray[Any]) -> Image:
        clipped: Image = np.clip(values.astype(np.float32), low, high)
        clipped -= low
        clipped /= high - low
        return clipped

    return normalize


_METHODS: dict[str, Callable[[IntensityRange], Callable[[npt.NDArray[Any]], Image]]] = {
    "min_max_positive_values": _min_max_positive_values,
    "softplus_minmax": _softplus_minmax,
    "percentile": _percentile,
}
