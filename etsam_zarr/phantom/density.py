"""Turns a box of the scene into density and truth: which voxels are membrane, and how dense every voxel is.

A membrane is two parallel leaflets with a Gaussian profile each, the phosphate layers, and between and around
them water and lipid tails that hardly differ from each other in an electron microscope: Nagle &
Tristram-Nagle, "Structure of lipid bilayers", Biochim. Biophys. Acta 1469, 159 (2000),
https://doi.org/10.1016/S0304-4157(00)00016-2. The distance between the leaflets is that between phosphates,
35.6 to 42.5 A in rat liver: Mitra et al., PNAS 101, 4083 (2004), https://doi.org/10.1073/pnas.0307332101.
The same model of a membrane makes the simulated tomograms that ETSAM was trained on (PolNet,
https://github.com/anmartinezs/polnet).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from etsam_zarr.geometry import Shape3
from etsam_zarr.phantom.scene import Scene
from etsam_zarr.phantom.shapes import Blob, Body, Floats, Point

HALF_MAXIMUM = float(np.sqrt(2 * np.log(2)))
"""Half width at half maximum of a Gaussian, in standard deviations."""

CARBON_RADIUS = 6000.0
"""Radius of the hole in the support film, 1.2 micrometres across as in the common grids."""
CARBON_THICKNESS = 120.0
CARBON_DENSITY = 0.5


@dataclass(frozen=True)
class Bilayer:
    """The profile of a membrane across its thickness."""

    thickness: float = 40.0
    """Distance between the centres of the two leaflets in angstrom."""
    leaflet_width: float = 8.0
    """Standard deviation of one leaflet in angstrom; head groups and the proteins among them."""

    @property
    def half_extent(self) -> float:
        """How far from its middle a membrane reaches in the truth: to the half maximum of the outer flank."""
        return self.thickness / 2 + HALF_MAXIMUM * self.leaflet_width

    def density(self, depth: Floats, voxel_size: float) -> Floats:
        """Return the density at signed distances from the middle, averaged over a voxel.

        A voxel averages over its width, which widens the Gaussian by the variance of a box, voxel^2 / 12, and
        lowers its peak so that the mass of a leaflet stays.
        """
        width = float(np.sqrt(self.leaflet_width**2 + voxel_size**2 / 12))
        half = self.thickness / 2
        gain = self.leaflet_width / width
        inner = np.exp(-(((depth - half) / width) ** 2) / 2)
        outer = np.exp(-(((depth + half) / width) ** 2) / 2)
        return cast(Floats, gain * (inner + outer))


@dataclass(frozen=True)
class Carbon:
    """The edge of the carbon film: everything outside a cylinder along z, in a layer of the film's thickness."""

    centre: Point
    """Middle of the hole; z is the middle of the film."""


def render(
    scene: Scene,
    bilayer: Bilayer,
    *,
    start: Shape3,
    shape: Shape3,
    voxel_size: float,
    carbon: Carbon | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Draw a box of the scene.

    Parameters
    ----------
    scene, bilayer
        What is there, and the profile of its membranes.
    start, shape
        The box in voxels of the endless lattice; ``start`` may be negative.
    voxel_size
        In angstrom.
    carbon
        The film's edge, if there is one.

    Returns
    -------
    density : float32 array of ``shape``
        In units of the peak of one leaflet; 0 is ice.
    membrane : bool array of ``shape``
        True where the voxel's centre lies inside a membrane (see :attr:`Bilayer.half_extent`).
    """
    # One voxel more on every side: slopes are central differences.
    grid = _BentGrid(scene, (start[0] - 1, start[1] - 1, start[2] - 1), _grown(shape, 2), voxel_size)
    density = np.zeros(_grown(shape, 2), np.float32)
    membrane = np.zeros(density.shape, np.bool_)
    for body in scene.membranes(grid.low, grid.high):
        _add_membrane(density, membrane, grid, body, bilayer)
    inner = (slice(1, -1),) * 3
    other = np.zeros_like(density)
    for rod in scene.rods(grid.low, grid.high):
        box = grid.box_around(rod.body.centre, rod.body.reach)
        if box is not None:
            depth = rod.body.distance(*grid.offsets(box, rod.body.centre))
            if rod.wall:
                depth = np.abs(depth + rod.wall / 2) - rod.wall / 2
            _add_filled(other, box, depth, rod.density, voxel_size)
    for blob in (*scene.particles(grid.low, grid.high), *scene.gold(grid.low, grid.high)):
        _add_blob(other, grid, blob, voxel_size)
    if carbon is not None:
        _add_carbon(other, grid, carbon, voxel_size)
    # What floats in the cell does not pass through membranes.
    density = np.where(membrane, density, np.maximum(density, other))
    return np.ascontiguousarray(density[inner]), np.ascontiguousarray(membrane[inner])


class _BentGrid:
    """Coordinates of the voxels of a box after the undulation, relative to the box's corner."""

    def __init__(self, scene: Scene, start: Shape3, shape: Shape3, voxel_size: float) -> None:
        self.shape = shape
        self.voxel_size = voxel_size
        self.corner = tuple(s * voxel_size for s in start)
        axes = [c + voxel_size * np.arange(n) for c, n in zip(self.corner, shape, strict=True)]
        shift = [np.zeros(shape, np.float32) for _ in range(3)]
        for wave in scene.undulation():
            # sin(a + b + c) from the sines of the axes: three small outer products, no large sine.
            phases = [k * axis for k, axis in zip(wave.direction, axes, strict=True)]
            phases[0] = phases[0] + wave.phase
            plane = phases[0][:, None] + phases[1][None, :]
            sine, cosine = (f(plane).astype(np.float32)[:, :, None] for f in (np.sin, np.cos))
            along_sine, along_cosine = (f(phases[2]).astype(np.float32)[None, None, :] for f in (np.sin, np.cos))
            value = sine * along_cosine
            value += cosine * along_sine
            for axis_shift, amplitude in zip(shift, wave.displacement, strict=True):
                axis_shift += np.float32(amplitude) * value
        local = [(axis - c).astype(np.float32) for axis, c in zip(axes, self.corner, strict=True)]
        self._bent = (
            local[0][:, None, None] + shift[0],
            local[1][None, :, None] + shift[1],
            local[2][None, None, :] + shift[2],
        )
        margin = scene.largest_shift + 60.0
        self._margin = margin
        self.low: Point = tuple(float(axis[0] - margin) for axis in axes)  # type: ignore[assignment]
        self.high: Point = tuple(float(axis[-1] + margin) for axis in axes)  # type: ignore[assignment]

    def box_around(self, centre: Point, radius: float) -> tuple[slice, slice, slice] | None:
        """Return the voxels that a body around ``centre`` can reach once bent, None where it misses the box."""
        spans = []
        for c, corner, size in zip(centre, self.corner, self.shape, strict=True):
            reach = radius + self._margin
            first = int(np.floor((c - reach - corner) / self.voxel_size)) - 1
            last = int(np.ceil((c + reach - corner) / self.voxel_size)) + 2
            first, last = max(first, 0), min(last, size)
            if last - first < 3:
                return None
            spans.append(slice(first, last))
        return spans[0], spans[1], spans[2]

    def offsets(self, box: tuple[slice, slice, slice], centre: Point) -> list[Floats]:
        """Return bent positions relative to ``centre``, float32, in angstrom."""
        return [
            bent[box] - np.float32(c - corner) for bent, c, corner in zip(self._bent, centre, self.corner, strict=True)
        ]


def _add_membrane(
    density: npt.NDArray[np.float32],
    membrane: npt.NDArray[np.bool_],
    grid: _BentGrid,
    body: Body,
    bilayer: Bilayer,
) -> None:
    """Draw the shells of one body, at distances measured by the field over its slope."""
    box = grid.box_around(body.centre, body.reach)
    if box is None:
        return
    field = body.distance(*grid.offsets(box, body.centre))
    widest = bilayer.half_extent + 4 * bilayer.leaflet_width
    deepest = max(body.shells)
    # Only voxels near a shell are worth a slope; bending changes distances by well under a factor of 2.
    near = (field > -(deepest + 2 * widest)) & (field < 2 * widest)
    if not near[1:-1, 1:-1, 1:-1].any():
        return
    interior = np.zeros(field.shape, np.bool_)
    interior[1:-1, 1:-1, 1:-1] = True
    flat = np.flatnonzero(near & interior)
    values = field.ravel()
    steps = (field.shape[1] * field.shape[2], field.shape[2], 1)
    slope_squared = np.zeros(flat.size, np.float32)
    for step in steps:
        slope_squared += ((values[flat + step] - values[flat - step]) / np.float32(2 * grid.voxel_size)) ** 2
    distance = values[flat] / np.maximum(np.sqrt(slope_squared), np.float32(0.2))
    where = np.unravel_index(flat, field.shape)
    target = tuple(index + part.start for index, part in zip(where, box, strict=True))
    for shell in body.shells:
        depth = distance + np.float32(shell)
        close = np.abs(depth) < widest
        here = tuple(index[close] for index in target)
        density[here] = np.maximum(density[here], bilayer.density(depth[close], grid.voxel_size))
        membrane[here] |= np.abs(depth[close]) <= bilayer.half_extent


def _add_filled(
    density: npt.NDArray[np.float32],
    box: tuple[slice, slice, slice],
    depth: Floats,
    value: float,
    voxel_size: float,
) -> None:
    """Fill where ``depth`` is negative, with an edge one voxel wide."""
    share = np.clip(0.5 - depth / voxel_size, 0, 1)
    density[box] = np.maximum(density[box], (value * share).astype(np.float32))


def _add_blob(density: npt.NDArray[np.float32], grid: _BentGrid, blob: Blob, voxel_size: float) -> None:
    """Fill a ball; balls are rigid, so their centre is not bent along."""
    spans, squares = [], []
    for c, corner, size in zip(blob.centre, grid.corner, grid.shape, strict=True):
        first = max(int(np.floor((c - blob.radius - corner) / voxel_size)) - 1, 0)
        last = min(int(np.ceil((c + blob.radius - corner) / voxel_size)) + 2, size)
        if last <= first:
            return
        spans.append(slice(first, last))
        squares.append((corner + voxel_size * np.arange(first, last) - c) ** 2)
    radius = np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])
    _add_filled(density, (spans[0], spans[1], spans[2]), radius - blob.radius, blob.density, voxel_size)


def _add_carbon(density: npt.NDArray[np.float32], grid: _BentGrid, carbon: Carbon, voxel_size: float) -> None:
    z, y, x = (
        corner + voxel_size * np.arange(size) - c
        for corner, size, c in zip(grid.corner, grid.shape, carbon.centre, strict=True)
    )
    beyond = np.hypot(y[:, None], x[None, :]) - CARBON_RADIUS
    layer = np.abs(z) - CARBON_THICKNESS / 2
    depth = np.maximum(layer[:, None, None], -beyond[None, :, :])
    everywhere = (slice(None), slice(None), slice(None))
    _add_filled(density, everywhere, depth, CARBON_DENSITY, voxel_size)


def _grown(shape: Shape3, by: int) -> Shape3:
    z, y, x = shape
    return z + by, y + by, x + by
