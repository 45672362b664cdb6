"""The clean-up as a whole against ETSAM's two steps done in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from membrane_masks import noise, severed_by_the_rule, sheets
from scipy import ndimage

from etsam_zarr.components.bridges import BridgeSettings
from etsam_zarr.components.find import LabelSettings
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.masks import BinaryMask
from etsam_zarr.postprocess import PostprocessReport, PostprocessSettings, postprocess_mask

Array = npt.NDArray[Any]


def without_thin_blobs(mask: Array, min_slices: int) -> Array:
    """Step (a), one component after the other."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = np.zeros_like(mask)
    for number in range(1, count + 1):
        where = np.nonzero(labels == number)
        if where[0].max() - where[0].min() + 1 >= min_slices:
            kept[where] = True
    return kept


def cleaned(
    mask: Array, folder: Path, options: PostprocessSettings, block: tuple[int, int, int] | None, workers: int = 1
) -> tuple[Array, PostprocessReport]:
    chunks = block or (4, 16, 16)
    out = zarr.create_array(folder / "o", shape=mask.shape, chunks=chunks, dtype="uint8", fill_value=0)
    report = postprocess_mask(
        BinaryMask(mask),
        out,
        folder / "scratch",
        source_id="m",
        settings=options,
        labelling=LabelSettings(block=block, workers=workers),
    )
    assert not (folder / "scratch").exists()
    return np.asarray(out[:]), report


@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20)),
    density=st.sampled_from([0.05, 0.1, 0.5]),
    min_slices=st.integers(1, 6),
    block=st.tuples(st.integers(1, 12), st.integers(4, 20), st.integers(4, 20)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_thin_blobs_on_noise(
    seed: int,
    shape: tuple[int, int, int],
    density: float,
    min_slices: int,
    block: tuple[int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    mask = noise(seed, shape, density)
    got, report = cleaned(mask, tmp_path_factory.mktemp("p"), PostprocessSettings(min_slices), block)
    want = without_thin_blobs(mask, min_slices)
    np.testing.assert_array_equal(got, want)
    assert report.voxels_dropped == mask.sum() - want.sum()


@pytest.mark.parametrize("block", [None, (4, 16, 16), (5, 7, 50), (20, 60, 50)])
@pytest.mark.parametrize("min_slices", [1, 4, 10])
def test_both_steps_on_sheets(block: tuple[int, int, int] | None, min_slices: int, tmp_path: Path) -> None:
    """(a), then (b) on what is left, no second (a); the report adds up."""
    mask = sheets(11, (20, 60, 50))
    # Blobs that the first step has to drop.
    mask[3:6, 1:3, 1:3] |= True
    mask &= ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(mask.shape), 2) > -0.05
    options = PostprocessSettings(min_slices, BridgeSettings())
    got, report = cleaned(mask, tmp_path, options, block, workers=2)
    thick = without_thin_blobs(mask, min_slices)
    want = np.stack([severed_by_the_rule(plane, 5, 0) for plane in thick])
    np.testing.assert_array_equal(got, want)
    assert report.voxels_dropped == mask.sum() - thick.sum()
    assert report.voxels_severed == thick.sum() - want.sum() > 0
    if min_slices > 1:
        assert report.components == ndimage.label(mask, np.ones((3, 3, 3)))[1]
        assert 0 < report.components_dropped < report.components


def test_empty_mask_stays_empty(tmp_path: Path) -> None:
    got, report = cleaned(np.zeros((6, 20, 20), bool), tmp_path, PostprocessSettings(3, BridgeSettings()), None)
    assert not got.any()
    assert report == PostprocessReport(0, 0, 0, 0)


def test_limits() -> None:
    with pytest.raises(SettingsError, match="--min-slices is 0"):
        PostprocessSettings(0)


def test_destination_of_another_shape(tmp_path: Path) -> None:
    out = zarr.create_array(tmp_path / "o", shape=(3, 4, 5), chunks=(3, 4, 5), dtype="uint8", fill_value=0)
    with pytest.raises(SettingsError, match=r"\(3, 4, 5\)"):
        postprocess_mask(BinaryMask(np.ones((3, 4, 4))), out, tmp_path / "s", source_id="m")


def test_scores_are_refused(tmp_path: Path) -> None:
    out = zarr.create_array(tmp_path / "o", shape=(3, 4, 4), chunks=(3, 4, 4), dtype="uint8", fill_value=0)
    scores = np.linspace(-1, 1, 48).reshape(3, 4, 4)
    with pytest.raises(InputError, match="not a binary mask"):
        postprocess_mask(BinaryMask(scores), out, tmp_path / "s", source_id="m")
