"""The benchmark of windows and their repair, on a volume of two short windows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import measure
import seams


def test_with_no_tolerance_nothing_differs_after_the_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    arguments = [
        "--model",
        "seeded-256",
        "--profiles",
        "etsam-v2",
        "--contexts",
        "0,4",
        "--depth",
        "32",
        "--size",
        "64",
    ]
    done = CliRunner().invoke(seams.main, [*arguments, "--whole-runs"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "seams-seeded-256.json").read_text())
    rows = record["measurements"]
    assert {(row["stage"], row["context"]) for row in rows} == {(1, 0), (1, 4), (2, 0), (2, 4)}
    exact = [row for row in rows if row["tolerance"] == 0]
    assert {row["max_after"] for row in exact} == {0}
    assert all(row["by_distance"][0]["max"] > 0 for row in exact), "a window on a guess is not the walk"
    assert len(record["settings"]["whole_runs"]) == 1
