"""How the slices of a clip are changed at random: one affine map for all of them, their greys, and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from etsam_zarr.training.pairs import Image, Mask
from etsam_zarr.training.settings import Augmentation


@dataclass(frozen=True)
class Warp:
    """One affine map for all slices of a clip, from a slice to the square that the model sees."""

    grid: torch.Tensor
    """Sampling positions as torch's grid_sample takes them, (1, S, S, 2)."""

    @classmethod
    def draw(cls, augmentation: Augmentation, size: tuple[int, int], image_size: int, rng: np.random.Generator) -> Warp:
        """Choose flips, rotation, shear, zoom, and in large slices which part is seen.

        A slice up to the image size fills the square, as in a run; of a larger one the square shows anything
        between a window of the image size and the whole. What is not warped is taken voxel by voxel.

        Parameters
        ----------
        augmentation
            How much may be changed.
        size
            Of a slice (y, x), in voxels.
        image_size
            Edge S of the square, in pixels.
        rng
            Of the clip.
        """
        if augmentation.warped < 1 and rng.random() >= augmentation.warped:
            return cls._unwarped(augmentation, size, image_size, rng)
        turn, shear = (math.radians(rng.uniform(-d, d)) for d in (augmentation.degrees, augmentation.shear))
        zoom = rng.uniform(*augmentation.zoom)
        flips = _flips(augmentation, rng)
        window = rng.uniform(min(1.0, image_size / max(size)), 1.0)
        seen = window / zoom
        matrix = np.array(
            [
                [math.cos(turn), -math.sin(turn + shear)],
                [math.sin(turn), math.cos(turn + shear)],
            ]
        ) @ np.diag(flips * seen)
        return cls._affine(matrix, rng.uniform(-1, 1, size=2) * (1 - window), image_size)

    @classmethod
    def _unwarped(
        cls, augmentation: Augmentation, size: tuple[int, int], image_size: int, rng: np.random.Generator
    ) -> Warp:
        flips = _flips(augmentation, rng)
        across = np.array(size[::-1])
        seen = np.minimum(across, image_size)
        first = rng.integers(0, across - seen + 1)
        return cls._affine(np.diag(flips * seen / across), (2 * first + seen) / across - 1, image_size)

    @classmethod
    def _affine(cls, matrix: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], image_size: int) -> Warp:
        theta = torch.tensor(np.column_stack([matrix, shift])[None], dtype=torch.float32)
        return cls(torch.nn.functional.affine_grid(theta, [1, 1, image_size, image_size], align_corners=False))

    def image(self, plane: Image) -> Image:
        """Map a slice, float32, (y, x) to (S, S); beyond its edges it is mirrored."""
        return self._sample(plane, "bilinear", "reflection")

    def mask(self, mask: Mask) -> torch.Tensor:
        """Map a truth or prompt mask, bool, (y, x) to (S, S)."""
        return torch.from_numpy(self._sample(mask.astype(np.float32), "bilinear", "reflection") > 0.5)

    def _sample(self, plane: Image, mode: str, padding: str) -> Image:
        source = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
        sampled = torch.nn.functional.grid_sample(
            source, self.grid, mode=mode, padding_mode=padding, align_corners=False
        )
        image: Image = sampled[0, 0].numpy()
        return image


def changed_greys(
    images: list[Image], prompted: int, augmentation: Augmentation, rng: np.random.Generator
) -> list[Image]:
    """Change brightness and contrast of the clip, and drown some of the tracked slices in noise.

    Parameters
    ----------
    images
        The clip's slices, float32, (S, S) each, the prompted ones first.
    prompted
        How many of them are prompted.
    augmentation
        How much may be changed.
    rng
        Of the clip.

    Returns
    -------
    list of numpy.ndarray
        As ``images``; these stay as they are.
    """
    gain = np.float32(1 + rng.uniform(-1, 1) * augmentation.contrast)
    offset = np.float32(rng.uniform(-1, 1) * augmentation.brightness)
    changed: list[Image] = []
    for number, image in enumerate(images):
        mean = image.mean()
        plane = (image - mean) * gain + mean + offset
        # The first tracked slice has no neighbour's memory to fall back on.
        if number > prompted and rng.random() < augmentation.degraded_slices:
            share = np.float32(rng.uniform(0.4, 1.0))
            noise = _with_random_phases(plane - plane.mean(), rng)
            plane = (plane - plane.mean()) * np.sqrt(1 - share**2) + share * noise + plane.mean()
        changed.append(np.ascontiguousarray(plane, dtype=np.float32))
    return changed


def _flips(augmentation: Augmentation, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw the signs of x and y."""
    x = -1.0 if augmentation.flip_x and rng.random() < 0.5 else 1.0
    y = -1.0 if augmentation.flip_y and rng.random() < 0.5 else 1.0
    return np.array([x, y])


def _with_random_phases(image: Image, rng: np.random.Generator) -> Image:
    """Return noise with the power spectrum of an image: it looks like the tomogram's own, and shows nothing."""
    noise = np.fft.rfft2(rng.standard_normal(image.shape))
    spectrum = np.abs(np.fft.rfft2(image)) * noise / np.maximum(np.abs(noise), 1e-12)
    surrogate: Image = np.fft.irfft2(spectrum, s=image.shape, axes=(0, 1)).astype(np.float32)
    return surrogate
