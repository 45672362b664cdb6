"""Evaluation against scikit-learn and plain numpy, whole volumes against slabs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from membrane_masks import sheets
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, precision_score, recall_score

from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.evaluation import comparison
from etsam_zarr.evaluation.comparison import EvaluationSettings, evaluate_mask, evaluate_scores
from etsam_zarr.evaluation.figure import save_curve_figure
from etsam_zarr.events import Event, Notice
from etsam_zarr.geometry import Span
from etsam_zarr.masks import ArrayBox, BinaryMask

Array = npt.NDArray[Any]
METRICS = {"dice": f1_score, "iou": jaccard_score, "precision": precision_score, "recall": recall_score}


def example(seed: int = 0, shape: tuple[int, ...] = (21, 24, 26)) -> tuple[Array, Array]:
    """Truth, and scores that know something of it."""
    truth = sheets(seed, shape)
    truth[:3] = False  # planes without any membrane, as the ends of tomograms have
    noise = np.random.default_rng(seed).normal(size=shape)
    return truth, (ndimage.gaussian_filter(truth * 4.0, 1) + noise - 1).astype(np.float32)


@pytest.fixture(autouse=True)
def thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slabs even for small volumes."""
    monkeypatch.setattr(comparison, "_SLAB_VOXELS", 24 * 26 * 5)


def test_scores_at_many_thresholds_equal_scikit_learn(tmp_path: Path) -> None:
    truth, scores = example()
    options = EvaluationSettings(thresholds=(-1.0, -0.25, 0.5))
    found = evaluate_scores(ArrayBox(scores), BinaryMask(truth), scratch=tmp_path / "s", settings=options)
    for agreement in found.masks:
        mask = scores > agreement.threshold
        for name, theirs in METRICS.items():
            assert getattr(agreement.overall, name) == pytest.approx(theirs(truth.ravel(), mask.ravel()), rel=1e-12)
        assert agreement.overall.tn == (~truth & ~mask).sum()
    assert found.curve is not None
    assert found.curve.average_precision == pytest.approx(
        average_precision_score(truth.ravel(), scores.ravel()), rel=1e-12
    )


def test_plane_means_equal_plane_by_plane(tmp_path: Path) -> None:
    """As ETSAM does it: a ratio for every plane, 0 without a denominator, then the mean."""
    truth, scores = example()
    mask = scores > 0.7
    mask[5] = False
    found = evaluate_mask(BinaryMask(mask), BinaryMask(truth)).masks[0]
    for axis, plane in enumerate(("xy", "xz", "yz")):
        for name, theirs in METRICS.items():
            each = [
                theirs(truth.take(i, axis).ravel(), mask.take(i, axis).ravel(), zero_division=0)
                for i in range(truth.shape[axis])
            ]
            assert found.planes[plane][name] == pytest.approx(np.mean(each), rel=1e-12)


def test_agrees_with_monai() -> None:
    """The library that ETSAM's own evaluation uses for Dice and IoU."""
    metrics = pytest.importorskip("monai.metrics")
    import torch

    truth, scores = example()
    found = evaluate_mask(BinaryMask(scores > 0), BinaryMask(truth)).masks[0].overall
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (scores > 0, truth))
    assert found.dice == pytest.approx(float(metrics.compute_dice(a, b)), rel=1e-6)
    assert found.iou == pytest.approx(float(metrics.compute_iou(a, b)), rel=1e-6)


@given(
    seed=st.integers(0, 1000),
    tolerance=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    starts=st.tuples(*[st.integers(0, 6)] * 3),
    sizes=st.tuples(*[st.integers(1, 15)] * 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tolerance_and_region(
    seed: int, tolerance: float, starts: tuple[int, int, int], sizes: tuple[int, int, int]
) -> None:
    """Slabs with halos against whole distance maps of the region."""
    truth, scores = example(seed)
    mask = scores > 0.9
    z, y, x = (Span(a, a + n) for a, n in zip(starts, sizes, strict=True))
    options = EvaluationSettings(roi=(z, y, x), tolerance=tolerance)
    found = evaluate_mask(BinaryMask(mask), BinaryMask(truth), settings=options).masks[0]
    box = (z.as_slice(), y.as_slice(), x.as_slice())
    p, t = mask[box], truth[box]
    assert (found.overall.tp, found.overall.fp) == ((p & t).sum(), (p & ~t).sum())
    near_t = ndimage.distance_transform_edt(~t) <= tolerance if t.any() else np.zeros_like(t)
    near_p = ndimage.distance_transform_edt(~p) <= tolerance if p.any() else np.zeros_like(p)
    assert found.tolerant is not None
    assert (found.tolerant.predicted_near, found.tolerant.true_near) == ((p & near_t).sum(), (t & near_p).sum())


def test_json_and_row_hold_everything(tmp_path: Path) -> None:
    truth, scores = example()
    options = EvaluationSettings(thresholds=(0.0, 1.0), tolerance=1)
    found = evaluate_scores(ArrayBox(scores), BinaryMask(truth), scratch=tmp_path / "s", settings=options)
    record = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert record["masks"][1]["dice"] == found.masks[1].overall.dice
    assert record["curve"]["average_precision"] == found.curve.average_precision  # type: ignore[union-attr]
    row = found.as_row()
    assert row["dice@1"] == found.masks[1].overall.dice
    assert {"xz_iou@0", "tolerant_recall@0", "auprc"} <= set(row)


def test_empty_truth_is_undefined_and_said(tmp_path: Path) -> None:
    events: list[Event] = []
    found = evaluate_scores(
        ArrayBox(np.full((4, 5, 6), -9, np.float32)),
        BinaryMask(np.zeros((4, 5, 6), np.uint8), name="truth.mrc"),
        scratch=tmp_path / "s",
        on_event=events.append,
    )
    assert math.isnan(found.masks[0].overall.dice)
    assert found.as_json()["curve"]["average_precision"] is None
    assert any(isinstance(event, Notice) and event.warning for event in events)


def test_masks_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"a.mrc is 2 x 3 x 4 voxels, b.mrc is 2 x 3 x 5"):
        evaluate_mask(BinaryMask(np.zeros((2, 3, 4)), name="a.mrc"), BinaryMask(np.zeros((2, 3, 5)), name="b.mrc"))


def test_truth_with_several_labels() -> None:
    labels = np.array([[[0, 1, 2]]])
    with pytest.raises(InputError, match=r"truth.mrc is not a binary mask.*--any-label"):
        evaluate_mask(BinaryMask(labels > 0), BinaryMask(labels, name="truth.mrc"))
    found = evaluate_mask(BinaryMask(labels > 0), BinaryMask(labels, any_label=True))
    assert found.masks[0].overall.dice == 1


def test_region_outside() -> None:
    mask = BinaryMask(np.zeros((4, 4, 4)))
    options = EvaluationSettings(roi=(Span(0, 4), Span(0, 5), Span(0, 4)))
    with pytest.raises(SettingsError, match="0:5 along y"):
        evaluate_mask(mask, mask, settings=options)


def test_not_a_number(tmp_path: Path) -> None:
    scores = np.zeros((2, 2, 2), np.float32)
    scores[1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        evaluate_scores(ArrayBox(scores), BinaryMask(np.ones((2, 2, 2))), scratch=tmp_path / "s")


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_figure(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    truth, scores = example()
    found = evaluate_scores(ArrayBox(scores), BinaryMask(truth), scratch=tmp_path / "s")
    assert found.curve is not None
    save_curve_figure({"stage 2": found.curve}, tmp_path / f"curve{suffix}")
    start = (tmp_path / f"curve{suffix}").read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in start
    with pytest.raises(SettingsError, match="No figure format"):
        save_curve_figure({}, tmp_path / "curve.xyz")


@pytest.mark.real_data
def test_whole_real_mask_against_itself_shifted(real_data: Path) -> None:
    """A real membrane mask: three pixels off is bad, and good within three pixels."""
    from etsam_zarr.sources import open_volume

    with open_volume(real_data / "isbi2012_membrane.mrc") as volume:
        truth = volume.read(Span(0, 4), Span(100, 300), Span(100, 300)) != 0
    shifted = np.roll(truth, 3, axis=2)
    found = evaluate_mask(BinaryMask(shifted), BinaryMask(truth), settings=EvaluationSettings(tolerance=3)).masks[0]
    assert found.tolerant is not None
    assert found.overall.dice < 0.9 < found.tolerant.dice
