"""From scores to masks: one streamed pass for any number of thresholds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import InputError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Span, cut
from etsam_zarr.masks import BoxSource
from etsam_zarr.ome.pyramid import write_unit


@dataclass(frozen=True)
class ThresholdTarget:
    """One mask to make."""

    threshold: float
    """A voxel is set where its score is above it."""
    destination: zarr.Array[Any]
    """uint8, of the scores' shape; receives 0 and 1."""


def threshold_scores(
    scores: BoxSource, targets: Sequence[ThresholdTarget], *, name: str = "the scores", on_event: OnEvent = ignore
) -> list[int]:
    """Write a mask for each threshold, reading the scores once.

    1. The volume is walked in layers as deep as the destinations' chunks, since a chunk must be written at once.
    2. Of each layer the scores are read slice by slice, and compared with every threshold.
    3. The layer of each mask is written. A killed pass is simply run again: it writes every chunk anew.

    Parameters
    ----------
    scores
        Shape (z, y, x).
    targets
        Thresholds and where their masks go; arrays of equal shape and chunks.
    name
        What to call the scores in errors.
    on_event
        Listener for progress.

    Returns
    -------
    voxels set, for each target

    Raises
    ------
    InputError
        A score is not a number.
    OutputError
        A mask cannot be written.

    Notes
    -----
    Memory: one byte a voxel of a layer for every target.
    """
    begun = time.monotonic()
    depth, height, width = scores.shape
    counts = [0] * len(targets)
    on_event(Started("threshold", total=depth))
    for layer in cut(Span(0, depth), write_unit(targets[0].destination)[0]):
        masks = np.empty((len(targets), layer.size, height, width), np.uint8)
        for index in range(layer.size):
            plane = scores.read(Span(layer.start + index, layer.start + index + 1))[0]
            if np.isnan(plane).any():
                raise InputError(f"{name}: slice {layer.start + index} holds values that are not numbers (NaN).")
            for mask, target in zip(masks, targets, strict=True):
                mask[index] = plane > target.threshold
            on_event(Advanced("threshold"))
        for place, (mask, target) in enumerate(zip(masks, targets, strict=True)):
            counts[place] += int(np.count_nonzero(mask))
            with disk_errors("writing the mask", str(target.destination.store_path)):
                target.destination[layer.as_slice()] = mask
    on_event(Finished("threshold", seconds=time.monotonic() - begun))
    return counts
