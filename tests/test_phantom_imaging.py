"""Contrast transfer, missing wedge and noise."""

from __future__ import annotations

import numpy as np
import pytest

from etsam_zarr.phantom.imaging import (
    KERNEL_RADIUS,
    Microscope,
    contrast_transfer,
    convolve,
    noise_kernel,
    signal_kernel,
    wavelength,
    white_noise,
)


def test_wavelength_of_300_kilovolt() -> None:
    assert wavelength(300) == pytest.approx(0.0196875, rel=1e-4)
    assert wavelength(200) == pytest.approx(0.0250793, rel=1e-4)


def test_contrast_transfer_starts_dark_and_turns_at_the_first_zero() -> None:
    microscope = Microscope(defocus=3.0, amplitude_contrast=0.07, b_factor=0.0)
    k = np.linspace(0, 1 / 20, 2001)
    values = contrast_transfer(k, microscope)
    assert values[0] == pytest.approx(-0.07)
    # sin(pi lambda D k^2 + asin(A)) = 0 where its argument is pi; Cs is negligible at such low frequencies.
    zero = np.sqrt((np.pi - np.arcsin(0.07)) / (np.pi * wavelength(300) * 3e4))
    assert k[np.argmax(values > 0)] == pytest.approx(zero, rel=2e-3)


def test_without_defocus_contrast_is_ideal() -> None:
    assert contrast_transfer(np.array([0.0, 0.01]), Microscope(defocus=0, b_factor=0)) == pytest.approx([-1, -1])


@pytest.mark.parametrize("make", [signal_kernel, noise_kernel])
def test_the_missing_wedge_is_missing(make: object) -> None:
    kernel = make(Microscope(tilt_range=60.0), 10.0)  # type: ignore[operator]
    power = np.abs(np.fft.fftn(kernel, s=(96, 96, 96), axes=(0, 1, 2))) ** 2
    frequency = np.fft.fftfreq(96)
    z, _, x = np.meshgrid(frequency, frequency, frequency, indexing="ij")
    radius = np.hypot(z, x)
    angle = np.rad2deg(np.arctan2(np.abs(z), np.abs(x)))
    ring = (radius > 0.15) & (radius < 0.3)
    # Cut to a finite radius, the kernel blurs the wedge's edge: look 12 degrees away from it.
    assert power[ring & (angle > 72)].mean() < 0.02 * power[ring & (angle < 48)].mean()
    full = make(Microscope(tilt_range=90.0), 10.0)  # type: ignore[operator]
    whole = np.abs(np.fft.fftn(full, s=(96, 96, 96), axes=(0, 1, 2))) ** 2
    assert whole[ring & (angle > 72)].mean() == pytest.approx(whole[ring & (angle < 48)].mean(), rel=0.1)


def test_noise_kernel_keeps_variance_one() -> None:
    assert np.sum(noise_kernel(Microscope(), 10.0).astype(float) ** 2) == pytest.approx(1, rel=1e-5)


def test_convolution_equals_the_direct_sum() -> None:
    rng = np.random.default_rng(0)
    padded = rng.standard_normal([2 * KERNEL_RADIUS + n for n in (2, 3, 1)]).astype(np.float32)
    kernel = rng.standard_normal((2 * KERNEL_RADIUS + 1,) * 3).astype(np.float32)
    result = convolve(padded, kernel)
    assert result.shape == (2, 3, 1)
    width = 2 * KERNEL_RADIUS + 1
    window = padded[1 : 1 + width, 2 : 2 + width, 0:width].astype(float)
    assert result[1, 2, 0] == pytest.approx(np.sum(window * kernel[::-1, ::-1, ::-1]), rel=1e-3)


def test_white_noise_depends_on_place_alone() -> None:
    whole = white_noise(5, (-10, 20, 0), (60, 40, 50))
    part = white_noise(5, (3, 31, 17), (20, 10, 30))
    assert np.array_equal(part, whole[13:33, 11:21, 17:47])
    assert whole.mean() == pytest.approx(0, abs=0.02)
    assert whole.std() == pytest.approx(1, abs=0.02)
    assert not np.array_equal(white_noise(6, (3, 31, 17), (20, 10, 30)), part)
