"""Stage 2's input against ETSAM's arithmetic on whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.fuse import LogitBounds, fuse


def _etsam(normalized: np.ndarray, logits: np.ndarray) -> np.ndarray:
    clipped = logits.copy()
    clipped[clipped < -5] = -5
    clipped[clipped > 5] = 5
    return normalized + (clipped - np.min(clipped)) / (np.max(clipped) - np.min(clipped))


def _bounds(volume: np.ndarray) -> LogitBounds:
    bounds = LogitBounds()
    for plane in volume:
        bounds = bounds.including(plane)
    return bounds


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 40), st.floats(-8, 8))
def test_slice_by_slice_equals_the_whole_volume_to_the_last_bit(seed: int, spread: float, centre: float) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(5, 6, 7)) * spread + centre).astype(np.float32)
    normalized = random.random((5, 6, 7), dtype=np.float32)
    bounds = _bounds(logits)
    if bounds.flat:
        return
    fused = np.stack([fuse(a, b, bounds) for a, b in zip(normalized, logits, strict=True)])
    assert fused.dtype == np.float32
    np.testing.assert_array_equal(fused, _etsam(normalized, logits))


def test_where_both_limits_are_met_ten_logits_become_one() -> None:
    logits = np.array([[-9, -5, 0, 5, 300]], dtype=np.float32)
    bounds = _bounds(logits[None])
    assert (bounds.minimum, bounds.maximum) == (-5.0, 5.0)
    np.testing.assert_array_equal(fuse(np.ones_like(logits), logits, bounds), [[1, 1, 1.5, 2, 2]])


@pytest.mark.parametrize("value", [-10.0, -5.0, 0.25, 80.0])
def test_a_stage_1_that_said_nothing_adds_zeros_where_etsam_divides_by_zero(value: float) -> None:
    logits = np.full((3, 2, 2), value, dtype=np.float32)
    bounds = _bounds(logits)
    assert bounds.flat
    normalized = np.random.default_rng(0).random((2, 2), dtype=np.float32)
    fused = fuse(normalized, logits[0], bounds)
    np.testing.assert_array_equal(fused, normalized)
    assert not np.shares_memory(fused, normalized)


def test_bounds_of_parts_unite_to_the_bounds_of_the_whole() -> None:
    volume = np.random.default_rng(1).normal(size=(6, 4, 4)).astype(np.float32) * 3
    assert _bounds(volume[:2]).union(_bounds(volume[2:])) == _bounds(volume)
    assert _bounds(volume).union(LogitBounds()) == _bounds(volume)
    assert LogitBounds().flat
