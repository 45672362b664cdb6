"""The log of a training: a CSV, TensorBoard's files beside it, and no epoch twice."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from etsam_zarr.errors import OutputError, SettingsError
from etsam_zarr.training.log import TrainingLog


def row(epoch: int, dice: float) -> dict[str, object]:
    return {"epoch": epoch, "step": 10 * epoch, "loss_total": "0.5", "learning_rate": "0.001", "dice": f"{dice}"}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard would show: value by step, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_row_for_each_epoch(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.csv", 0)
    log.add(row(1, 0.25))
    log.add(row(2, 0.5))
    log.close()
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["epoch"], r["step"], r["dice"], r["loss_bce"]) for r in rows] == [
        ("1", "10", "0.25", ""),
        ("2", "20", "0.5", ""),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"], "TensorBoard was not asked for"


def test_a_resumed_training_leaves_out_what_it_repeats(tmp_path: Path) -> None:
    first = TrainingLog(tmp_path / "log.csv", 0, tensorboard=True)
    for epoch in (1, 2, 3):
        first.add(row(epoch, 0.1 * epoch))
    # Killed: the last checkpoint was written after step 15.
    second = TrainingLog(tmp_path / "log.csv", 15, tensorboard=True)
    second.add(row(2, 0.75))
    for log in (first, second):
        log.close()
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [r["dice"] for r in csv.DictReader(file)] == ["0.1", "0.75"]
    shown = scalars(tmp_path / "tensorboard")
    assert set(shown) == {"loss/total", "learning_rate", "validation/dice"}
    assert shown["validation/dice"] == pytest.approx({10: 0.1, 20: 0.75})


def test_without_the_package_the_option_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    TrainingLog(tmp_path / "log.csv", 0)
    with pytest.raises(SettingsError, match=r"etsam-zarr\[train\]"):
        TrainingLog(tmp_path / "log.csv", 0, tensorboard=True)


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(OutputError, match="TensorBoard"):
        TrainingLog(tmp_path / "log.csv", 0, tensorboard=True).add(row(1, 0.5))
