"""Batches: what becomes of each line, whatever the others do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from made_run import make_run

from etsam_zarr.batch import Outcome, run_batch
from etsam_zarr.batch_items import BatchItem
from etsam_zarr.errors import InputError
from etsam_zarr.events import Event, Notice
from etsam_zarr.ledger import Ledger, SlabRecord


class Runner:
    """Makes stores; fails for some."""

    def __init__(self, folder: Path, failing: dict[str, Exception] | None = None) -> None:
        self.asked: list[str] = []
        self._folder = folder
        self._failing = failing or {}

    def __call__(self, item: BatchItem, store: Path) -> Outcome:
        self.asked.append(item.name)
        if item.name in self._failing:
            raise self._failing[item.name]
        if not store.exists():
            made = make_run(self._folder / item.name)
            for block in made.blocks(1):
                Ledger(made.path / "ledger").add(block, SlabRecord(0, made.shape[0], (0,) * made.shape[0], (), 1.0))
            made.path.rename(store)
        return Outcome(7, 0.25)


ITEMS = [BatchItem({"input": f"{name}.mrc", "note": name.upper()}, f"/d/{name}.mrc", name) for name in "abc"]
OPTIONS = {"profile": "etsam-v2", "threads": 2}


def summary_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    runner = Runner(
        tmp_path, {"a": InputError("It is broken.\n  second line"), "b": RuntimeError("out of memory\nmore")}
    )
    events: list[Event] = []
    results = run_batch(ITEMS, runner, folder=out, options=OPTIONS, on_event=events.append)
    assert [result.state for result in results] == ["failed", "failed", "finished"]
    assert results[0].error == "It is broken.\n  second line"
    assert results[1].error == "RuntimeError: out of memory"
    rows = summary_of(out)
    assert [row["state"] for row in rows] == ["failed", "failed", "finished"]
    assert [row["note"] for row in rows] == ["A", "B", "C"]
    assert rows[2]["prediction"] == "c.etsam.zarr"
    assert (rows[2]["voxels"], rows[2]["share"]) == ("7", "0.25")
    record = json.loads((out / "summary.json").read_text())
    assert record["counts"] == {"finished": 1, "present": 0, "skipped": 0, "failed": 2, "open": 0}
    assert any(isinstance(event, Notice) and event.warning and "It is broken" in event.message for event in events)


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_batch(ITEMS, Runner(tmp_path, {"b": InputError("No network.")}), folder=out, options=OPTIONS)
    again = Runner(tmp_path)
    assert [r.state for r in run_batch(ITEMS, again, folder=out, options=OPTIONS)] == ["present", "finished", "present"]
    assert again.asked == ["b"]
    third = Runner(tmp_path)
    results = run_batch(ITEMS, third, folder=out, options=OPTIONS)
    assert {result.state for result in results} == {"present"}
    assert third.asked == []
    assert all(result.voxels == 7 for result in results)


@pytest.mark.parametrize("change", ["options", "source", "store", "ledger"])
def test_a_change_is_looked_at_again(tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    run_batch(ITEMS, Runner(tmp_path), folder=out, options=OPTIONS)
    items, options = list(ITEMS), dict(OPTIONS)
    if change == "options":
        options["profile"] = "etsam-v1"
    elif change == "source":
        items[1] = BatchItem({"input": "other.mrc"}, "/d/other.mrc", "b")
    elif change == "store":
        (out / "b.etsam.zarr").rename(tmp_path / "gone")
    else:
        (out / "b.etsam.zarr" / "ledger" / "mask.json").unlink()
    again = Runner(tmp_path / "again")
    run_batch(items, again, folder=out, options=options)
    assert again.asked == (["a", "b", "c"] if change == "options" else ["b"])


def test_an_interruption_leaves_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_batch(ITEMS, Runner(tmp_path, {"b": KeyboardInterrupt()}), folder=out, options=OPTIONS)  # type: ignore[dict-item]
    assert [row["state"] for row in summary_of(out)] == ["finished", "open", "open"]
    again = Runner(tmp_path)
    run_batch(ITEMS, again, folder=out, options=OPTIONS)
    assert again.asked == ["b", "c"]


def test_rows_without_input_are_skipped(tmp_path: Path) -> None:
    items = [BatchItem({"dataset_id": "emdb"}, "", "emdb_4603", "emdb is no dataset"), ITEMS[0]]
    runner = Runner(tmp_path)
    results = run_batch(items, runner, folder=tmp_path / "out", options={})
    assert [(result.state, result.error) for result in results] == [("skipped", "emdb is no dataset"), ("finished", "")]
    assert runner.asked == ["a"]
    assert summary_of(tmp_path / "out")[0]["prediction"] == ""


def test_a_damaged_summary_is_explained(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json, cannot be read"):
        run_batch(ITEMS, Runner(tmp_path), folder=tmp_path, options={})
