"""The reduced copy of the tomogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny import texture

from etsam_zarr import overview
from etsam_zarr.geometry import Span
from etsam_zarr.overview import Overview, overview_factor
from etsam_zarr.sources import open_volume

SHAPE = (75, 41, 38)


def _make(path: Path, voxels: np.ndarray, slab: int) -> np.ndarray:
    z, y, x = voxels.shape
    reduced = Overview(
        zarr.create_group(path, zarr_format=2), shape=(z, y, x), voxel_size=(12.0, 10.0, 11.0),
        origin=(100.0, 0.0, -7.0), version="0.4", name="tomo",
    )  # fmt: skip
    for start in range(0, z, slab):
        reduced.add(voxels[start : start + slab])
    reduced.finish()
    with open_volume(path) as volume:
        return volume.read(Span(0, volume.info.shape[0]))


def test_a_small_volume_is_copied_as_it_is(tmp_path: Path) -> None:
    voxels = (texture(SHAPE) * 1000).astype(np.int16)
    np.testing.assert_array_equal(_make(tmp_path / "a", voxels, slab=10), voxels)


@pytest.mark.parametrize("edge", [40, 20])
def test_a_larger_one_is_averaged_whatever_the_slab(edge: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "LARGEST_EDGE", edge)
    factor = overview_factor(SHAPE)
    assert factor == {40: 2, 20: 4}[edge]
    voxels = texture(SHAPE)
    reduced = _make(tmp_path / "a", voxels, slab=7)
    # At the far ends a reduced voxel averages what there is; in y and x the last row counts more than once.
    rows = [size // factor * factor for size in SHAPE]
    inner = voxels[: rows[0], : rows[1], : rows[2]]
    z, y, x = (size // factor for size in rows)
    expected = inner.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(reduced[:z, :y, :x], expected, atol=1e-6)
    left = voxels[rows[0] :, : rows[1], : rows[2]].mean(axis=0).reshape(y, factor, x, factor).mean(axis=(1, 3))
    np.testing.assert_allclose(reduced[z, :y, :x], left, atol=1e-6)
    assert reduced.shape == tuple(-(-size // factor) for size in SHAPE)
    np.testing.assert_array_equal(_make(tmp_path / "b", voxels, slab=75), reduced)


def test_reduced_voxels_lie_where_their_voxels_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "LARGEST_EDGE", 40)
    _make(tmp_path / "a", texture(SHAPE), slab=7)
    with open_volume(tmp_path / "a") as volume:
        assert volume.info.voxel_size == (24.0, 20.0, 22.0)
        assert volume.info.origin == (106.0, 5.0, -1.5)
