"""ETSAM in memory, tile by tile: the standard for tiled runs, on whole arrays and with ``reference`` for each tile.

Where tiles lie is given; how they are blended is written down here a second time, in full resolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import reference
from reference import Volume

Starts = tuple[tuple[int, ...], tuple[int, ...]]
"""First rows and first columns of the tiles."""


def quadrants(predictors: tuple[Any, Any], volume: npt.NDArray[Any], method: str, **settings: Any) -> list[Volume]:
    """ETSAM's split processing: normalised as a whole, then four volumes that know nothing of each other."""
    normalized = reference.normalize(volume, method)
    results = [np.zeros_like(normalized), np.zeros_like(normalized)]
    half, middle = volume.shape[1] // 2, volume.shape[2] // 2
    for rows in (slice(0, half), slice(half, None)):
        for columns in (slice(0, middle), slice(middle, None)):
            part = reference.two_stages_of_normalized(predictors, normalized[:, rows, columns].copy(), **settings)
            for result, logits in zip(results, part, strict=True):
                result[:, rows, columns] = logits
    return results


def tiles(
    predictors: tuple[Any, Any], volume: npt.NDArray[Any], starts: Starts, size: int, method: str, *,
    stage1_prompt: str, stage2_prompt: str, grid_interval: int, stage1_logit_threshold: float,
) -> list[Volume]:  # fmt: skip
    """Overlapping tiles of ``size``: stage 1 of all, blended; then stage 2 of all, blended."""
    normalized = reference.normalize(volume, method)
    shape = (volume.shape[0], size, size)
    grid = reference.prompt_masks(stage1_prompt, shape, grid_interval, None)
    first = [reference.segment(predictors[0], part, grid) for part in _cut(normalized, starts, size)]
    low = max(np.float32(-5), min(part.min() for part in first))
    high = min(np.float32(5), max(part.max() for part in first))
    blended = _blend(first, starts, volume.shape)
    fused = normalized + (np.clip(blended, -5, 5) - low) / (high - low)
    masks = (blended > stage1_logit_threshold).astype(np.uint8)
    second = [
        reference.segment(predictors[1], part, reference.prompt_masks(stage2_prompt, shape, grid_interval, mask))
        for part, mask in zip(_cut(fused, starts, size), _cut(masks, starts, size), strict=True)
    ]
    return [blended, _blend(second, starts, volume.shape)]


def _cut(volume: npt.NDArray[Any], starts: Starts, size: int) -> list[npt.NDArray[Any]]:
    """The tiles row by row; one that is larger than the volume goes on with its mirror image."""
    parts = [volume[:, y : y + size, x : x + size] for y in starts[0] for x in starts[1]]
    margins = [((0, 0), (0, size - part.shape[1]), (0, size - part.shape[2])) for part in parts]
    return [np.pad(part, margin, mode="symmetric") for part, margin in zip(parts, margins, strict=True)]


def _blend(parts: list[Volume], starts: Starts, shape: tuple[int, ...]) -> Volume:
    _, height, width = shape
    size = parts[0].shape[1]
    result = np.zeros(shape, dtype=np.float32)
    rows, columns = _weights(starts[0], size, height), _weights(starts[1], size, width)
    places = [(y, x) for y in range(len(starts[0])) for x in range(len(starts[1]))]
    for (row, column), part in zip(places, parts, strict=True):
        y, x = starts[0][row], starts[1][column]
        weighted = part[:, : height - y, : width - x] * rows[row][None, :, None] * columns[column]
        result[:, y : y + size, x : x + size] += weighted
    return result


def _weights(starts: tuple[int, ...], size: int, length: int) -> list[npt.NDArray[np.float32]]:
    """Raised cosines over the overlaps of at most two tiles, ones elsewhere, normalised."""
    dense = np.ones((len(starts), length))
    for number, start in enumerate(starts):
        dense[number, :start] = dense[number, start + size :] = 0
        if number:
            overlap = starts[number - 1] + size - start
            rising = 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap)
            dense[number, start : start + overlap] = rising
            dense[number - 1, start : start + overlap] = rising[::-1]
    dense /= dense.sum(axis=0)
    return [row[start : start + size].astype(np.float32) for start, row in zip(starts, dense, strict=True)]
