"""Phantoms: simulated tomograms of any size with the exact truth of where their membranes are.

A phantom is computed tile by tile on a lattice that is fixed in space, always in tiles of the same shape,
so that the same seed gives the same bits whatever boxes are asked for (on one machine; another processor
may round the last digit of a Fourier transform differently).

>>> phantom = Phantom(PhantomSettings(shape=(16, 32, 32), seed=3))
>>> phantom.truth((Span(0, 16), Span(0, 32), Span(0, 32))).shape
(16, 32, 32)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Box, Shape3, Span, ceil_div
from etsam_zarr.phantom.density import CARBON_RADIUS, Bilayer, Carbon, render
from etsam_zarr.phantom.draws import generator
from etsam_zarr.phantom.imaging import (
    KERNEL_RADIUS,
    Image,
    Microscope,
    convolve,
    noise_kernel,
    signal_kernel,
    white_noise,
)
from etsam_zarr.phantom.scene import Scene

TILE: Shape3 = (64, 128, 128)
"""The fixed unit of computation in voxels. With its margins it makes Fourier transforms of 104 x 168 x
168."""
_TILES_KEPT = 4


@dataclass(frozen=True)
class PhantomSettings:
    """All that a phantom is made from. Equal settings give equal phantoms."""

    shape: Shape3
    """Voxels in z, y, x."""
    seed: int
    snr: float = 0.5
    """Variance of the noiseless tomogram over variance of the noise, both over the whole volume."""
    voxel_size: float = 10.0
    """Angstrom."""
    bilayer: Bilayer = field(default_factory=Bilayer)
    microscope: Microscope = field(default_factory=Microscope)
    crowding: float = 0.35
    """How full of globular particles, 0 to 1."""
    filaments: float = 0.5
    """How full of filaments, 0 to 1."""
    beads: float = 0.25
    """How full of gold beads, 0 to 1."""
    carbon: bool = False
    """Whether the edge of the carbon film passes through."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise SettingsError(f"A phantom of shape {self.shape} is empty: every axis takes at least 1 voxel.")
        if self.seed < 0:
            raise SettingsError(f"The seed is {self.seed}; it takes 0 or more.")
        if not 0 < self.snr < float("inf"):
            raise SettingsError(f"The signal-to-noise ratio is {self.snr}; it takes a finite number above 0, like 0.1.")
        if not 1 <= self.voxel_size <= 40:
            raise SettingsError(
                f"The voxel size is {self.voxel_size} A; membranes need 1 to 40 A to be drawn. Give --voxel-size 10."
            )
        if not 10 <= self.bilayer.thickness <= 200 or not 1 <= self.bilayer.leaflet_width <= 50:
            raise SettingsError(
                f"A membrane of {self.bilayer.thickness} A with leaflets of {self.bilayer.leaflet_width} A cannot be "
                "drawn: thickness takes 10 to 200 A, leaflets 1 to 50 A."
            )
        if not 10 <= self.microscope.tilt_range <= 90:
            raise SettingsError(
                f"The tilt range is {self.microscope.tilt_range} degrees; it takes 10 to 90 (to both sides)."
            )
        for name in ("crowding", "filaments", "beads"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it takes 0 (none) to 1 (everywhere).")

    @property
    def whole(self) -> Box:
        """The box of the whole volume."""
        z, y, x = (Span(0, n) for n in self.shape)
        return z, y, x


class Phantom:
    """A phantom as a function of space: any box of it can be computed alone, and boxes agree where they meet."""

    def __init__(self, settings: PhantomSettings) -> None:
        self.settings = settings
        self.scene = Scene(settings.seed, settings.crowding, settings.filaments, settings.beads)
        self._carbon = _carbon_edge(settings) if settings.carbon else None
        # Neighbouring boxes share tiles: the last few are kept.
        self._kept = functools.lru_cache(_TILES_KEPT)(self._compute_tile)

    def truth(self, box: Box) -> npt.NDArray[np.uint8]:
        """Return the truth of a box: 1 where a voxel's centre lies inside a membrane, else 0."""
        out = np.empty([span.size for span in box], np.uint8)
        for index, inside, outside in _pieces(box):
            out[outside] = self._kept(index)[1][inside]
        return out

    def signal(self, box: Box) -> Image:
        """Return the noiseless tomogram of a box."""
        out = np.empty([span.size for span in box], np.float32)
        for index, inside, outside in _pieces(box):
            out[outside] = self._kept(index)[0][inside]
        return out

    def noise(self, box: Box) -> Image:
        """Return the noise of a box, of variance 1."""
        out = np.empty([span.size for span in box], np.float32)
        for index, inside, outside in _pieces(box):
            out[outside] = self._noise_tile(index)[inside]
        return out

    def tiles(self) -> Iterator[Box]:
        """Walk the volume in the boxes that are computed at once, in raster order."""
        ranges = [range(ceil_div(n, size)) for n, size in zip(self.settings.shape, TILE, strict=True)]
        for index in itertools.product(*ranges):
            z, y, x = (
                Span(i * size, min((i + 1) * size, n))
                for i, size, n in zip(index, TILE, self.settings.shape, strict=True)
            )
            yield z, y, x

    @functools.cached_property
    def _signal_kernel(self) -> Image:
        return signal_kernel(self.settings.microscope, self.settings.voxel_size)

    @functools.cached_property
    def _noise_kernel(self) -> Image:
        return noise_kernel(self.settings.microscope, self.settings.voxel_size)

    def _compute_tile(self, index: Shape3) -> tuple[Image, npt.NDArray[np.bool_]]:
        start, shape = _padded(index)
        density, membrane = render(
            self.scene,
            self.settings.bilayer,
            start=start,
            shape=shape,
            voxel_size=self.settings.voxel_size,
            carbon=self._carbon,
        )
        inner = (slice(KERNEL_RADIUS, -KERNEL_RADIUS),) * 3
        return convolve(density, self._signal_kernel), np.ascontiguousarray(membrane[inner])

    def _noise_tile(self, index: Shape3) -> Image:
        return convolve(white_noise(self.settings.seed, *_padded(index)), self._noise_kernel)


class SignalMeter:
    """Adds up mean and variance tile by tile in float64; the order of tiles is fixed, so the result is too."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._squares = 0.0

    @classmethod
    def over(cls, phantom: Phantom) -> SignalMeter:
        """Measure a whole phantom."""
        meter = cls()
        for box in phantom.tiles():
            meter.add(phantom.signal(box))
        return meter

    def add(self, signal: Image) -> None:
        """Take in one tile."""
        values = signal.astype(np.float64)
        self._count += values.size
        self._sum += float(values.sum())
        self._squares += float(np.square(values).sum())

    @property
    def variance(self) -> float:
        """Variance of all that was added."""
        return max(self._squares / self._count - (self._sum / self._count) ** 2, 0.0)


def noise_scale(settings: PhantomSettings, variance: float) -> float:
    """Return the standard deviation of the noise that gives the wanted ratio to a signal of ``variance``.

    A volume without any signal gets noise as if it had a faint one: it is a phantom of empty ice.
    """
    return float(np.sqrt(max(variance, 1e-6) / settings.snr))


def _carbon_edge(settings: PhantomSettings) -> Carbon:
    """Place the hole in the film so that its edge passes through the middle half of the volume."""
    rng = generator(settings.seed, 6)
    extent = np.asarray(settings.shape) * settings.voxel_size
    through = extent * rng.uniform(0.3, 0.7, size=3)
    angle = rng.uniform(0, 2 * np.pi)
    return Carbon(
        (
            float(through[0]),
            float(through[1] + CARBON_RADIUS * np.sin(angle)),
            float(through[2] + CARBON_RADIUS * np.cos(angle)),
        )
    )


def _padded(index: Shape3) -> tuple[Shape3, Shape3]:
    z, y, x = (i * size - KERNEL_RADIUS for i, size in zip(index, TILE, strict=True))
    depth, height, width = (size + 2 * KERNEL_RADIUS for size in TILE)
    return (z, y, x), (depth, height, width)


def _pieces(box: Box) -> Iterator[tuple[Shape3, tuple[slice, ...], tuple[slice, ...]]]:
    """Cut a box along the tiles: tile index, where in the tile, where in the box."""
    ranges = [range(span.start // size, ceil_div(span.stop, size)) for span, size in zip(box, TILE, strict=True)]
    for i, j, k in itertools.product(*ranges):
        inside, outside = [], []
        for number, size, span in zip((i, j, k), TILE, box, strict=True):
            low, high = max(number * size, span.start), min((number + 1) * size, span.stop)
            inside.append(slice(low - number * size, high - number * size))
            outside.append(slice(low - span.start, high - span.start))
        yield (i, j, k), tuple(inside), tuple(outside)
