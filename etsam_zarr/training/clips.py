"""Clips: a few slices of a few volumes with prompts and truth, drawn and changed at random, streamed from disk.

What is drawn depends on the seed and the number of the pass alone, so that a resumed training sees the same
clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from etsam_zarr.config import PromptMethod
from etsam_zarr.frames import to_frame
from etsam_zarr.geometry import Span
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.training.pairs import Image, Mask, TrainingVolume
from etsam_zarr.training.settings import Augmentation, TrainSettings

_FARTHEST = 500
_CLIPS_AHEAD = 2


class Clip:
    """Slices of several volumes side by side; T slices, B volumes, images of S x S pixels.

    (No dataclass: Lightning Fabric rebuilds those on their way into the model and refuses frozen ones.)

    Parameters
    ----------
    images
        Model input, float32, (T, B, 3, S, S).
    masks
        Truth, bool, (T, B, S, S).
    slices
        Slice indices that the model is told, the prompted ones first.
    prompts
        Prompt masks of the first slices, bool, (number of prompted slices, B, 1, S, S).
    lead
        How many slices after the prompted ones are walked without being learned from.
    """

    def __init__(
        self,
        images: torch.Tensor,
        masks: torch.Tensor,
        slices: tuple[int, ...],
        prompts: torch.Tensor,
        *,
        lead: int = 0,
    ) -> None:
        self.images = images
        self.masks = masks
        self.slices = slices
        self.prompts = prompts
        self.lead = lead

    def to(self, device: torch.device) -> Clip:
        """Return the clip on another device."""
        images, masks, prompts = (part.to(device) for part in (self.images, self.masks, self.prompts))
        return Clip(images, masks, self.slices, prompts, lead=self.lead)


class ClipSampler:
    """Draws clips from training volumes.

    Parameters
    ----------
    volumes
        To draw from; larger ones are drawn more often, in proportion to their depth.
    stage
        2 prompts with stage 1's masks; the volumes must know stage 1's output.
    """

    def __init__(
        self, volumes: Sequence[TrainingVolume], settings: TrainSettings, *, stage: int, image_size: int
    ) -> None:
        self._volumes = volumes
        self._settings = settings
        self._stage = stage
        self._image_size = image_size
        depths = np.array([volume.shape[0] for volume in volumes], dtype=float)
        self._share = depths / depths.sum()

    def draw(self, *key: int) -> Clip:
        """Return the clip of a key: (pass, process) or any other numbers."""
        rng = np.random.default_rng([self._settings.seed, self._stage, *key])
        chosen = [self._volumes[i] for i in rng.choice(len(self._volumes), self._settings.clips, p=self._share)]
        depth = min(volume.shape[0] for volume in chosen)
        if self._settings.recipe == "etsam":
            count = min(self._settings.clip_slices, depth)
            first = int(rng.integers(0, depth - count + 1))
            order = _Order((), (), tuple(range(first, first + count)), empty=True, shift=-first)
        else:
            order = self._inference_order(depth, rng)
        parts = [self._one(volume, order, depth, rng) for volume in chosen]
        images, masks, prompts = (torch.stack([part[i] for part in parts], dim=1) for i in range(3))
        told = (*order.prompted, *(z + order.shift for z in (*order.lead, *order.tracked)))
        return Clip(images, masks, told, prompts, lead=len(order.lead))

    def _inference_order(self, depth: int, rng: np.random.Generator) -> _Order:
        """Choose prompted slices as a run does, and consecutive slices somewhere after the first of them."""
        settings = self._settings
        empty = bool(rng.random() < settings.empty_prompts)
        by_stage1 = self._stage == 2 and not empty
        prompted = tuple(range(0, depth, settings.grid_interval)) if by_stage1 else (0,)
        count = min(settings.clip_slices, depth - 1)
        first = int(rng.integers(1, depth - count + 1))
        if len(prompted) > 3:  # the nearest ones stand for all
            near = sorted(prompted[1:], key=lambda z: abs(z - first - count / 2))[:2]
            prompted = (0, *sorted(near))
        lead = tuple(z for z in range(max(1, first - settings.lead_slices), first) if z not in prompted)
        tracked = tuple(z for z in range(first, first + count) if z not in prompted)
        far = len(prompted) == 1 and rng.random() < settings.far_prompts
        return _Order(prompted, lead, tracked, empty=empty, shift=int(rng.integers(0, _FARTHEST)) if far else 0)

    def _one(
        self, volume: TrainingVolume, order: _Order, depth: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        augmentation = self._settings.augmentation
        reverse = augmentation.reverse and rng.random() < 0.5
        # A part of a deep volume: slice 0 of the clip's walk may lie anywhere in it.
        start = int(rng.integers(0, volume.shape[0] - depth + 1))

        def place(z: int) -> int:
            return start + (depth - 1 - z if reverse else z)

        warp = _Warp.draw(augmentation, volume.shape[1:], self._image_size, rng)
        wanted = [place(z) for z in (*order.prompted, *order.lead, *order.tracked)]
        images, masks = [], []
        for image, mask in _read(volume, wanted):
            images.append(warp.image(image))
            masks.append(warp.mask(mask))
        prompts = [self._prompt(volume, place(z), warp, empty=order.empty)[None] for z in order.prompted]
        shape = (0, 1, self._image_size, self._image_size)
        stacked = torch.stack(prompts) if prompts else torch.zeros(shape, dtype=torch.bool)
        planes = _changed_greys(images, len(order.prompted), augmentation, rng)
        frames = torch.stack([to_frame(plane, self._image_size) for plane in planes])
        return frames, torch.stack(masks), stacked

    def _prompt(self, volume: TrainingVolume, z: int, warp: _Warp, *, empty: bool) -> torch.Tensor:
        if self._stage == 2 and not empty:
            return warp.mask(volume.stage1_logits(Span(z, z + 1))[0] > 0)
        method: PromptMethod = "zero" if empty else "grid_zero"
        return torch.from_numpy(fixed_prompt(method, self._image_size, self._image_size, self._settings.grid_interval))


def clips_ahead(sampler: ClipSampler, keys: Sequence[tuple[int, ...]]) -> Iterator[Clip]:
    """Yield the clips of ``keys`` in order, prepared by a thread while the model works."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare-clips") as pool:
        waiting: list[Future[Clip]] = []
        following = iter(keys)
        try:
            for key in following:
                waiting.append(pool.submit(sampler.draw, *key))
                if len(waiting) > _CLIPS_AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Order:
    prompted: tuple[int, ...]
    lead: tuple[int, ...]
    """Walked before the tracked ones, not learned from."""
    tracked: tuple[int, ...]
    empty: bool
    """Whether prompts are empty masks."""
    shift: int
    """Added to the indices of all but the prompted slices when the model is told them."""


def _read(volume: TrainingVolume, wanted: Sequence[int]) -> Iterator[tuple[Image, Mask]]:
    """Yield slices in the wanted order; runs of neighbours are read at once."""
    held: dict[int, tuple[Image, Mask]] = {}
    rest = sorted(set(wanted))
    while rest:
        stop = 1
        while stop < len(rest) and rest[stop] == rest[0] + stop:
            stop += 1
        images, masks = volume.planes(Span(rest[0], rest[0] + stop))
        held.update(zip(rest[:stop], zip(images, masks, strict=True), strict=True))
        rest = rest[stop:]
    for z in wanted:
        yield held[z]


@dataclass(frozen=True)
class _Warp:
    """One affine map for all slices of a clip, from a slice to the square that the model sees."""

    grid: torch.Tensor
    """Sampling positions as torch's grid_sample takes them, (1, S, S, 2)."""

    @classmethod
    def draw(
        cls, augmentation: Augmentation, size: tuple[int, int], image_size: int, rng: np.random.Generator
    ) -> _Warp:
        """Choose flips, rotation, shear, zoom, and in large slices which part is seen.

        A slice up to the image size fills the square, as in a run; of a larger one the square shows anything
        between a window of the image size and the whole. What is not warped is taken voxel by voxel.
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
    ) -> _Warp:
        flips = _flips(augmentation, rng)
        across = np.array(size[::-1])
        seen = np.minimum(across, image_size)
        first = rng.integers(0, across - seen + 1)
        return cls._affine(np.diag(flips * seen / across), (2 * first + seen) / across - 1, image_size)

    @classmethod
    def _affine(cls, matrix: npt.NDArray[np.float64], shift: npt.NDArray[np.float64], image_size: int) -> _Warp:
        theta = torch.tensor(np.column_stack([matrix, shift])[None], dtype=torch.float32)
        return cls(torch.nn.functional.affine_grid(theta, [1, 1, image_size, image_size], align_corners=False))

    def image(self, plane: Image) -> Image:
        """Map a slice; beyond its edges it is mirrored."""
        return self._sample(plane, "bilinear", "reflection")

    def mask(self, mask: Mask) -> torch.Tensor:
        """Map a truth or prompt mask, shape (S, S)."""
        return torch.from_numpy(self._sample(mask.astype(np.float32), "bilinear", "reflection") > 0.5)

    def _sample(self, plane: Image, mode: str, padding: str) -> Image:
        source = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
        sampled = torch.nn.functional.grid_sample(
            source, self.grid, mode=mode, padding_mode=padding, align_corners=False
        )
        image: Image = sampled[0, 0].numpy()
        return image


def _flips(augmentation: Augmentation, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw the signs of x and y."""
    x = -1.0 if augmentation.flip_x and rng.random() < 0.5 else 1.0
    y = -1.0 if augmentation.flip_y and rng.random() < 0.5 else 1.0
    return np.array([x, y])


def _changed_greys(
    images: list[Image], prompted: int, augmentation: Augmentation, rng: np.random.Generator
) -> list[Image]:
    """Change brightness and contrast of the clip, and drown some of the tracked slices in noise."""
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


def _with_random_phases(image: Image, rng: np.random.Generator) -> Image:
    """Return noise with the power spectrum of an image: it looks like the tomogram's own, and shows nothing."""
    noise = np.fft.rfft2(rng.standard_normal(image.shape))
    spectrum = np.abs(np.fft.rfft2(image)) * noise / np.maximum(np.abs(noise), 1e-12)
    surrogate: Image = np.fft.irfft2(spectrum, s=image.shape, axes=(0, 1)).astype(np.float32)
    return surrogate
