"""Batches: what becomes of each line, whatever the others do."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from etsam_zarr.batch import BatchItem, Outcome, file_name, read_items, run_batch
from etsam_zarr.errors import InputError
from etsam_zarr.events import Event, Notice
from etsam_zarr.ledger import Ledger, SlabRecord
from etsam_zarr.manifest import matching, read_rows
from etsam_zarr.portal.address import Choice, parse_address

# Rows of ETSAM's dataset.csv and testset.csv: the portal, another archive, a simulation, a row that is there twice.
ETSAM = """dataset_id,run_id,annotation_ids,split,organism_name
10202,9622,26081|12765,train,Campylobacter jejuni
polnet_data_2,polnet_data_2_generation_17,simulated_annotation,train,polnet_simulated_tomogram
emdb,4603,none,test,Synechocystis sp. PCC 6803
10000,245,none,test,Schizosaccharomyces pombe 972h-
10000,245,none,test,Schizosaccharomyces pombe 972h-
"""


def items_of(folder: Path, text: str, **given: Any) -> list[BatchItem]:
    path = folder / "m.csv"
    path.write_text(text)
    return read_items(path, read_rows(path), **given)


def test_reads_etsams_table(tmp_path: Path) -> None:
    items = items_of(tmp_path, ETSAM)
    assert [(item.name, item.source) for item in items] == [
        ("10202_9622", "portal:9622"),
        ("polnet_data_2_polnet_data_2_generation_17", ""),
        ("emdb_4603", ""),
        ("10000_245", "portal:245"),
    ]
    assert "emdb is no dataset" in items[2].reason
    assert [item.source for item in items_of(tmp_path, ETSAM, choice=Choice(processing="raw"))][::3] == [
        "portal:9622?processing=raw",
        "portal:245?processing=raw",
    ]


def test_reads_paths_and_addresses(tmp_path: Path) -> None:
    text = "input,name\na/tomo_10.5A.mrc,\nhttps://example.org/t.zarr,far\nportal:10160/r@16.145,\nportal:tomogram/7,\n"
    items = items_of(tmp_path, text, choice=Choice(curator_default=True))
    assert [(item.name, item.source) for item in items] == [
        ("tomo_10.5A", str(tmp_path / "a/tomo_10.5A.mrc")),
        ("far", "https://example.org/t.zarr"),
        ("10160_r_16.145A", "portal:10160/r@16.145?default"),
        ("tomogram_7", "portal:tomogram/7?default"),
    ]


def test_names_of_addresses_tell_them_apart() -> None:
    texts = [
        "portal:7",
        "portal:7@10",
        "portal:7?processing=raw",
        "portal:7?tomogram=3",
        "portal:3/7",
        "portal:tomogram/7",
    ]
    names = {file_name(address) for text in texts if (address := parse_address(text))}
    assert len(names) == len(texts)
    assert all("/" not in name for name in names)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tomogram\na.mrc\n", "names no tomograms"),
        ("input\nx/a.mrc\ny/a.mrc\n", "both be named 'a'"),
        ("input\nportal:TS_026\n", "is no address"),
        ("input,name\na.mrc,../b\n", "no name of a file"),
        ("input,name\na.mrc,..\n", "no name of a file"),
    ],
)
def test_a_manifest_that_cannot_be_run(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        items_of(tmp_path, text)


def test_only_lines_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(ETSAM)
    rows = read_rows(path)
    assert [row["run_id"] for row in matching(rows, {"split": "test", "dataset_id": "10000"}, path)] == ["245", "245"]
    with pytest.raises(InputError, match=r"no column 'spilt'.*split"):
        matching(rows, {"spilt": "test"}, path)
    with pytest.raises(InputError, match="None of the 5 lines"):
        matching(rows, {"split": "validation"}, path)


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
