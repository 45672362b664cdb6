"""Cutting of rungs against a plain reading of ETSAM's rule, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from membrane_masks import noise, sheets
from membrane_masks import severed_by_the_rule as reference
from scipy import ndimage

from etsam_zarr.components.bridges import BridgeSettings, sever_bridges, sever_plane
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.masks import BinaryMask

Array = npt.NDArray[Any]


def ladder(rung: int) -> Array:
    """Two rails, ``rung`` empty pixels apart, with two rungs of one pixel's width."""
    plane = np.zeros((rung + 6, 40), bool)
    plane[2] = plane[3 + rung] = True
    plane[2 : 4 + rung, 12] = plane[2 : 4 + rung, 27] = True
    return plane


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.sampled_from([0.1, 0.4, 0.6, 0.9]),
    bridge=st.integers(0, 8),
    spur=st.integers(0, 6),
)
@settings(max_examples=120, deadline=None)
def test_equals_the_rule_on_noise(seed: int, shape: tuple[int, int], density: float, bridge: int, spur: int) -> None:
    plane = noise(seed, shape, density)
    got = sever_plane(plane, BridgeSettings(bridge, spur))
    np.testing.assert_array_equal(got, reference(plane, bridge, spur))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("bridge", "spur"), [(5, 0), (8, 0), (5, 4), (0, 6)])
def test_equals_the_rule_on_sheets(seed: int, bridge: int, spur: int) -> None:
    plane = sheets(seed, (90, 80))
    before = plane.copy()
    np.testing.assert_array_equal(sever_plane(plane, BridgeSettings(bridge, spur)), reference(plane, bridge, spur))
    np.testing.assert_array_equal(plane, before)


def test_the_sheets_have_something_to_cut() -> None:
    """Else the equality above would say little."""
    assert sum((sheets(s, (90, 80)) ^ sever_plane(sheets(s, (90, 80)), BridgeSettings())).sum() for s in range(8)) > 50


def test_short_rungs_go_and_long_ones_stay() -> None:
    short = sever_plane(ladder(4), BridgeSettings())
    assert ndimage.label(short, np.ones((3, 3)))[1] == 2
    np.testing.assert_array_equal(sever_plane(ladder(12), BridgeSettings()), ladder(12))


@pytest.mark.parametrize("plane", [np.zeros((5, 6), bool), np.ones((1, 1), bool), np.ones((9, 9), bool)])
def test_nothing_to_cut(plane: Array) -> None:
    np.testing.assert_array_equal(sever_plane(plane, BridgeSettings()), plane)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_volume_equals_its_slices(workers: int, depth: int, tmp_path: Path) -> None:
    mask = sheets(3, (7, 60, 50))
    out = zarr.create_array(tmp_path / "o", shape=mask.shape, chunks=(depth, 32, 32), dtype="uint8", fill_value=0)
    removed = sever_bridges(BinaryMask(mask.astype("uint8")), out, workers=workers)
    want = np.stack([reference(plane, 5, 0) for plane in mask])
    np.testing.assert_array_equal(out[:], want)
    assert removed == mask.sum() - want.sum() > 0


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(SettingsError, match="--max-bridge-length is -1"):
        BridgeSettings(max_bridge_length=-1)


def test_scores_are_refused(tmp_path: Path) -> None:
    out = zarr.create_array(tmp_path / "o", shape=(2, 4, 4), chunks=(1, 4, 4), dtype="uint8", fill_value=0)
    with pytest.raises(InputError, match="not a binary mask"):
        sever_bridges(BinaryMask(np.arange(32.0).reshape(2, 4, 4)), out)
