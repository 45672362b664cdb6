"""Compares a prediction with the truth, streaming over both: overlap, plane-wise means, tolerance, the exact curve."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.evaluation.agreement import Evaluation, MaskAgreement
from etsam_zarr.evaluation.curve import ScoreCounter
from etsam_zarr.evaluation.metrics import OverlapCounter, Tolerant
from etsam_zarr.events import Advanced, Finished, Notice, OnEvent, Started, ignore
from etsam_zarr.geometry import Box, Span, cut
from etsam_zarr.masks import BinaryMask, BoxSource, require_same_shape

# Voxels compared at once: some 30 bytes each, and 60 more where a tolerance asks for distances.
_SLAB_VOXELS = 2**22
# Logits are stored in layers of 16 slices, portal volumes in layers of a multiple of it.
_LAYER = 16


@dataclass(frozen=True)
class EvaluationSettings:
    """What to compare, and how."""

    thresholds: tuple[float, ...] = (0.0,)
    """For scores: each makes a mask by ``score > threshold``. Not used for masks."""
    roi: Box | None = None
    """Only these voxels; None takes all."""
    tolerance: float = 0.0
    """Also count with this tolerance, in voxels; 0 does not."""
    curve: bool = True
    """For scores: also the exact precision-recall curve (a pass over scratch space of 4 bytes a voxel)."""

    def __post_init__(self) -> None:
        if not self.thresholds or any(math.isnan(t) for t in self.thresholds):
            raise SettingsError(f"--threshold is {self.thresholds}; give one number or several.")
        if not 0 <= self.tolerance < math.inf:
            raise SettingsError(f"--tolerance is {self.tolerance}; it takes 0 (none) or more voxels.")


def evaluate_mask(
    prediction: BinaryMask, truth: BinaryMask, *, settings: EvaluationSettings | None = None, on_event: OnEvent = ignore
) -> Evaluation:
    """Compare a mask with the truth in one pass.

    Parameters
    ----------
    prediction, truth
        Masks of one shape (z, y, x).
    settings
        Region and tolerance; thresholds and curve are not used.
    on_event
        Listener for progress.

    Raises
    ------
    InputError
        The shapes differ, or one is not binary.
    SettingsError
        The region lies outside the volume.
    """
    settings = settings or EvaluationSettings()
    require_same_shape(prediction, truth, first_name=prediction.name, second_name=truth.name)
    box = _checked_roi(settings.roi, truth)
    tally = _Tally(None, box, settings.tolerance)
    for slab in _slabs(box, settings, on_event):
        tally.add(prediction.read(*slab.read), truth.read(*slab.read), slab)
    return Evaluation(box, (tally.agreement(),), None)


def evaluate_scores(
    scores: BoxSource,
    truth: BinaryMask,
    *,
    scratch: Path,
    settings: EvaluationSettings | None = None,
    name: str = "the scores",
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Compare scores with the truth at one or many thresholds, and over all of them, in one pass.

    Parameters
    ----------
    scores
        Logits or probabilities, shape (z, y, x), float32, float16 or integers of at most 16 bits.
    truth
        Mask of the same shape.
    scratch
        Folder for sorting float32 scores; made, and removed at the end.
    settings
        Thresholds, region, tolerance, curve.
    name
        What to call the scores in errors.
    on_event
        Listener for progress.

    Raises
    ------
    InputError
        The shapes differ, the truth is not binary, or scores are NaN or wider than float32.
    SettingsError
        The region lies outside the volume.
    OutputError
        The disk is full.
    """
    settings = settings or EvaluationSettings()
    require_same_shape(scores, truth, first_name=name, second_name=truth.name)
    box = _checked_roi(settings.roi, truth)
    tallies = [_Tally(threshold, box, settings.tolerance) for threshold in settings.thresholds]
    dtype = scores.read(*(Span(span.start, span.start + 1) for span in box)).dtype
    with ScoreCounter(dtype, scratch, name=name) as counter:
        for slab in _slabs(box, settings, on_event):
            values, true = scores.read(*slab.read), truth.read(*slab.read)
            if np.isnan(values).any():
                raise InputError(f"{name} hold values that are not numbers (NaN); no threshold means anything there.")
            for tally in tallies:
                tally.add(values > tally.threshold, true, slab)
            if settings.curve:
                counter.add(values[slab.inner], true[slab.inner])
        curve = counter.curve() if settings.curve else None
    if curve is not None and not curve.positives:
        on_event(Notice(f"{truth.name} is empty there: recall and the curve are undefined.", warning=True))
    return Evaluation(box, tuple(tally.agreement() for tally in tallies), curve)


@dataclass(frozen=True)
class _Slab:
    """Slices compared at once: ``read`` has a halo for the tolerance, ``inner`` cuts it off."""

    read: Box
    inner: slice
    start: int


class _Tally:
    """Counts for one mask."""

    def __init__(self, threshold: float | None, box: Box, tolerance: float) -> None:
        self.threshold = threshold
        z, y, x = box
        self._overlap = OverlapCounter((z.size, y.size, x.size))
        self._tolerant = Tolerant(tolerance) if tolerance > 0 else None

    def add(self, predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], slab: _Slab) -> None:
        self._overlap.add(predicted[slab.inner], true[slab.inner], start=slab.start)
        if self._tolerant is not None:
            self._tolerant = self._tolerant.plus(predicted, true, slab.inner)

    def agreement(self) -> MaskAgreement:
        return MaskAgreement(self.threshold, self._overlap.total(), self._overlap.plane_means(), self._tolerant)


def _slabs(box: Box, settings: EvaluationSettings, on_event: OnEvent) -> Iterator[_Slab]:
    """Yield the slabs of a region and report progress."""
    z, y, x = box
    size = max(1, _SLAB_VOXELS // max(1, y.size * x.size))
    if size > _LAYER:
        size -= size % _LAYER
    # Within the region only: a membrane beyond it must not make a voxel of it right.
    halo = math.ceil(settings.tolerance)
    begun = time.monotonic()
    on_event(Started("compare", total=z.size))
    for part in cut(z, size):
        low, high = max(z.start, part.start - halo), min(z.stop, part.stop + halo)
        inner = slice(part.start - low, part.stop - low)
        yield _Slab((Span(low, high), y, x), inner, part.start - z.start)
        on_event(Advanced("compare", part.size))
    on_event(Finished("compare", seconds=time.monotonic() - begun))


def _checked_roi(roi: Box | None, truth: BinaryMask) -> Box:
    z, y, x = (Span(0, n) for n in truth.shape)
    if roi is None:
        return z, y, x
    for name, span, whole in zip("zyx", roi, (z, y, x), strict=True):
        if not (span.size and span.stop <= whole.stop):
            raise SettingsError(
                f"--roi takes {span} along {name}, where {truth.name} has {whole.stop} voxels. Give a region inside "
                "it, start below stop."
            )
    return roi
