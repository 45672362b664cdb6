"""Results as MRC files, through the command, read by mrcfile."""

from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import zarr
from conftest import FinishedRun
from etsam_zarr_cli.main import main

from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import ScoreView


def _facts(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with mrcfile.open(path) as file:
        assert mrcfile.validate(path)
        size, origin = file.voxel_size, file.header.origin
        return tuple(float(size[axis]) for axis in "xyz"), tuple(float(origin[axis]) for axis in "xyz")


def test_mask_and_logits_come_back_with_voxel_size_and_origin(finished_run: FinishedRun, tmp_path: Path) -> None:
    mask, logits, first = tmp_path / "mask.mrc", tmp_path / "logits.mrc", tmp_path / "first.mrc"
    run = str(finished_run.store)
    assert main(["export", run, "--mask", str(mask), "--logits", str(logits)]) == 0
    assert main(["export", run, "--logits", str(first), "--stage", "1"]) == 0
    store = RunStore.open(finished_run.store)
    with mrcfile.open(mask) as file:
        assert file.header.mode == 0
        np.testing.assert_array_equal(file.data, zarr.open_array(store.path / "labels/membranes/0", mode="r")[:])
    for path, stage in ((logits, 2), (first, 1)):
        with mrcfile.open(path) as file:
            assert file.data.dtype == np.float32
            scores = ScoreView(store.stage(stage), store.shape)  # type: ignore[arg-type]
            np.testing.assert_array_equal(file.data, scores.read(Span(0, 12)))
    for path in (mask, logits, first):
        size, origin = _facts(path)
        assert size == pytest.approx((10.0, 10.0, 10.0))
        assert origin == (10.0, 20.0, 30.0)


def test_existing_files_are_refused_before_any_is_written(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, logits = tmp_path / "mask.mrc", tmp_path / "logits.mrc"
    logits.write_text("mine")
    arguments = ["export", str(finished_run.store), "--mask", str(mask), "--logits", str(logits)]
    assert main(arguments) == 1
    assert f"There is a file at {logits} already. Give --overwrite to replace it." in capsys.readouterr().err
    assert logits.read_text() == "mine"
    assert not mask.exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert mrcfile.validate(logits)


def test_an_unfinished_run_is_refused_with_how_far_it_is(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))
    Ledger(store / "ledger").reopen("mask")
    (store / "ledger" / "stage2" / "tile00000" / "0000009-0000012.json").unlink()
    target = tmp_path / "a.mrc"
    for option, message in (
        ("--mask", "has no mask yet: it is not finished"),
        ("--logits", "Stage 2 of the run .* has 9 of 12 slices"),
    ):
        assert main(["export", str(store), option, str(target)]) == 1
        error = capsys.readouterr().err
        assert " ".join(message.split(" .* ")) in error or all(part in error for part in message.split(" .* "))
        assert not target.exists()
    assert main(["export", str(store), "--logits", str(target), "--stage", "1"]) == 0


def test_nothing_to_export_is_a_wrong_command_line(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished_run.store)]) == 2
    assert "give --mask, --logits or both" in capsys.readouterr().err
