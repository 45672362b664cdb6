"""Average precision and the curve against scikit-learn, on the same scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from etsam_zarr.errors import InputError
from etsam_zarr.evaluation import curve
from etsam_zarr.evaluation.curve import ScoreCounter, ScoreCurve

Array = npt.NDArray[Any]


def curve_of(scores: Array, truth: Array, folder: Path, pieces: int = 3) -> ScoreCurve:
    with ScoreCounter(scores.dtype, folder / "buckets") as counter:
        for part in np.array_split(np.arange(scores.size), pieces):
            counter.add(scores[part], truth[part])
        result = counter.curve()
    assert not (folder / "buckets").exists()
    return result


numbers = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 10.0, -10.0, math.inf, -math.inf]),
    st.floats(-12, 12, width=32),
)


@given(
    scores=hnp.arrays(np.float32, st.integers(1, 60), elements=numbers),
    seed=st.integers(0, 2**32),
    pieces=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_average_precision_equals_scikit_learn(
    scores: Array, seed: int, pieces: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    truth = np.random.default_rng(seed).random(scores.size) < 0.4
    truth[0] = True
    got = curve_of(scores, truth, tmp_path_factory.mktemp("c"), pieces)
    # scikit-learn refuses infinities: the same order with finite numbers.
    ranked = np.unique(scores + np.float32(0), return_inverse=True)[1].astype(np.float64)
    assert got.average_precision == pytest.approx(average_precision_score(truth, ranked), rel=1e-12)
    assert (got.positives, got.negatives) == (truth.sum(), (~truth).sum())


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int16", "uint16"])
def test_many_scores_of_every_type(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    truth = rng.random(200_000) < 0.1
    scores = rng.normal(truth * 2.0, 1.5)
    scores = (scores * 10 + (60 if "u" in dtype else 0)).clip(0 if dtype[0] == "u" else -128, 127).astype(dtype)
    got = curve_of(scores, truth, tmp_path)
    assert got.average_precision == pytest.approx(average_precision_score(truth, scores), rel=1e-12)

    precision, recall, thresholds = precision_recall_curve(truth, scores)
    theirs = {float(t): (p, r) for t, p, r in zip(thresholds, precision, recall, strict=False)}
    assert len(got.thresholds) > 30
    for t, p, r in zip(got.thresholds, got.precision, got.recall, strict=True):
        assert (p, r) == pytest.approx(theirs[t], rel=1e-12)
    assert list(got.recall) == sorted(got.recall)

    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert got.best_dice == pytest.approx(dice.max(), rel=1e-12)
    assert f1_score(truth, scores > np.dtype(dtype).type(got.best_threshold)) == pytest.approx(got.best_dice)


def test_more_than_one_piece_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "_ENTRIES_AT_ONCE", 1000)
    monkeypatch.setattr(curve, "_FEW_ENTRIES", 500)
    rng = np.random.default_rng(1)
    scores = rng.normal(size=5000).astype(np.float32)
    truth = rng.random(5000) < 0.5
    got = curve_of(scores, truth, tmp_path)
    assert got.average_precision == pytest.approx(average_precision_score(truth, scores), rel=1e-12)


def test_all_scores_equal(tmp_path: Path) -> None:
    """One threshold, which takes everything: precision is the share of positives."""
    got = curve_of(np.full(10, -10, np.float32), np.arange(10) < 3, tmp_path)
    assert got.average_precision == pytest.approx(0.3)


def test_no_positives_is_undefined(tmp_path: Path) -> None:
    got = curve_of(np.zeros(5, np.float32), np.zeros(5, bool), tmp_path)
    assert math.isnan(got.average_precision)
    assert got.negatives == 5


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN"), ScoreCounter("float32", tmp_path / "b") as counter:
        counter.add(np.array([1, np.nan], np.float32), np.array([True, False]))
    assert not (tmp_path / "b").exists()


def test_double_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float64"):
        ScoreCounter("float64", tmp_path / "b")
