"""What an MRC header says of the voxels, gathered as they pass: least, greatest, mean, standard deviation."""

from __future__ import annotations

import numpy as np

from etsam_zarr.volume import Array


class Statistics:
    """Smallest, largest, mean and standard deviation of values that come in pieces.

    Pieces are merged with the formula of Chan, Golub and LeVeque (1983), which does not lose the deviation of
    values far from zero as a running sum of squares would.

    Attributes
    ----------
    smallest, largest
        Of the values so far; infinity and minus infinity before the first.
    mean
        Of the values so far, summed in float64.

    >>> statistics = Statistics()
    >>> statistics.add(np.array([[[1, 2]], [[3, 6]]]))
    >>> statistics.smallest, statistics.largest, statistics.mean, statistics.deviation
    (1.0, 6.0, 3.0, 1.8708286933869707)
    """

    def __init__(self) -> None:
        self.smallest = np.inf
        self.largest = -np.inf
        self.mean = 0.0
        self._count = 0
        self._squares = 0.0

    def add(self, slab: Array) -> None:
        """Take in the voxels of a slab.

        Parameters
        ----------
        slab
            (depth, y, x), of any real type. A voxel that is infinite or no number leaves no finite mean.
        """
        # Slice by slice: the float64 copies stay small.
        for plane in slab:
            values = plane.astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinite voxels: the header then says "not determined"
                mean = float(values.mean())
                squares = float(np.square(values - mean).sum())
            total = self._count + values.size
            distance = mean - self.mean
            self._squares += squares + distance**2 * self._count * values.size / total
            self.mean += distance * values.size / total
            self._count = total
            self.smallest = min(self.smallest, float(values.min()))
            self.largest = max(self.largest, float(values.max()))

    @property
    def deviation(self) -> float:
        """Standard deviation of all values so far, the divisor being their number; 0 where there are none."""
        return float(np.sqrt(self._squares / self._count)) if self._count else 0.0
