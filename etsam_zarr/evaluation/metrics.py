"""How well a mask agrees with the truth: counts of voxels, and the ratios that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etsam_zarr.geometry import Shape3

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Plane = Literal["xy", "xz", "yz"]

PLANES: tuple[Plane, ...] = ("xy", "xz", "yz")
"""A plane's place in the tuple is the axis across it."""
RATIOS = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True)
class Confusion:
    """Voxels by what was predicted and what is true."""

    tp: int
    """Foreground in both."""
    fp: int
    """Predicted only."""
    fn: int
    """True only."""
    tn: int
    """Background in both."""

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn); NaN where both masks are empty."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union; NaN where both masks are empty."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the prediction that is true; NaN where nothing is predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the truth that is predicted; NaN where nothing is true."""
        return _ratio(self.tp, self.tp + self.fn)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


@dataclass
class OverlapCounter:
    """Counts a prediction against the truth, slab by slab, in total and for every plane of the three directions."""

    shape: Shape3
    """Of what will be counted in all."""
    voxels: int = 0
    _sums: dict[str, list[Counts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tp", "predicted", "true"):
            self._sums[name] = [np.zeros(n, np.int64) for n in self.shape]

    def add(self, predicted: Mask, true: Mask, *, start: int) -> None:
        """Count a slab (z, y, x) whose first slice is ``start``."""
        for name, mask in (("tp", predicted & true), ("predicted", predicted), ("true", true)):
            across, down, over = self._sums[name]
            flat = mask.view(np.uint8).sum(axis=0, dtype=np.int64)
            across[start : start + len(mask)] += [np.count_nonzero(plane) for plane in mask]
            down += flat.sum(axis=1)
            over += flat.sum(axis=0)
        self.voxels += predicted.size

    def total(self) -> Confusion:
        """Return the counts over all voxels."""
        tp, predicted, true = (int(self._sums[name][0].sum()) for name in ("tp", "predicted", "true"))
        return Confusion(tp, predicted - tp, true - tp, self.voxels - predicted - true + tp)

    def plane_means(self) -> dict[Plane, dict[str, float]]:
        """Return the mean over all planes of a direction of Dice, IoU, precision and recall.

        As in ETSAM's plane-wise evaluation (``evaluation/evaluate_etsam_plane_wise.py``, with torchmetrics'
        ``zero_division=0``), a ratio without a denominator counts as 0, so planes without any membrane pull the means
        down.
        """
        means: dict[Plane, dict[str, float]] = {}
        for axis, plane in enumerate(PLANES):
            tp, predicted, true = (self._sums[name][axis] for name in ("tp", "predicted", "true"))
            means[plane] = {
                "dice": _mean_ratio(2 * tp, predicted + true),
                "iou": _mean_ratio(tp, predicted + true - tp),
                "precision": _mean_ratio(tp, predicted),
                "recall": _mean_ratio(tp, true),
            }
        return means


@dataclass(frozen=True)
class Tolerant:
    """Agreement where a voxel counts as right when the other mask comes within ``tolerance`` voxels of it."""

    tolerance: float
    predicted: int = 0
    """Voxels of the prediction."""
    predicted_near: int = 0
    """Those within the tolerance of the truth."""
    true: int = 0
    """Voxels of the truth."""
    true_near: int = 0
    """Those within the tolerance of the prediction."""

    @property
    def precision(self) -> float:
        """Share of the prediction that lies near the truth."""
        return _ratio(self.predicted_near, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the truth that lies near the prediction."""
        return _ratio(self.true_near, self.true)

    @property
    def dice(self) -> float:
        """Harmonic mean of both."""
        return _ratio(2 * self.precision * self.recall, self.precision + self.recall)

    def plus(self, predicted: Mask, true: Mask, inner: slice) -> Tolerant:
        """Return the counts with those of slices ``inner`` of a slab added; the slices around are its halo."""
        near_true = within(true, self.tolerance)[inner]
        near_predicted = within(predicted, self.tolerance)[inner]
        predicted, true = predicted[inner], true[inner]
        return Tolerant(
            self.tolerance,
            self.predicted + int(np.count_nonzero(predicted)),
            self.predicted_near + int(np.count_nonzero(predicted & near_true)),
            self.true + int(np.count_nonzero(true)),
            self.true_near + int(np.count_nonzero(true & near_predicted)),
        )


def within(mask: Mask, distance: float) -> Mask:
    """Return the voxels at most ``distance`` voxels (Euclidean) from the mask."""
    from scipy import ndimage

    if not mask.any():
        return np.zeros_like(mask)
    near: Mask = ndimage.distance_transform_edt(~mask) <= distance
    return near


def ratios(of: Confusion | Tolerant) -> dict[str, float]:
    """Return the ratios by name, those that ``of`` has."""
    return {name: getattr(of, name) for name in RATIOS if hasattr(of, name)}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean_ratio(part: Counts, whole: Counts) -> float:
    values: npt.NDArray[Any] = np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
    return float(values.mean()) if values.size else math.nan
