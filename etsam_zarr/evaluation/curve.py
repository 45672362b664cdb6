"""The exact precision-recall curve of scores that do not fit in memory.

Average precision needs, for every distinct score from the highest down, how many voxels have it and how many of
these are true. float16 has 65,536 values: two arrays of counts. float32 has 2**32, and a bilinear view uses millions
of them: so scores are sorted into buckets on disk by their first 12 bits while they stream by, and each bucket's
other 20 bits are counted afterwards. Memory is some 100 MB whatever the volume; disk 4 bytes a voxel, freed at the end.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import InputError
from etsam_zarr.evaluation.keys import just_below, ordered_keys, value_of_key
from etsam_zarr.volume import Array

Counts = npt.NDArray[np.int64]

POINTS = 1000
"""About how many points of the curve are kept for a figure; average precision uses all."""

_LOW_BITS = 20
_ENTRIES_AT_ONCE = 2**22
# Below this, sorting a bucket is faster than counting into 2**21 places.
_FEW_ENTRIES = 2**17


@dataclass(frozen=True)
class ScoreCurve:
    """Precision and recall over all thresholds."""

    average_precision: float
    """Sum of precision times gain in recall, as scikit-learn's ``average_precision_score``; NaN without positives."""
    positives: int
    """True voxels."""
    negatives: int
    """All others."""
    best_dice: float
    """Highest Dice that any threshold reaches."""
    best_threshold: float
    """The threshold that reaches it with ``score > threshold``."""
    recall: tuple[float, ...]
    """Of about a thousand points, rising."""
    precision: tuple[float, ...]
    """Of the same points."""
    thresholds: tuple[float, ...]
    """Of the same points, falling, for ``score >= threshold``."""


class ScoreCounter:
    """Takes scores and truth piece by piece, then gives their curve. Use it as a context manager.

    Parameters
    ----------
    dtype
        Type of the scores: float32, or one of at most 16 bits.
    scratch
        Folder for the buckets of float32 scores; made, and removed at the end.
    name
        What the scores are called in errors.

    Raises
    ------
    InputError
        The type is wider than float32.
    """

    def __init__(self, dtype: npt.DTypeLike, scratch: Path, *, name: str = "the scores") -> None:
        self._dtype = np.dtype(dtype)
        self._scratch = scratch
        self._name = name
        self._in_memory: Counts | None = None
        if self._dtype.itemsize <= 2:
            self._in_memory = np.zeros(2**17, np.int64)
        elif self._dtype != np.float32:
            raise InputError(
                f"{name}: the exact curve takes float32, float16 or integers of at most 16 bits, not {self._dtype}. "
                "Convert the scores to float32 first."
            )

    def __enter__(self) -> ScoreCounter:
        if self._in_memory is None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            with disk_errors("sorting scores", self._scratch):
                self._scratch.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, scores: Array, truth: npt.NDArray[np.bool_]) -> None:
        """Count scores and their truth, arrays of one shape.

        Raises
        ------
        InputError
            A score is not a number.
        OutputError
            The disk is full.
        """
        scores, truth = scores.reshape(-1), truth.reshape(-1)
        for start in range(0, scores.size, _ENTRIES_AT_ONCE):
            part = slice(start, start + _ENTRIES_AT_ONCE)
            self._add(scores[part], truth[part])

    def _add(self, scores: Array, truth: npt.NDArray[np.bool_]) -> None:
        if np.isnan(scores).any():
            raise InputError(f"{self._name} hold values that are not numbers (NaN); they cannot be ranked.")
        keys = ordered_keys(scores)
        if self._in_memory is not None:
            entries = keys.astype(np.int64) << 1 | truth
            self._in_memory += np.bincount(entries, minlength=self._in_memory.size)
            return
        bucket = (keys >> _LOW_BITS).astype(np.uint16)
        # On 16-bit numbers the stable sort is a radix sort.
        order = np.argsort(bucket, kind="stable")
        entries = ((keys & (2**_LOW_BITS - 1)) << 1 | truth)[order].astype(np.uint32)
        numbers, starts = np.unique(bucket[order], return_index=True)
        stops = [*starts[1:].tolist(), entries.size]
        with disk_errors("sorting scores", self._scratch):
            for number, start, stop in zip(numbers.tolist(), starts.tolist(), stops, strict=True):
                with self._bucket(number).open("ab") as file:
                    file.write(entries[start:stop].data)

    def curve(self) -> ScoreCurve:
        """Return the curve of everything added."""
        positives = negatives = 0
        for group in self._groups():
            positives += int(group.true.sum())
            negatives += int(group.false.sum())
        walk = _Walk(positives)
        for group in self._groups():
            walk.descend(group)
        return walk.result(positives, negatives, self._dtype)

    def _groups(self) -> Iterator[_Group]:
        """Yield the counts of all scores, highest first, in groups that fit in memory."""
        if self._in_memory is not None:
            yield _Group.of_dense(0, self._in_memory)
            return
        # Names are hexadecimal numbers of one width: they sort as numbers do.
        for path in sorted(self._scratch.iterdir(), reverse=True):
            first = int(path.name, 16) << _LOW_BITS
            if path.stat().st_size < _FEW_ENTRIES * 4:
                entries, counts = np.unique(np.fromfile(path, np.uint32), return_counts=True)
                yield _Group.of_sparse(first, entries.astype(np.int64), counts)
                continue
            dense = np.zeros(2 ** (_LOW_BITS + 1), np.int64)
            with path.open("rb") as file:
                while (entries := np.fromfile(file, np.uint32, _ENTRIES_AT_ONCE)).size:
                    dense += np.bincount(entries, minlength=dense.size)
            yield _Group.of_dense(first, dense)

    def _bucket(self, number: int) -> Path:
        return self._scratch / f"{number:03x}"


@dataclass(frozen=True)
class _Group:
    """Distinct scores, highest first, and how many voxels have each."""

    keys: Counts
    false: Counts
    true: Counts

    @classmethod
    def of_dense(cls, first: int, counts: Counts) -> _Group:
        """Take counts of false and true in turn, keys rising from ``first``."""
        present = np.flatnonzero(counts[0::2] + counts[1::2])[::-1]
        return cls(present + first, counts[0::2][present], counts[1::2][present])

    @classmethod
    def of_sparse(cls, first: int, entries: Counts, counts: Counts) -> _Group:
        """Take distinct, rising entries of a bucket (key, and truth in the lowest bit) and their counts."""
        keys, place = np.unique(entries >> 1, return_inverse=True)
        both = np.zeros((2, keys.size), np.int64)
        both[entries & 1, place] = counts
        return cls(keys[::-1] + first, both[0, ::-1], both[1, ::-1])


class _Walk:
    """Goes through the scores from the highest down, keeping what has been passed."""

    def __init__(self, positives: int) -> None:
        self._positives = positives
        self._tp = self._fp = 0
        self._area = 0.0
        self._best = (-1.0, 0)
        self._points: list[tuple[float, float, int]] = []

    def descend(self, group: _Group) -> None:
        """Pass the scores of a group."""
        if not group.keys.size or not self._positives:
            return
        tp = self._tp + np.cumsum(group.true)
        fp = self._fp + np.cumsum(group.false)
        precision = tp / (tp + fp)
        self._area += float((precision * group.true).sum())
        dice = 2 * tp / (tp + fp + self._positives)
        top = int(dice.argmax())
        if dice[top] > self._best[0]:
            self._best = (float(dice[top]), int(group.keys[top]))
        # Where recall enters a new thousandth: enough for a figure.
        step = tp * POINTS // self._positives
        chosen = np.flatnonzero(np.diff(step, prepend=self._tp * POINTS // self._positives))
        self._points += [(float(tp[i] / self._positives), float(precision[i]), int(group.keys[i])) for i in chosen]
        self._tp, self._fp = int(tp[-1]), int(fp[-1])

    def result(self, positives: int, negatives: int, dtype: np.dtype[Any]) -> ScoreCurve:
        """Return the curve."""
        if not positives:
            return ScoreCurve(math.nan, 0, negatives, math.nan, math.nan, (), (), ())
        best_dice, key = self._best
        return ScoreCurve(
            self._area / positives,
            positives,
            negatives,
            best_dice,
            just_below(value_of_key(key, dtype), dtype),
            tuple(point[0] for point in self._points),
            tuple(point[1] for point in self._points),
            tuple(value_of_key(point[2], dtype) for point in self._points),
        )
