"""What is in a phantom and where: membranes, particles, filaments and beads, drawn from a seed without end.

The scene fills all of space. Space is cut into cubic cells, one lattice for each kind of thing, and what a cell holds
depends only on the seed and the cell's index (:mod:`etsam_zarr.phantom.draws`). Anyone who draws a box asks for the
things of the cells around it: memory and time follow the box, never the volume, and two boxes agree where they meet.

Positions and lengths are in angstrom, in z, y, x order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from etsam_zarr.geometry import Shape3
from etsam_zarr.phantom.draws import draw_centre, draw_direction, draw_rotation, generator
from etsam_zarr.phantom.shapes import Blob, Body, Filament, Outline, Point, Wave, as_point

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
            direction = draw_direction(rng) * (2 * np.pi / length)
            shift = draw_direction(rng) * (UNDULATION_STEEPNESS * length)
            waves.append(Wave(as_point(direction), as_point(shift), float(rng.uniform(0, 2 * np.pi))))
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
            centre = draw_centre(rng, cell, PARTICLE_CELL, 0.0)
            radius = float(rng.uniform(18, 65))
            density = float(rng.uniform(0.35, 0.9))
            for _ in range(int(rng.integers(1, 4))):
                shift = draw_direction(rng) * (0.7 * radius)
                lobes.append(Blob(as_point(np.asarray(centre) + shift), radius * float(rng.uniform(0.6, 1)), density))
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
            centre = draw_centre(rng, cell, FILAMENT_CELL, 0.0)
            body = Body(Outline.CAPSULE, centre, draw_rotation(rng), (length, radius, 0.0))
            rods.append(Filament(body, 40.0 if hollow else 0.0, float(rng.uniform(0.4, 0.9))))
        return [rod for rod in rods if _meets(rod.body.centre, rod.body.reach, low, high)]

    def gold(self, low: Point, high: Point) -> list[Blob]:
        """Return the gold beads of a box, 30 to 50 angstrom in radius and far denser than anything else."""
        beads = []
        for cell in _cells(low, high, BEAD_CELL):
            rng = generator(self.seed, 5, *cell)
            if rng.random() < self.beads:
                beads.append(Blob(draw_centre(rng, cell, BEAD_CELL, 0.0), float(rng.uniform(30, 50)), 5.0))
        return [bead for bead in beads if _meets(bead.centre, bead.radius + 10, low, high)]

    def _organelle(self, cell: Shape3) -> list[Body]:
        rng = generator(self.seed, 1, *cell)
        rotation = draw_rotation(rng)
        kind = rng.choice(["vesicle", "double", "layers", "stack", "tubes"], p=[0.3, 0.25, 0.1, 0.2, 0.15])
        if kind in ("vesicle", "double", "layers"):
            axes = np.sort(rng.uniform(480, 1150, size=3))
            axes = np.maximum(axes, axes[-1] * 0.45)
            gap = float(rng.uniform(130, 240))
            shells = {"vesicle": (0.0,), "double": (0.0, gap), "layers": (0.0, gap, 2 * gap)}[str(kind)]
            centre = draw_centre(rng, cell, LARGE_CELL, float(axes[-1]))
            return [Body(Outline.ELLIPSOID, centre, rotation, as_point(axes), shells)]
        if kind == "stack":
            count = int(rng.integers(3, 7))
            half, radius = float(rng.uniform(70, 120)), float(rng.uniform(420, 800))
            # Neighbours sometimes touch: at a pitch of 2 half-thicknesses the outer faces coincide.
            pitch = 2 * half + float(rng.choice([30.0, 90.0, 160.0]))
            span = (count - 1) / 2 * pitch + half
            middle = np.asarray(draw_centre(rng, cell, LARGE_CELL, float(np.hypot(span, radius + half))))
            axis = rotation[0]
            return [
                Body(
                    Outline.DISC,
                    as_point(middle + axis * (pitch * (i - (count - 1) / 2))),
                    rotation,
                    (half, radius * float(rng.uniform(0.8, 1)), 0.0),
                )
                for i in range(count)
            ]
        radius = float(rng.uniform(110, 200))
        middle = np.asarray(draw_centre(rng, cell, LARGE_CELL, 1000.0))
        side = rotation[1]
        pitch = 2 * radius + float(rng.choice([35.0, 250.0]))
        return [
            Body(
                Outline.CAPSULE,
                as_point(middle + side * (pitch * i)),
                rotation,
                (float(rng.uniform(350, 700)), radius, 0.0),
            )
            for i in (-1, 0, 1)
        ]

    def _vesicles(self, cell: Shape3) -> list[Body]:
        rng = generator(self.seed, 2, *cell)
        kind = rng.choice(["none", "one", "pair", "tube"], p=[0.25, 0.4, 0.2, 0.15])
        rotation = draw_rotation(rng)
        if kind == "none":
            return []
        if kind == "one":
            axes = rng.uniform(0.75, 1, size=3) * rng.uniform(170, 400)
            shells = (0.0, 120.0) if axes.min() > 260 and rng.random() < 0.3 else (0.0,)
            centre = draw_centre(rng, cell, SMALL_CELL, float(axes.max()))
            return [Body(Outline.ELLIPSOID, centre, rotation, as_point(axes), shells)]
        if kind == "tube":
            half, radius = float(rng.uniform(150, 360)), float(rng.uniform(80, 150))
            return [
                Body(
                    Outline.CAPSULE,
                    draw_centre(rng, cell, SMALL_CELL, half + radius),
                    rotation,
                    (half, radius, 0.0),
                )
            ]
        # Two vesicles in contact: the mid-surfaces are one bilayer apart at the nearest point.
        first, second = (float(r) for r in rng.uniform(130, 250, size=2))
        apart = first + second + float(rng.uniform(35, 50))
        middle = np.asarray(draw_centre(rng, cell, SMALL_CELL, apart / 2 + max(first, second)))
        axis = rotation[0] * (apart / 2)
        return [
            Body(Outline.ELLIPSOID, as_point(middle + sign * axis), rotation, (radius,) * 3)
            for sign, radius in ((-1, first), (1, second))
        ]

    def _cuts_an_organelle(self, body: Body) -> bool:
        """Whether a small body lies across a membrane of a larger one; wholly inside or outside is fine."""
        margin = body.reach + 90.0
        low = as_point(np.asarray(body.centre) - margin)
        high = as_point(np.asarray(body.centre) + margin)
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
