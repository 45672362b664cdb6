"""What microscope and reconstruction do to a scene: contrast transfer, missing wedge, noise.

All three are convolutions. Over a whole volume they would need the whole volume, so each kernel is cut to
:data:`KERNEL_RADIUS` voxels with a smooth window: what a voxel becomes depends only on its surroundings,
and any box can be imaged on its own.

Contrast: weak-phase object, ``CTF(k) = -sin(chi)`` with ``chi = pi lambda D k^2 - pi/2 Cs lambda^3 k^4 +
asin(amplitude contrast)`` for underfocus D, as in Rohou & Grigorieff, J. Struct. Biol. 192, 216 (2015),
https://doi.org/10.1016/j.jsb.2015.08.008; by the projection theorem the same factor falls on every plane of
the tomogram, hence on the sphere of radius k. Dense matter comes out dark, as in tomograms as they are
reconstructed.

Missing wedge: tilting about y up to +-a leaves only frequencies with ``|kz| <= |kx| tan a``: Lucic, Rigort &
Baumeister, J. Cell Biol. 202, 407 (2013), https://doi.org/10.1083/jcb.201304193.

Noise: shot noise of the images goes through the same reconstruction, so its power has the same wedge, and the
detector and interpolation dampen high frequencies. The signal-to-noise ratio is variance over variance:
Frank & Al-Ali, Nature 256, 376 (1975), https://doi.org/10.1038/256376a0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import scipy.fft

from etsam_zarr.geometry import Shape3
from etsam_zarr.phantom.draws import generator

Image = npt.NDArray[np.float32]

KERNEL_RADIUS = 20
"""Voxels. Beyond it the kernels are cut off."""
_DESIGN = 128
"""Edge of the grid in which kernels are computed before they are cut."""
NOISE_CELL = 32
"""Edge of a cell of the noise lattice in voxels: the unit that has a random generator of its own."""


@dataclass(frozen=True)
class Microscope:
    """How the scene is imaged."""

    defocus: float = 3.0
    """Underfocus in micrometres; 0 leaves out the contrast transfer function (contrast is then ideal)."""
    voltage: float = 300.0
    """Kilovolt."""
    spherical_aberration: float = 2.7
    """Millimetres."""
    amplitude_contrast: float = 0.1
    b_factor: float = 500.0
    """Square angstrom: dampens amplitudes by exp(-B k^2 / 4), all causes of blur taken together."""
    tilt_range: float = 60.0
    """Largest tilt in degrees, to both sides; 90 leaves no wedge missing."""


def wavelength(voltage: float) -> float:
    """Return the wavelength in angstrom of electrons accelerated by ``voltage`` kilovolt (relativistic).

    >>> round(wavelength(300), 5)
    0.01969
    """
    volts = voltage * 1e3
    return float(12.2643 / np.sqrt(volts * (1 + volts * 0.978466e-6)))


def contrast_transfer(k: npt.NDArray[np.float64], microscope: Microscope) -> npt.NDArray[np.float64]:
    """Return the factor on amplitudes at spatial frequencies ``k`` (1 / angstrom); negative is dark for dense."""
    envelope = np.exp(-microscope.b_factor * k**2 / 4)
    if microscope.defocus == 0:
        return cast("npt.NDArray[np.float64]", -envelope)
    electron = wavelength(microscope.voltage)
    chi = (
        np.pi * electron * microscope.defocus * 1e4 * k**2
        - np.pi / 2 * microscope.spherical_aberration * 1e7 * electron**3 * k**4
        + np.arcsin(microscope.amplitude_contrast)
    )
    return cast("npt.NDArray[np.float64]", -np.sin(chi) * envelope)


def signal_kernel(microscope: Microscope, voxel_size: float) -> Image:
    """Return the kernel that turns density into a noiseless tomogram: contrast transfer and missing wedge."""
    z, y, x = _frequencies(voxel_size)
    k = np.sqrt(z**2 + y**2 + x**2)
    return _cut(contrast_transfer(k, microscope) * _wedge(z, x, microscope.tilt_range, voxel_size))


def noise_kernel(microscope: Microscope, voxel_size: float) -> Image:
    """Return the kernel that colours white noise, scaled so that the variance of the result is 1."""
    z, y, x = _frequencies(voxel_size)
    k = np.sqrt(z**2 + y**2 + x**2) * voxel_size
    # Amplitude falls to about a third at Nyquist (0.5 per voxel): detector and interpolation.
    kernel = _cut(np.exp(-4.4 * k**2) * _wedge(z, x, microscope.tilt_range, voxel_size))
    scaled: Image = (kernel / np.sqrt(np.sum(kernel.astype(np.float64) ** 2))).astype(np.float32)
    return scaled


def convolve(padded: Image, kernel: Image) -> Image:
    """Convolve and return the part that needs nothing from outside: KERNEL_RADIUS less on every side."""
    shape = padded.shape
    ring = scipy.fft.rfftn(padded)
    ring *= scipy.fft.rfftn(kernel, s=shape)
    full = scipy.fft.irfftn(ring, s=shape)
    # In the circular convolution the kernel's centre sits at KERNEL_RADIUS: valid values begin at twice that.
    return np.ascontiguousarray(full[tuple(slice(2 * KERNEL_RADIUS, n) for n in shape)], np.float32)


def white_noise(seed: int, start: Shape3, shape: Shape3) -> Image:
    """Return standard normal numbers for the voxels of a box; a voxel has the same number in every box.

    Parameters
    ----------
    seed
        Of the phantom.
    start, shape
        The box in voxels; ``start`` may be negative.
    """
    noise = np.empty(shape, np.float32)
    firsts = [s // NOISE_CELL for s in start]
    lasts = [(s + n - 1) // NOISE_CELL for s, n in zip(start, shape, strict=True)]
    for i in range(firsts[0], lasts[0] + 1):
        for j in range(firsts[1], lasts[1] + 1):
            for k in range(firsts[2], lasts[2] + 1):
                # Key 9 keeps the noise apart from what the scene draws.
                cell = generator(seed, 9, i, j, k).standard_normal((NOISE_CELL,) * 3, dtype=np.float32)
                inside, outside = [], []
                for index, s, n in zip((i, j, k), start, shape, strict=True):
                    corner = index * NOISE_CELL
                    low, high = max(corner, s), min(corner + NOISE_CELL, s + n)
                    inside.append(slice(low - corner, high - corner))
                    outside.append(slice(low - s, high - s))
                noise[tuple(outside)] = cell[tuple(inside)]
    return noise


def _frequencies(voxel_size: float) -> tuple[npt.NDArray[np.float64], ...]:
    k: npt.NDArray[np.float64] = np.fft.fftfreq(_DESIGN, voxel_size).astype(np.float64)
    return k[:, None, None], k[None, :, None], k[None, None, :]


def _wedge(
    z: npt.NDArray[np.float64], x: npt.NDArray[np.float64], tilt_range: float, voxel_size: float
) -> npt.NDArray[np.float64]:
    """Return 1 where the tilt series has data, 0 in the missing wedge, with an edge of one frequency step."""
    if tilt_range >= 90:
        return np.ones(np.broadcast_shapes(z.shape, x.shape))
    angle = np.deg2rad(tilt_range)
    # Distance to the plane of the highest tilt, positive inside the data.
    inside = np.abs(x) * np.sin(angle) - np.abs(z) * np.cos(angle)
    step = 1 / (_DESIGN * voxel_size)
    return cast("npt.NDArray[np.float64]", np.clip(inside / step + 0.5, 0, 1))


def _cut(transfer: npt.NDArray[np.float64]) -> Image:
    """Return the real-space kernel of an even transfer function, cut by a smooth window."""
    full = np.ones((_DESIGN,) * 3) * transfer
    kernel = np.fft.fftshift(np.fft.ifftn(full).real)
    r = np.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1)
    middle = _DESIGN // 2
    part = slice(middle - KERNEL_RADIUS, middle + KERNEL_RADIUS + 1)
    # A Hann window of the radius, wide at the centre: it blurs the transfer function by half a kernel radius.
    radius = np.sqrt(r[:, None, None] ** 2 + r[None, :, None] ** 2 + r[None, None, :] ** 2) / (KERNEL_RADIUS + 1)
    window = np.where(radius < 1, np.cos(np.pi / 2 * np.minimum(radius, 1)) ** 2, 0)
    return (kernel[part, part, part] * window).astype(np.float32)
