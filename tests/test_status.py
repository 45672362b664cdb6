"""How far a run is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import FinishedRun
from etsam_zarr_cli.main import main

from etsam_zarr.errors import RunStoreError
from etsam_zarr.ledger import Ledger
from etsam_zarr.status import read_status


@pytest.fixture
def store(finished_run: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))


def test_a_finished_run(finished_run: FinishedRun) -> None:
    status = read_status(finished_run.store)
    assert status.finished
    assert status.measured
    assert [(stage.stage, stage.slices) for stage in status.stages] == [(1, 12), (2, 12)]
    assert all(stage.seconds > 0 for stage in status.stages)
    assert status.mask is not None
    assert status.mask["logit_threshold"] == -0.5


def test_a_run_that_stopped_in_stage_2(store: Path) -> None:
    Ledger(store / "ledger").reopen("mask")
    for name in ("0000006-0000009", "0000009-0000012"):
        (store / "ledger" / "stage2" / "tile00000" / "window00000" / "generation000" / f"{name}.json").unlink()
    status = read_status(store)
    assert not status.finished
    assert [stage.slices for stage in status.stages] == [12, 6]
    assert status.mask is None


def test_a_mask_of_half_a_run_is_not_the_end(store: Path) -> None:
    (store / "ledger" / "stage2" / "tile00000" / "window00000" / "generation000" / "0000000-0000003.json").unlink()
    status = read_status(store)
    assert [stage.slices for stage in status.stages] == [12, 0]
    assert not status.finished


def test_the_command_tells_it_to_people(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(store)]) == 0
    text = capsys.readouterr().out
    for part in (
        "12 x 40 x 48",
        "seeded-256 (untrained: its result means nothing), float32 on cpu",
        "stage 2    12/12 slices",
        "finished",
    ):
        assert part in text
    Ledger(store / "ledger").reopen("mask")
    assert main(["status", str(store)]) == 0
    assert "unfinished: give the same run command to go on" in capsys.readouterr().out


def test_and_to_programs(finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(finished_run.store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] is True
    assert told["stages"]["1"]["slices"] == 12
    assert told["run"]["shape"] == [12, 40, 48]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunStoreError):
        read_status(tmp_path)
    assert main(["status", str(tmp_path)]) == 1
    assert "is no run store" in capsys.readouterr().err
