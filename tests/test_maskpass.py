"""The mask: logits above a threshold, in a pyramid."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import FinishedRun

from etsam_zarr import maskpass
from etsam_zarr.events import Advanced, Event
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import MEMBRANES, mask_chunks, write_mask
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import ScoreView
from etsam_zarr.sources import open_volume


@pytest.fixture
def store(finished_run: FinishedRun, tmp_path: Path) -> RunStore:
    return RunStore.open(Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr")))


def _levels(store: RunStore) -> list[np.ndarray]:
    group = zarr.open_group(store.path / "labels" / MEMBRANES, mode="r")
    return [np.asarray(group[str(level)]) for level in range(sum(1 for _ in group.array_keys()))]


def _scores(store: RunStore) -> np.ndarray:
    return ScoreView(store.stage(2), store.shape).read(Span(0, store.shape[0]))


def test_the_mask_of_a_run_is_its_thresholded_scores(finished_run: FinishedRun) -> None:
    store = RunStore.open(finished_run.store)
    expected = (_scores(store) > -0.5).astype(np.uint8)
    assert 0.02 < expected.mean() < 0.98, "an empty or full mask would prove nothing"
    finest = _levels(store)[0]
    assert finest.dtype == np.uint8
    np.testing.assert_array_equal(finest, expected)
    with open_volume(finished_run.store / "labels" / MEMBRANES) as volume:
        assert (volume.info.voxel_size, volume.info.origin) == ((10.0, 10.0, 10.0), (30.0, 20.0, 10.0))


@pytest.mark.parametrize("depths", [(5,), (1,), (64,)])
@pytest.mark.parametrize("threshold", [-0.25, 2.0])
def test_any_chunks_and_threshold_give_the_same_as_the_whole(
    depths: tuple[int, ...], threshold: float, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskpass, "_CHUNK_DEPTHS", depths)
    monkeypatch.setattr(maskpass, "_CHUNK_EDGE", 17)
    ledger = Ledger(store.path / "ledger")
    events: list[Event] = []
    scores = ScoreView(store.stage(2), store.shape)
    voxels = write_mask(store, scores, ledger, threshold=threshold, on_event=events.append)
    expected = _scores(store) > threshold
    finest, *coarser = _levels(store)
    np.testing.assert_array_equal(finest, expected)
    assert voxels == np.count_nonzero(expected)
    facts = ledger.finished("mask")
    assert facts is not None
    assert (facts["voxels"], facts["logit_threshold"]) == (voxels, threshold)
    assert sum(event.count for event in events if isinstance(event, Advanced)) == store.shape[0]
    assert all(level.max() == 1 for level in coarser)


def test_values_at_the_threshold_are_not_above_it(store: RunStore) -> None:
    top = float(_scores(store).max())
    assert write_mask(store, ScoreView(store.stage(2), store.shape), Ledger(store.path / "l"), threshold=top) == 0
    assert not _levels(store)[0].any()


def test_an_interrupted_pass_leaves_the_mask_unfinished(store: RunStore) -> None:
    ledger = Ledger(store.path / "ledger")

    def interrupt(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    scores = ScoreView(store.stage(2), store.shape)
    with pytest.raises(KeyboardInterrupt):
        write_mask(store, scores, ledger, threshold=0.0, on_event=interrupt)
    assert ledger.finished("mask") is None
    write_mask(store, scores, ledger, threshold=0.0)
    np.testing.assert_array_equal(_levels(store)[0], _scores(store) > 0)


def test_chunks_are_as_deep_as_a_layer_in_memory_allows() -> None:
    assert mask_chunks((500, 924, 956)) == (64, 256, 256)
    assert mask_chunks((2000, 4096, 4096)) == (8, 256, 256)
    assert mask_chunks((12, 40, 48)) == (12, 40, 48)
