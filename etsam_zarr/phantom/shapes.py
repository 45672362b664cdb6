"""The shapes that a phantom is made of: closed surfaces, balls and rods, and the waves that bend them.

Positions and lengths are in angstrom, in z, y, x order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Point = tuple[float, float, float]


class Outline(Enum):
    """The families of closed surfaces that membranes are made of."""

    ELLIPSOID = "ellipsoid"
    CAPSULE = "capsule"
    DISC = "disc"


@dataclass(frozen=True)
class Body:
    """A closed surface in its own frame, turned and moved into the scene.

    ``size`` means, by outline: semi-axes of the ellipsoid; (half length, radius, unused) of the capsule
    along its z; (half thickness, radius of the flat part, unused) of the rounded disc across its z.
    """

    outline: Outline
    centre: Point
    rotation: npt.NDArray[np.float64]
    """3 x 3 matrix from scene to body."""
    size: Point
    shells: tuple[float, ...] = (0.0,)
    """Where its membranes lie, as depth below the surface: (0, 180) is a double membrane 180 A apart."""

    @property
    def reach(self) -> float:
        """Radius of a sphere around the centre that holds the body."""
        if self.outline is Outline.ELLIPSOID:
            return max(self.size)
        return self.size[0] + self.size[1]

    def distance(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Return a field that is 0 on the surface, negative inside, and near it grows like a distance.

        Exact for capsule and disc. For the ellipsoid it is ``k (k - 1) / l`` with ``k = |p / s|`` and
        ``l = |p / s^2|`` for semi-axes ``s``, which agrees with the distance to first order at the surface.

        Parameters
        ----------
        z, y, x
            Positions relative to the centre, in angstrom, arrays that broadcast together.
        """
        r = self.rotation.astype(z.dtype)
        w, v, u = (r[i, 0] * z + r[i, 1] * y + r[i, 2] * x for i in range(3))
        a, b, c = (z.dtype.type(s) for s in self.size)
        if self.outline is Outline.ELLIPSOID:
            k = np.sqrt((w / a) ** 2 + (v / b) ** 2 + (u / c) ** 2)
            slope = np.sqrt((w / a**2) ** 2 + (v / b**2) ** 2 + (u / c**2) ** 2)
            return cast(Floats, k * (k - 1) / np.maximum(slope, z.dtype.type(1e-6)))
        if self.outline is Outline.CAPSULE:
            along = np.maximum(np.abs(w) - a, 0)
            return cast(Floats, np.sqrt(along**2 + v**2 + u**2) - b)
        beyond = np.maximum(np.sqrt(v**2 + u**2) - b, 0)
        return cast(Floats, np.sqrt(beyond**2 + w**2) - a)


@dataclass(frozen=True)
class Blob:
    """A round, filled particle."""

    centre: Point
    radius: float
    density: float
    """In units of the density of a leaflet."""


@dataclass(frozen=True)
class Filament:
    """A long rod, filled or hollow."""

    body: Body
    wall: float
    """Thickness of the wall in angstrom; 0 is a filled rod."""
    density: float


@dataclass(frozen=True)
class Wave:
    """One plane wave of the undulation."""

    direction: Point
    """Wave vector in radians per angstrom."""
    displacement: Point
    """Amplitude of the shift along z, y, x in angstrom."""
    phase: float


def as_point(vector: npt.ArrayLike) -> Point:
    """Return a vector of shape (3,) as plain numbers."""
    z, y, x = (float(v) for v in np.asarray(vector))
    return z, y, x
