"""What is drawn is what the geometry says."""

from __future__ import annotations

import numpy as np
import pytest

from etsam_zarr.phantom.density import Bilayer, render
from etsam_zarr.phantom.scene import Scene
from etsam_zarr.phantom.shapes import Blob, Body, Filament, Outline, Point, Wave


class OneBody(Scene):
    """A scene of one body, not bent, and nothing else."""

    body: Body

    def undulation(self) -> tuple[Wave, ...]:
        return ()

    def membranes(self, low: Point, high: Point) -> list[Body]:
        return [self.body]

    def particles(self, low: Point, high: Point) -> list[Blob]:
        return []

    def rods(self, low: Point, high: Point) -> list[Filament]:
        return []

    def gold(self, low: Point, high: Point) -> list[Blob]:
        return []


def scene_of(body: Body) -> OneBody:
    scene = OneBody(0)
    object.__setattr__(scene, "body", body)
    return scene


def distances(shape: tuple[int, int, int], centre: Point, voxel_size: float) -> np.ndarray:
    grid = np.meshgrid(*(voxel_size * np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in grid))


@pytest.mark.parametrize(("shells", "tolerance"), [((0.0,), 0.2), ((0.0, 150.0), 2.5)])
def test_truth_of_a_sphere_is_exact(shells: tuple[float, ...], tolerance: float) -> None:
    centre, radius, shape = (301.0, 322.0, 288.0), 233.0, (62, 60, 61)
    body = Body(Outline.ELLIPSOID, centre, np.eye(3), (radius,) * 3, shells)
    bilayer = Bilayer()
    density, membrane = render(scene_of(body), bilayer, start=(0, 0, 0), shape=shape, voxel_size=10.0)
    r = distances(shape, centre, 10.0)
    depth = np.min([np.abs(r - (radius - shell)) for shell in shells], axis=0)
    expected = depth <= bilayer.half_extent
    # Central differences measure the slope of the field, with an error that grows with the depth of a shell: voxels
    # that near to the limit may fall either way.
    unsure = np.abs(depth - bilayer.half_extent) < tolerance
    assert np.array_equal(membrane[~unsure], expected[~unsure])
    assert unsure.mean() < 0.05
    assert density[depth > 80].max() == 0


def test_an_ellipsoid_is_as_thick_everywhere() -> None:
    """The truth of a membrane has the volume of area times thickness."""
    body = Body(Outline.ELLIPSOID, (400.0, 400.0, 400.0), np.eye(3), (200.0, 300.0, 360.0))
    bilayer = Bilayer()
    _, membrane = render(scene_of(body), bilayer, start=(0, 0, 0), shape=(80, 80, 80), voxel_size=10.0)
    # Knud Thomsen's formula for the area, good to 1 %.
    a, b, c = body.size
    power = 1.6075
    area = 4 * np.pi * (((a * b) ** power + (a * c) ** power + (b * c) ** power) / 3) ** (1 / power)
    assert membrane.sum() * 1000 == pytest.approx(area * 2 * bilayer.half_extent, rel=0.03)


def test_a_membrane_has_two_leaflets() -> None:
    bilayer = Bilayer(thickness=44.0, leaflet_width=7.0)
    depth = np.arange(-80.0, 80.0, 0.25)
    profile = bilayer.density(depth, voxel_size=2.0)
    peaks = depth[1:-1][(profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])]
    assert peaks == pytest.approx([-22.0, 22.0], abs=0.5)
    middle = profile[np.argmin(np.abs(depth))]
    assert middle < 0.1 * profile.max()


def test_mass_of_a_leaflet_does_not_depend_on_the_voxel_size() -> None:
    depth = np.arange(-200.0, 200.0, 0.25)
    fine, coarse = (Bilayer().density(depth, voxel_size).sum() for voxel_size in (2.0, 20.0))
    assert fine == pytest.approx(coarse, rel=1e-3)
