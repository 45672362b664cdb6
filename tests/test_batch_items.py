"""What the lines of a manifest ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from etsam_zarr.batch_items import BatchItem, file_name, read_items
from etsam_zarr.errors import InputError
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
