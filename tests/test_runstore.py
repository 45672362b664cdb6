"""The run store: valid for viewers, made whole or not at all, and never mistaken for another run's."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from conftest import FinishedRun
from etsam_zarr_cli.main import main
from ome_zarr_models import open_ome_zarr
from tiny import texture, write_tomogram

from etsam_zarr.errors import FingerprintError, OutputError, OutputExistsError, RunStoreError
from etsam_zarr.geometry import Span
from etsam_zarr.runstore import LAYOUT, RunStore
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH

RECORD: dict[str, Any] = {
    "shape": [20, 8, 9],
    "voxel_size": [12.0, 10.0, 11.0],
    "origin": [1.0, 2.0, 3.0],
    "ome_zarr": "0.4",
    "fingerprint": {"grid_interval": 50, "volume": "a" * 64, "precision": "float32", "threshold": None},
}


def _create(path: Path, **changes: Any) -> RunStore:
    return RunStore.create(path, RECORD | changes, tiles=1, native_size=16, hidden_dim=8, prompted={1: 0, 2: 3})


@pytest.fixture(scope="module")
def newer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three slices in OME-Zarr 0.5, its prompted slices predicted backwards."""
    folder = tmp_path_factory.mktemp("newer")
    source = write_tomogram(folder / "thin.mrc", texture((3, 20, 24)))
    arguments = ["--model", "seeded-256", "--precision", "float32", "--ome-zarr", "0.5", "--prompted-slices", "predict"]
    assert main(["run", str(source), *arguments]) == 0
    return folder / "thin.etsam.zarr"


@pytest.mark.parametrize(("version", "run"), [("0.4", "finished_run"), ("0.5", "newer_run")])
def test_a_real_run_is_valid_for_both_validators(version: str, run: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(run)
    path = found.store if isinstance(found, FinishedRun) else found
    for sub, kind in (("", "Image"), ("labels", "Labels"), ("labels/membranes", "ImageLabel")):
        if sub != "labels":
            yaozarrs.validate_zarr_store(str(path / sub))
        parsed = open_ome_zarr(zarr.open_group(path / sub, mode="r"))
        assert type(parsed).__name__ == kind
        assert type(parsed).__module__.startswith(f"ome_zarr_models.v{version.replace('.', '')}")


def test_backward_predictions_replace_only_what_is_shown(newer_run: Path) -> None:
    arrays = RunStore.open(newer_run).stage(2)
    assert arrays.backwards.shape == (1, 1, 64, 64)
    stored, predicted = np.asarray(arrays.logits[0, 0]), np.asarray(arrays.backwards[0, 0])
    assert np.mean(np.abs(stored) > 9.9) > 0.9, "the stored output stays ETSAM's: the prompt, -10 and 10"
    assert np.mean(np.abs(predicted) > 9.9) < 0.5


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_new_store_says_what_it_is(version: str, tmp_path: Path) -> None:
    store = _create(tmp_path / "new" / "a.etsam.zarr", ome_zarr=version)
    again = RunStore.open(store.path)
    assert (again.shape, again.voxel_size, again.origin) == ((20, 8, 9), (12.0, 10.0, 11.0), (1.0, 2.0, 3.0))
    assert _create(tmp_path / "b", voxel_size=None).voxel_size is None
    for stage, prompted in ((1, 0), (2, 3)):
        arrays = again.stage(stage)  # type: ignore[arg-type]
        assert arrays.logits.shape == (1, 20, 16, 16)
        assert arrays.logits.chunks == (1, LOGIT_CHUNK_DEPTH, 16, 16)
        assert (arrays.object_score.shape, arrays.object_pointer.shape) == ((1, 20), (1, 20, 8))
        assert arrays.backwards.shape == (1, prompted, 16, 16)
        assert arrays.logits.metadata.zarr_format == (2 if version == "0.4" else 3)
        values = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
        arrays.logits[0, 14:19] = values
        np.testing.assert_array_equal(again.stage(stage).logits[0, 14:19], values)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_chunks_of_slices_that_nothing_notes_are_deleted(version: str, tmp_path: Path) -> None:
    store = _create(tmp_path / "a", ome_zarr=version)
    arrays = store.stage(1)
    for array in (arrays.logits, arrays.object_score, arrays.object_pointer):
        array[...] = 1.0
    folder = store.path / "stages" / "1" / "object_score" / ("c/0" if version == "0.5" else "0")
    (folder / "1.5f2a.partial").write_bytes(b"left by a kill")
    for start, kept in ((20, 20), (17, 20), (16, 16), (0, 0)):
        store.forget_slices(1, 0, Span(start, 20))
        for array in (arrays.logits, arrays.object_score, arrays.object_pointer):
            values = np.asarray(array[0])
            assert values[:kept].all()
            assert not values[kept:].any()
    assert list(folder.iterdir()) == []


def test_a_store_that_was_half_made_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.etsam.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("etsam_zarr.runstore.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            _create(path)
    assert not path.exists()
    assert not RunStore.is_store(path)
    _create(path)
    assert RunStore.is_store(path)
    assert [found.name for found in tmp_path.iterdir()] == ["a.etsam.zarr"], "the leftover is cleared away"


def test_what_lies_at_the_path_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"something at .*file already.*--overwrite"):
        _create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"creating the run store at .*Not a directory"):
        _create(tmp_path / "file" / "a.etsam.zarr")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda path: (path / "run.json").unlink(), r"is no run store \(it has no run\.json\)"),
        (lambda path: (path / "run.json").write_text('{"layout": 1'), r"damaged: run\.json cannot be read"),
        (lambda path: (path / "run.json").write_text("[]"), r"damaged: run\.json cannot be read"),
        (lambda path: (path / "run.json").write_text("{}"), f"has layout None, this version reads layout {LAYOUT}"),
        (lambda path: (path / "run.json").write_text('{"layout": 1}'), "has layout 1.*Use the version that made it"),
    ],
)
def test_what_is_no_run_store_of_this_layout_is_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = _create(tmp_path / "a.etsam.zarr").path
    damage(path)
    with pytest.raises(RunStoreError, match=message):
        RunStore.open(path)


def test_another_fingerprint_is_refused_by_the_settings_that_differ(tmp_path: Path) -> None:
    store = _create(tmp_path / "a.etsam.zarr")
    same = RECORD["fingerprint"]
    store.check_fingerprint(same)
    store.check_fingerprint(json.loads(json.dumps(same)))
    asked = same | {"grid_interval": 10, "volume": "b" * 64, "new": 1.5}
    with pytest.raises(FingerprintError) as refusal:
        store.check_fingerprint(asked)
    message = str(refusal.value)
    assert "grid_interval (50 there, 10 now)" in message
    assert "new (not used there, 1.5 now)" in message
    assert "volume (" in message
    assert "a" * 64 not in message, "long values are shortened"
    assert "precision" not in message
    assert "--overwrite" in message


def _try_to_lock(path: str, answers: Any) -> None:
    try:
        with RunStore.open(Path(path)).locked():
            answers.put("locked")
    except RunStoreError as error:
        answers.put(str(error))


def test_a_second_process_cannot_write_at_the_same_time(tmp_path: Path) -> None:
    store = _create(tmp_path / "a.etsam.zarr")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()

    def ask() -> str:
        process = context.Process(target=_try_to_lock, args=(str(store.path), answers))
        process.start()
        answer: str = answers.get(timeout=60)
        process.join()
        return answer

    with store.locked():
        assert "Another process is writing the run store" in ask()
    with store.locked():
        pass


def test_the_lock_goes_with_an_error(tmp_path: Path) -> None:
    store = _create(tmp_path / "a.etsam.zarr")
    with pytest.raises(ZeroDivisionError), store.locked():
        raise ZeroDivisionError
    with store.locked(), pytest.raises(RunStoreError, match="Another process"), store.locked():
        pass
