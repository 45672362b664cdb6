"""Normalisation from limits measured slab by slab, against ETSAM's on the whole array."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr import intensity
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.intensity import IntensityMeter, IntensityRange, normalizer


def _measured(volume: np.ndarray, slab: int) -> IntensityRange:
    meter = IntensityMeter(volume.shape)
    for z in range(0, volume.shape[0], slab):
        meter.add(z, volume[z : z + slab])
    return meter.result()


@given(
    st.sampled_from(["int8", "uint8", "int16", "uint16", "float16", "float32", "float64"]),
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(2, 9)),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
)
def test_the_result_equals_etsams_whatever_the_slab(
    dtype: str, shape: tuple[int, int, int], slab: int, seed: int
) -> None:
    volume = (np.random.default_rng(seed).normal(size=shape) * 40).clip(-120, 120).astype(dtype)
    volume[0, 0, :2] = 0, 7 if np.dtype(dtype).kind == "u" else -7
    volume[-1, -1, -1] = 100
    before = volume.copy()
    limits = _measured(volume, slab)
    assert (limits.minimum, limits.maximum) == (np.float32(volume.min()), np.float32(volume.max()))

    normalize = normalizer("min_max_positive_values", limits)
    expected = reference.normalize(volume, "min_max_positive_values")
    normalized = np.stack([normalize(plane) for plane in volume])
    assert normalized.dtype == np.float32
    np.testing.assert_array_equal(normalized, expected)

    # PyTorch's softplus differs by an ulp between whole arrays and their slices (vector ends).
    soften = normalizer("softplus_minmax", limits)
    expected = reference.normalize(volume, "softplus_minmax")
    np.testing.assert_allclose(np.stack([soften(plane) for plane in volume]), expected, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(volume, before, err_msg="the caller's array was changed")


def test_percentile_scales_between_the_percentiles() -> None:
    volume = np.random.default_rng(0).normal(size=(10, 40, 50)).astype(np.float32)
    limits = _measured(volume, 3)
    np.testing.assert_allclose((limits.low, limits.high), np.percentile(volume, (0.1, 99.9)), rtol=1e-6)
    stretch = normalizer("percentile", limits)
    expected = reference.normalize(volume, "percentile")
    np.testing.assert_allclose(np.stack([stretch(plane) for plane in volume]), expected, atol=1e-6)
    assert expected.min() == 0
    assert expected.max() == 1


def test_percentiles_of_a_large_volume_come_from_a_lattice_that_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.random.default_rng(1).normal(size=(64, 64, 64)).astype(np.float32)
    exact = np.percentile(volume, intensity.PERCENTILES)
    monkeypatch.setattr(intensity, "_MOST_SAMPLES", 1 << 15)
    meter = IntensityMeter(volume.shape)
    for z in range(0, 64, 5):
        meter.add(z, volume[z : z + 5])
    assert sum(samples.size for samples in meter._samples) <= 1 << 15
    limits = meter.result()
    assert limits == _measured(volume, 64), "the slab must not matter"
    np.testing.assert_allclose((limits.low, limits.high), exact, atol=0.25)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_named(value: float) -> None:
    volume = np.ones((6, 5, 4), dtype=np.float32)
    volume[4, 3, 2] = volume[4, 3, 3] = value
    meter = IntensityMeter(volume.shape)
    meter.add(0, volume[:3])
    with pytest.raises(InputError, match=rf"2 in slice 4, the first {value} at \(z, y, x\) = \(4, 3, 2\).*replace"):
        meter.add(3, volume[3:])


@pytest.mark.parametrize("value", [0, 3, -2.5])
def test_a_constant_volume_is_refused_with_its_value(value: float) -> None:
    with pytest.raises(InputError, match=f"same value, {value:g}: there is nothing to segment"):
        _measured(np.full((3, 4, 5), value, dtype=np.float32), 2)


def test_negative_values_only_are_refused_where_the_method_drops_them() -> None:
    limits = _measured(-np.random.default_rng(0).random((3, 4, 5), dtype=np.float32) - 1, 2)
    with pytest.raises(SettingsError, match=r"largest voxel value is -1\..*--normalize-method softplus_minmax or perc"):
        normalizer("min_max_positive_values", limits)
    assert normalizer("percentile", limits)(np.array([[limits.high]], dtype=np.float32)) == 1


def test_values_that_a_method_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"softplus_minmax cannot tell apart.*percentile"):
        normalizer("softplus_minmax", IntensityRange(-500, -400, -500, -400))
    with pytest.raises(SettingsError, match=r"percentiles of the voxel values are equal \(2\)"):
        normalizer("percentile", IntensityRange(-1, 9, 2, 2))
