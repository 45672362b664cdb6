"""Phantoms: the same whatever the boxes, with the promised ratio, truth and wedge."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Box, Span
from etsam_zarr.phantom.density import render
from etsam_zarr.phantom.imaging import KERNEL_RADIUS, convolve, signal_kernel
from etsam_zarr.phantom.volume import TILE, Phantom, PhantomSettings, SignalMeter, noise_scale

# Two tiles along z and two along x.
SETTINGS = PhantomSettings(shape=(72, 96, 144), seed=11)


def box(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Box:
    return Span(*z), Span(*y), Span(*x)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom(SETTINGS)


def test_boxes_agree_with_the_whole_bit_by_bit(phantom: Phantom) -> None:
    whole = phantom.signal(SETTINGS.whole), phantom.noise(SETTINGS.whole), phantom.truth(SETTINGS.whole)
    assert 0.005 < whole[2].mean() < 0.3
    other = Phantom(SETTINGS)
    for part in (box((60, 70), (5, 90), (120, 140)), box((0, 1), (0, 96), (0, 144)), box((71, 72), (95, 96), (0, 3))):
        where = tuple(span.as_slice() for span in part)
        assert np.array_equal(other.signal(part), whole[0][where])
        assert np.array_equal(other.noise(part), whole[1][where])
        assert np.array_equal(other.truth(part), whole[2][where])


def test_there_is_no_seam_between_tiles(phantom: Phantom) -> None:
    """A box across the edge of two tiles equals one computed in one piece, but for rounding."""
    start, shape = (TILE[0] - 8, 20, TILE[2] - 8), (16, 24, 16)
    padded_start = tuple(s - KERNEL_RADIUS for s in start)
    padded_shape = tuple(n + 2 * KERNEL_RADIUS for n in shape)
    density, membrane = render(
        phantom.scene, SETTINGS.bilayer, start=padded_start, shape=padded_shape, voxel_size=SETTINGS.voxel_size
    )
    direct = convolve(density, signal_kernel(SETTINGS.microscope, SETTINGS.voxel_size))
    part = box(*((s, s + n) for s, n in zip(start, shape, strict=True)))
    assert np.allclose(phantom.signal(part), direct, atol=2e-4 * np.ptp(direct))
    inner = membrane[(slice(KERNEL_RADIUS, -KERNEL_RADIUS),) * 3]
    assert np.mean(phantom.truth(part) != inner) < 1e-3


def test_seeds_differ_and_the_shape_only_crops(phantom: Phantom) -> None:
    part = box((10, 20), (10, 60), (10, 60))
    larger = Phantom(dataclasses.replace(SETTINGS, shape=(300, 3000, 3000)))
    assert np.array_equal(larger.signal(part), phantom.signal(part))
    another = Phantom(dataclasses.replace(SETTINGS, seed=12))
    assert not np.array_equal(another.truth(part), phantom.truth(part))
    assert abs(np.corrcoef(another.noise(part).ravel(), phantom.noise(part).ravel())[0, 1]) < 0.05


def test_noise_has_variance_one_and_scale_gives_the_ratio(phantom: Phantom) -> None:
    meter = SignalMeter.over(phantom)
    assert meter.variance == pytest.approx(phantom.signal(SETTINGS.whole).astype(np.float64).var(), rel=1e-6)
    noise = noise_scale(SETTINGS, meter.variance) * phantom.noise(SETTINGS.whole)
    assert meter.variance / noise.var() == pytest.approx(SETTINGS.snr, rel=0.05)


def test_membranes_are_dark(phantom: Phantom) -> None:
    truth = phantom.truth(SETTINGS.whole).astype(bool)
    signal = phantom.signal(SETTINGS.whole)
    assert signal[truth].mean() < signal[~truth].mean() - 0.5 * signal.std()


def test_membranes_touch_and_leave_the_volume() -> None:
    """In a slab of 0.6 micrometres some bodies cross the border, and some nearly touch one another."""
    scene = Phantom(SETTINGS).scene
    high = (640.0, 6000.0, 6000.0)
    bodies = scene.membranes((0.0, 0.0, 0.0), high)
    leaving = [b for b in bodies if any(not b.reach < c < h - b.reach for c, h in zip(b.centre, high, strict=True))]
    assert leaving
    pairs = [
        (a, b)
        for i, a in enumerate(bodies)
        for b in bodies[i + 1 :]
        if a.outline == b.outline and 0 < np.linalg.norm(np.subtract(a.centre, b.centre)) - a.reach - b.reach < 60
    ]
    assert pairs
    assert {len(body.shells) for body in bodies} >= {1, 2}
    assert {body.outline.value for body in bodies} == {"ellipsoid", "capsule", "disc"}


def test_carbon_is_drawn_where_asked_for() -> None:
    settings = PhantomSettings(shape=(32, 100, 100), seed=4, crowding=0, filaments=0, beads=0)
    with_carbon = Phantom(dataclasses.replace(settings, carbon=True))
    assert np.array_equal(with_carbon.truth(settings.whole), Phantom(settings).truth(settings.whole))
    difference = with_carbon.signal(settings.whole) - Phantom(settings).signal(settings.whole)
    assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shape": (0, 8, 8)}, "shape"),
        ({"seed": -1}, "seed"),
        ({"snr": 0.0}, "signal-to-noise"),
        ({"snr": float("nan")}, "signal-to-noise"),
        ({"voxel_size": 0.0}, "voxel size"),
        ({"crowding": 1.5}, "crowding"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, object], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
