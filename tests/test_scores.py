"""Full-resolution logits, computed from the stored native ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FinishedRun

from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Span
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import ScoreView, upsample
from etsam_zarr.stage_arrays import StageArrays
from etsam_zarr.tiling import lay_tiles

SHAPE = (37, 23, 31)


@pytest.fixture
def arrays(tmp_path: Path) -> StageArrays:
    record = {"shape": list(SHAPE), "ome_zarr": "0.4", "fingerprint": {}}
    store = RunStore.create(
        tmp_path / "a.etsam.zarr", record, tiles=1, native_size=16, hidden_dim=4, prompted={1: 2, 2: 2}
    )
    random = np.random.default_rng(0)
    arrays = store.stage(1)
    arrays.logits[0] = random.normal(size=(37, 16, 16)).astype(np.float32) * 4
    arrays.backwards[0] = random.normal(size=(2, 16, 16)).astype(np.float32) * 4
    return arrays


def _upsampled(native: np.ndarray) -> np.ndarray:
    planes = torch.from_numpy(np.asarray(native))[:, None]
    return torch.nn.functional.interpolate(planes, SHAPE[1:], mode="bilinear", align_corners=False)[:, 0].numpy()


def test_slices_are_upsampled_by_the_operation_of_sam2(arrays: StageArrays) -> None:
    expected = _upsampled(arrays.logits[0])
    view = ScoreView(arrays, SHAPE)
    np.testing.assert_array_equal(view.read(Span(0, 37)), expected)
    np.testing.assert_array_equal(np.stack(list(view.planes_in_turn())), expected)
    np.testing.assert_array_equal(np.stack(list(view.planes(Span(15, 18)))), expected[15:18])


def test_a_box_is_a_part_of_the_whole(arrays: StageArrays) -> None:
    whole = _upsampled(arrays.logits[0])
    view = ScoreView(arrays, SHAPE)
    box = view.read(Span(14, 19), Span(3, 22), Span(30, 31))
    np.testing.assert_array_equal(box, whole[14:19, 3:22, 30:31])
    np.testing.assert_array_equal(view.read(Span(0, 1), x=Span(5, 9)), whole[:1, :, 5:9])


def test_backward_predictions_are_shown_in_place_of_their_slices_and_stored_ones_stay(arrays: StageArrays) -> None:
    plain = ScoreView(arrays, SHAPE).read(Span(0, 37))
    shown = ScoreView(arrays, SHAPE, backwards={0: 0, 20: 1}).read(Span(0, 37))
    np.testing.assert_array_equal(shown[[0, 20]], _upsampled(arrays.backwards[0]))
    others = [z for z in range(37) if z not in (0, 20)]
    np.testing.assert_array_equal(shown[others], plain[others])
    np.testing.assert_array_equal(ScoreView(arrays, SHAPE).read(Span(0, 37)), plain)


def test_a_box_of_tiles_is_a_part_of_the_whole_and_native_scores_are_refused(tmp_path: Path) -> None:
    record = {"shape": [5, 70, 90], "ome_zarr": "0.4", "fingerprint": {}}
    store = RunStore.create(
        tmp_path / "tiled.etsam.zarr", record, tiles=6, native_size=10, hidden_dim=4, prompted={1: 0, 2: 0}
    )
    grid, arrays = lay_tiles("tiles", 70, 90, image_size=40, overlap=5), store.stage(1)
    arrays.logits[...] = np.random.default_rng(0).normal(size=(6, 5, 10, 10)).astype(np.float32)
    view = ScoreView(arrays, (5, 70, 90), grid=grid)
    whole = view.read(Span(0, 5))
    for y, x in ((Span(0, 70), Span(0, 90)), (Span(34, 37), Span(20, 60)), (Span(69, 70), Span(0, 1))):
        np.testing.assert_array_equal(view.read(Span(1, 3), y, x), whole[1:3, y.as_slice(), x.as_slice()])
    # Where one tile is alone it is seen as it is; where several meet, between their least and greatest.
    np.testing.assert_array_equal(whole[0, :30, :25], upsample(arrays.logits[0, 0], 40, 40)[:30, :25])
    assert arrays.logits[...].min() <= whole.min()
    assert whole.max() <= arrays.logits[...].max()
    with pytest.raises(RunStoreError, match="6 tiles, so there are no native scores of whole slices"):
        view.native()


def test_slices_of_the_native_size_stay_as_they_are() -> None:
    native = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    np.testing.assert_array_equal(upsample(native, 8, 8), native)
    assert upsample(native, 3, 50).shape == (3, 50)


def test_a_finished_run_has_scores_in_every_slice(finished_run: FinishedRun) -> None:
    store = RunStore.open(finished_run.store)
    scores = ScoreView(store.stage(2), store.shape).read(Span(0, store.shape[0]))
    assert scores.shape == finished_run.voxels.shape
    assert all(np.ptp(plane) > 1 for z, plane in enumerate(scores) if z % 6)
