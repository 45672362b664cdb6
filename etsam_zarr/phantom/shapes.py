"""What is in a phantom and where: membranes, particles, filaments and beads, drawn from a seed without end.

The scene fills all of space. Space is cut into cubic cells, one lattice for each kind of thing, and what a
cell holds depends only on the seed and the cell's index, through a counter-based generator (Philox; Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405).
Anyone who draws a box asks for the things of the cells around it: memory and time follow the box, never the
volume, and two boxes agree where they meet.

Positions and lengths are in angstrom, in z, y, x order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import cast

import numpy as np
import numpy.typing as npt

from etsam_zarr.geometry import Shape3

Floats = npt.NDArray[np.floating]
Point = tuple[float, float, float]

LARGE_CELL = 2100.0
"""Edge of a cell of organelles: one object each, which stays inside its cell."""
SMALL_CELL = 800.0
"""Edge of a cell of vesicles and short tubes."""
PARTICLE_CELL = 190.0
FILAMENT_CELL = 2200.0
BEAD_CELL = 2600.0

UNDULATION_WAVES = 7
UNDULATION_LENGTHS = (700.0, 2600.0)
"""Shortest and longest wavelength of the undulation that bends everything in the scene."""
UNDULATION_STEEPNESS = 0.024
"""Amplitude of one wave over its length: the seven together fold no surface, and none stays a perfect
ellipsoid."""


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


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of one place of the scene; the same key gives the same numbers anywhere."""
    # SeedSequence takes no negative words: cells left of the origin are shifted into the positive range.
    words = [seed, *(k + 2**31 for k in key)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclass(frozen=True)
class Scene:
    """Everything in a phantom before it is imaged.

    The kinds of things get numbers that go into their seeds, so that adding particles never moves a membrane.
    """

    seed: int
    crowding: float = 0.35
    """Share of particle cells that hold a particle."""
    filaments: float = 0.5
    """Share of filament cells that hold one."""
    beads: float = 0.25
    """Share of bead cells that hold a gold bead."""

    def undulation(self) -> tuple[Wave, ...]:
        """Return the waves that bend the scene: smooth, larger amplitude at longer wavelength.

        Thermal undulations of a tension-free membrane grow with wavelength (Helfrich, Z. Naturforsch. A
        33, 305 (1978), https://doi.org/10.1515/zna-1978-0308); waves of equal steepness keep that order
        without a fold anywhere.
        """
        rng = generator(self.seed, 0)
        lengths = np.geomspace(*UNDULATION_LENGTHS, UNDULATION_WAVES)
        waves = []
        for length in lengths:
            direction = _unit(rng) * (2 * np.pi / length)
            shift = _unit(rng) * (UNDULATION_STEEPNESS * length)
            waves.append(Wave(_point(direction), _point(shift), float(rng.uniform(0, 2 * np.pi))))
        return tuple(waves)

    @property
    def largest_shift(self) -> float:
        """How far the undulation can move a point, in angstrom."""
        return sum(float(np.linalg.norm(wave.displacement)) for wave in self.undulation())

    def membranes(self, low: Point, high: Point) -> list[Body]:
        """Return every closed membrane that can touch the box from ``low`` to ``high`` (before undulation)."""
        large = [b for cell in _cells(low, high, LARGE_CELL) for b in self._organelle(cell)]
        small = [
            body
            for cell in _cells(low, high, SMALL_CELL)
            for body in self._vesicles(cell)
            if not self._cuts_an_organelle(body)
        ]
        return [body for body in (*large, *small) if _meets(body.centre, body.reach, low, high)]

    def particles(self, low: Point, high: Point) -> list[Blob]:
        """Return the globular particles of a box: one to three lobes of 18 to 65 angstrom radius each."""
        lobes: list[Blob] = []
        for cell in _cells(low, high, PARTICLE_CELL):
            rng = generator(self.seed, 3, *cell)
            if rng.random() >= self.crowding:
                continue
            centre = _inside(rng, cell, PARTICLE_CELL, 0.0)
            radius = float(rng.uniform(18, 65))
            density = float(rng.uniform(0.35, 0.9))
            for _ in range(int(rng.integers(1, 4))):
                shift = _unit(rng) * (0.7 * radius)
                lobes.append(Blob(_point(np.asarray(centre) + shift), radius * float(rng.uniform(0.6, 1)), density))
        return [lobe for lobe in lobes if _meets(lobe.centre, lobe.radius + 10, low, high)]

    def rods(self, low: Point, high: Point) -> list[Filament]:
        """Return the filaments of a box: thin filled ones (like actin) and hollow ones (like microtubules)."""
        rods = []
        for cell in _cells(low, high, FILAMENT_CELL):
            rng = generator(self.seed, 4, *cell)
            if rng.random() >= self.filaments:
                continue
            hollow = rng.random() < 0.35
            radius = 105.0 if hollow else 35.0
            length = float(rng.uniform(500, FILAMENT_CELL / 2 - radius))
            centre = _inside(rng, cell, FILAMENT_CELL, 0.0)
            body = Body(Outline.CAPSULE, centre, _rotation(rng), (length, radius, 0.0))
            rods.append(Filament(body, 40.0 if hollow else 0.0, float(rng.uniform(0.4, 0.9))))
        return [rod for rod in rods if _meets(rod.body.centre, rod.body.reach, low, high)]

    def gold(self, low: Point, high: Point) -> list[Blob]:
        """Return the gold beads of a box, 30 to 50 angstrom in radius and far denser than anything else."""
        beads = []
        for cell in _cells(low, high, BEAD_CELL):
            rng = generator(self.seed, 5, *cell)
            if rng.random() < self.beads:
                beads.append(Blob(_inside(rng, cell, BEAD_CELL, 0.0), float(rng.uniform(30, 50)), 5.0))
        return [bead for bead in beads if _meets(bead.centre, bead.radius + 10, low, high)]

    def _organelle(self, cell: Shape3) -> list[Body]:
        rng = generator(self.seed, 1, *cell)
        rotation = _rotation(rng)
        kind = rng.choice(["vesicle", "double", "layers", "stack", "tubes"], p=[0.3, 0.25, 0.1, 0.2, 0.15])
        if kind in ("vesicle", "double", "layers"):
            axes = np.sort(rng.uniform(480, 1150, size=3))
            axes = np.maximum(axes, axes[-1] * 0.45)
            gap = float(rng.uniform(130, 240))
            shells = {"vesicle": (0.0,), "double": (0.0, gap), "layers": (0.0, gap, 2 * gap)}[str(kind)]
            centre = _inside(rng, cell, LARGE_CELL, float(axes[-1]))
            return [Body(Outline.ELLIPSOID, centre, rotation, _point(axes), shells)]
        if kind == "stack":
            count = int(rng.integers(3, 7))
            half, radius = float(rng.uniform(70, 120)), float(rng.uniform(420, 800))
            # Neighbours sometimes touch: at a pitch of 2 half-thicknesses the outer faces coincide.
            pitch = 2 * half + float(rng.choice([30.0, 90.0, 160.0]))
            span = (count - 1) / 2 * pitch + half
            middle = np.asarray(_inside(rng, cell, LARGE_CELL, float(np.hypot(span, radius + half))))
            axis = rotation[0]
            return [
                Body(
                    Outline.DISC,
                    _point(middle + axis * (pitch * (i - (count - 1) / 2))),
                    rotation,
                    (half, radius * float(rng.uniform(0.8, 1)), 0.0),
                )
                for i in range(count)
            ]
        radius = float(rng.uniform(110, 200))
        middle = np.asarray(_inside(rng, cell, LARGE_CELL, 1000.0))
        side = rotation[1]
        pitch = 2 * radius + float(rng.choice([35.0, 250.0]))
        return [
            Body(
                Outline.CAPSULE,
                _point(middle + side * (pitch * i)),
                rotation,
                (float(rng.uniform(350, 700)), radius, 0.0),
            )
            for i in (-1, 0, 1)
        ]

    def _vesicles(self, cell: Shape3) -> list[Body]:
        rng = generator(self.seed, 2, *cell)
        kind = rng.choice(["none", "one", "pair", "tube"], p=[0.25, 0.4, 0.2, 0.15])
        rotation = _rotation(rng)
        if kind == "none":
            return []
        if kind == "one":
            axes = rng.uniform(0.75, 1, size=3) * rng.uniform(170, 400)
            shells = (0.0, 120.0) if axes.min() > 260 and rng.random() < 0.3 else (0.0,)
            centre = _inside(rng, cell, SMALL_CELL, float(axes.max()))
            return [Body(Outline.ELLIPSOID, centre, rotation, _point(axes), shells)]
        if kind == "tube":
            half, radius = float(rng.uniform(150, 360)), float(rng.uniform(80, 150))
            return [
                Body(
                    Outline.CAPSULE,
                    _inside(rng, cell, SMALL_CELL, half + radius),
                    rotation,
                    (half, radius, 0.0),
                )
            ]
        # Two vesicles in contact: the mid-surfaces are one bilayer apart at the nearest point.
        first, second = (float(r) for r in rng.uniform(130, 250, size=2))
        apart = first + second + float(rng.uniform(35, 50))
        middle = np.asarray(_inside(rng, cell, SMALL_CELL, apart / 2 + max(first, second)))
        axis = rotation[0] * (apart / 2)
        return [
            Body(Outline.ELLIPSOID, _point(middle + sign * axis), rotation, (radius,) * 3)
            for sign, radius in ((-1, first), (1, second))
        ]

    def _cuts_an_organelle(self, body: Body) -> bool:
        """Whether a small body lies across a membrane of a larger one; wholly inside or outside is fine."""
        margin = body.reach + 90.0
        low = _point(np.asarray(body.centre) - margin)
        high = _point(np.asarray(body.centre) + margin)
        for cell in _cells(low, high, LARGE_CELL):
            for organelle in self._organelle(cell):
                offset = [np.array([c - o]) for c, o in zip(body.centre, organelle.centre, strict=True)]
                depth = float(organelle.distance(*offset)[0])
                if any(abs(depth + shell) < margin for shell in organelle.shells):
                    return True
        return False


def _cells(low: Point, high: Point, edge: float) -> Iterator[Shape3]:
    # Bodies stay within half a cell of their own cell at most, so one more cell on every side is enough.
    ranges = [range(int(np.floor(a / edge)) - 1, int(np.floor(b / edge)) + 2) for a, b in zip(low, high, strict=True)]
    z, y, x = ranges
    return itertools.product(z, y, x)


def _meets(centre: Point, radius: float, low: Point, high: Point) -> bool:
    return all(a - radius <= c <= b + radius for c, a, b in zip(centre, low, high, strict=True))


def _inside(rng: np.random.Generator, cell: Shape3, edge: float, radius: float) -> Point:
    """Draw a centre such that a sphere of ``radius`` around it stays in the cell as far as it fits."""
    room = max(edge / 2 - radius, 0.0)
    return _point((np.asarray(cell) + 0.5) * edge + rng.uniform(-room, room, size=3))


def _unit(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return cast("npt.NDArray[np.float64]", vector / np.linalg.norm(vector))


def _rotation(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a rotation matrix uniformly, from a normalised quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _point(vector: npt.ArrayLike) -> Point:
    z, y, x = (float(v) for v in np.asarray(vector))
    return z, y, x
