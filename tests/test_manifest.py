"""Manifests: patterns over columns, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from etsam_zarr.errors import InputError, InputNotFoundError, SettingsError
from etsam_zarr.manifest import read_manifest, write_results

ETSAM_LIKE = "\ufeffdataset_id,run_id,note\n10001,TS_0001,good\n10002,00017,\n"


def test_paths_are_made_of_columns(tmp_path: Path) -> None:
    """Leading zeros stay, the byte-order mark goes, relative paths start at the manifest."""
    (tmp_path / "testset.csv").write_text(ETSAM_LIKE, encoding="utf-8")
    pairs = read_manifest(
        tmp_path / "testset.csv", prediction="p/{dataset_id}_{run_id}.etsam.zarr", truth="/t/{run_id}_target_mask.mrc"
    )
    assert [pair.prediction for pair in pairs] == [
        tmp_path / "p/10001_TS_0001.etsam.zarr",
        tmp_path / "p/10002_00017.etsam.zarr",
    ]
    assert pairs[1].truth == Path("/t/00017_target_mask.mrc")


def test_results_follow_the_columns(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("name,prediction,truth\na,a.mrc,b.mrc\nc,c.mrc,d.mrc\n")
    pairs = read_manifest(tmp_path / "m.csv")
    write_results(tmp_path / "out.csv", pairs, [{"error": "no file"}, {"dice": 0.5}])
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "name,prediction,truth,error,dice",
        "a,a.mrc,b.mrc,no file,",
        "c,c.mrc,d.mrc,,0.5",
    ]


def test_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no manifest"):
        read_manifest(tmp_path / "absent.csv")
    (tmp_path / "m.csv").write_text("run_id\n")
    with pytest.raises(InputError, match="no lines"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("run_id\n7\n")
    with pytest.raises(InputError, match=r"no column 'truth'.*run_id"):
        read_manifest(tmp_path / "m.csv", prediction="{run_id}.mrc")
    with pytest.raises(SettingsError, match="malformed"):
        read_manifest(tmp_path / "m.csv", prediction="{run_id", truth="x")
