"""The table of components: the same facts as CSV and as Parquet, through the command."""

from __future__ import annotations

import csv
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from etsam_zarr_cli.main import main


def write_mask(path: Path, voxel_size: float) -> None:
    mask = np.zeros((6, 20, 30), np.int8)
    mask[0:2, 3:5, 4:9] = 1
    mask[3:5, 10:14, 10:20] = 1
    with mrcfile.new(path) as mrc:
        mrc.set_data(mask)
        mrc.voxel_size = voxel_size


@pytest.mark.parametrize("voxel_size", [10.0, 0.0])
def test_parquet_holds_what_csv_holds(voxel_size: float, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_mask(tmp_path / "mask.mrc", voxel_size)
    for suffix in ("csv", "parquet"):
        arguments = ["label", str(tmp_path / "mask.mrc"), "-o", str(tmp_path / f"{suffix}.zarr")]
        assert main([*arguments, "--table", str(tmp_path / f"table.{suffix}")]) == 0
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    stored = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert [row["id"] for row in stored] == [1, 2]
    assert [row["voxels"] for row in stored] == [20, 80]
    assert list(stored[0]) == list(rows[0])
    for text, value in ((row[name], kept[name]) for row, kept in zip(rows, stored, strict=True) for name in row):
        if isinstance(value, bool):
            assert text == str(value)
        elif text == "":
            assert value is None or np.isnan(value)
        else:
            assert float(text) == value
    assert (rows[0]["volume_nm3"] == "") == (voxel_size == 0)
