"""Clips: a few slices of a few volumes with prompts and truth, drawn and changed at random, streamed from disk.

What is drawn depends on the seed and the number of the pass alone, so that a resumed training sees the same
clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from etsam_zarr.config import PromptMethod
from etsam_zarr.geometry import Span
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.sam.frames import to_frame
from etsam_zarr.training.augmentation import Warp, changed_greys
from etsam_zarr.training.pairs import Image, Mask, TrainingVolume
from etsam_zarr.training.settings import TrainSettings

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

        warp = Warp.draw(augmentation, volume.shape[1:], self._image_size, rng)
        wanted = [place(z) for z in (*order.prompted, *order.lead, *order.tracked)]
        images, masks = [], []
        for image, mask in _read(volume, wanted):
            images.append(warp.image(image))
            masks.append(warp.mask(mask))
        prompts = [self._prompt(volume, place(z), warp, empty=order.empty)[None] for z in order.prompted]
        shape = (0, 1, self._image_size, self._image_size)
        stacked = torch.stack(prompts) if prompts else torch.zeros(shape, dtype=torch.bool)
        planes = changed_greys(images, len(order.prompted), augmentation, rng)
        frames = torch.stack([to_frame(plane, self._image_size) for plane in planes])
        return frames, torch.stack(masks), stacked

    def _prompt(self, volume: TrainingVolume, z: int, warp: Warp, *, empty: bool) -> torch.Tensor:
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
