"""``etsam-zarr portal`` and addresses of the portal given to other commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from etsam_zarr_cli.main import main
from portal_stub import Stub, run_record

from etsam_zarr.geometry import Span
from etsam_zarr.sources import open_volume

RUN = run_record(8354, "ycw2013-01-03-15", 10160)
OTHER = run_record(8355, "8354", 10160)  # its name is another run's id


@pytest.fixture
def filled(portal: Stub) -> Stub:
    portal.add_tomogram(101, RUN, spacing=16.145, default=True, shape=(500, 924, 956))
    portal.add_tomogram(102, RUN, spacing=16.145, processing="denoised", shape=(500, 924, 956))
    portal.add_tomogram(103, OTHER, spacing=8.0, zarr_there=False)
    portal.add_mask(9001, 501, RUN, spacing=16.145)
    portal.add_mask(9003, 502, RUN, spacing=8.0, name="ribosome")
    return portal


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["portal", "list", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_lists_a_dataset_with_sizes(filled: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    head, first, second, third, foot = listed(capsys, "--dataset", "10160")
    assert head.split()[:4] == ["run", "name", "tomogram", "voxel"]
    # 500 * 924 * 956 float32 voxels
    assert first.split() == ["8354", "ycw2013-01-03-15", "101*", "16.145", "raw", "WBP", "500", "x", "924", "x", "956",
                             "1.77", "0.00123"]  # fmt: skip
    assert second.split()[2:5] == ["102", "16.145", "denoised"]
    assert third.endswith("no OME-Zarr")
    assert "3 tomograms, 3.53 GB uncompressed" in foot


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--run", "8354"], [101, 102]),
        (["--run", "8354", "--dataset", "10160"], [103]),
        (["--run", "ycw2013-01-03-15", "--dataset", "10160"], [101, 102]),
        (["portal:8354"], [101, 102]),
        (["portal:8354@8"], []),
        (["https://cryoetdataportal.czscience.com/runs/8355"], [103]),
        (["--dataset", "10160", "--processing", "raw"], [101, 103]),
        (["--dataset", "10160", "--voxel-spacing", "8"], [103]),
        (["--dataset", "1"], []),
    ],
)
def test_lists_what_is_asked_for(
    filled: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], ids: list[int]
) -> None:
    found = json.loads("\n".join(listed(capsys, *arguments, "--json")))
    assert [record["id"] for record in found] == ids
    assert all(record["bytes"] == 4 * np.prod(record["shape"]) for record in found)
    plain = listed(capsys, *arguments)
    assert len(plain) == (len(ids) + 2 if ids else 1)


def test_lists_masks(filled: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    head, first, second, foot = listed(capsys, "portal:8354", "--annotations")
    assert "annotation" in head
    assert first.split() == ["8354", "ycw2013-01-03-15", "501", "9001", "16.145", "membrane", "yes", "by", "hand",
                             "9.99e-07"]  # fmt: skip
    assert second.split()[2:4] == ["502", "9003"]
    assert foot.startswith("2 masks")
    found = json.loads("\n".join(listed(capsys, "--dataset", "10160", "--annotations", "--object", "RIBO", "--json")))
    assert [record["annotation_id"] for record in found] == [502]
    assert listed(capsys, "--dataset", "1", "--annotations") == ["No segmentation mask fits."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to list"),
        (["--run", "TS_026"], "--dataset as well"),
        (["tomo.mrc"], "names no run"),
        (["portal:annotation/3"], "names no run"),
        (["portal:8354", "--dataset", "3"], "leave out --dataset"),
        (["--dataset", "3", "--object", "membrane"], "--annotations"),
        (["portal:8354x"], "is no address"),
    ],
)
def test_says_what_cannot_be_listed(
    portal: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["portal", "list", *arguments]) == 1
    assert says in capsys.readouterr().err
    assert portal.asked == []


def test_a_portal_that_is_away_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETSAM_ZARR_PORTAL_URL", "http://127.0.0.1:9/graphql")
    monkeypatch.setattr("etsam_zarr.portal.query._BACKOFF", 0.0)
    assert main(["portal", "list", "--dataset", "10160"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: The CryoET Data Portal at http://127.0.0.1:9/graphql cannot be reached")
    assert error.count("\n") == 1


def test_run_takes_an_address_and_notes_it(
    portal: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = tiny.texture()
    path = portal.add_tomogram(7, RUN, voxels, spacing=16.145)
    portal.add_tomogram(8, RUN, voxels[::-1], spacing=16.145, processing="denoised")
    monkeypatch.chdir(tmp_path)
    options = ["--slab", "3", *tiny.OPTIONS[:-2]]

    assert main(["run", "portal:8354@16.145", *options]) == 1
    error = capsys.readouterr().err
    assert "--tomogram-id 7" in error
    assert "--tomogram-id 8" in error
    assert not list(tmp_path.glob("*.etsam.zarr*"))

    assert main(["run", "portal:8354", "--tomogram-id", "7", *options]) == 0
    store = tmp_path / "ycw2013-01-03-15.etsam.zarr"
    record = json.loads((store / "run.json").read_text())
    assert record["source"] == f"{portal.url}/{path}"
    assert record["portal"] == {
        "dataset_id": 10160, "run_id": 8354, "run_name": "ycw2013-01-03-15", "tomogram_id": 7, "voxel_spacing": 16.145,
        "processing": "raw",
    }  # fmt: skip
    # The same tomogram, however it is written, is the same run.
    assert main(["run", "portal:10160/ycw2013-01-03-15", "--tomogram-processing", "raw", *options]) == 0
    assert "finished already" in capsys.readouterr().out

    local = tiny.write_tomogram(tmp_path / "local.mrc", voxels, voxel_size=16.145)
    assert main(["run", str(local), *options]) == 0
    tiny.assert_same_results(store, tmp_path / "local.etsam.zarr")


def test_plan_convert_and_preview_take_an_address(
    portal: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = tiny.texture()
    path = portal.add_tomogram(7, RUN, voxels, spacing=16.145)
    portal.add_tomogram(8, RUN, voxels[::-1], spacing=16.145, processing="denoised")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "portal:8354?processing=raw", "--model", "seeded-256"]) == 0
    out = capsys.readouterr().out
    assert f"{portal.url}/{path}" in out
    assert "ycw2013-01-03-15.etsam.zarr" in out
    assert main(["convert", "portal:8354", "copy.mrc", "--tomogram-id", "8"]) == 0
    with open_volume("copy.mrc") as copy:
        np.testing.assert_array_equal(copy.read(Span(0, 12)), voxels[::-1])
    assert main(["preview", "portal:8354", "--tomogram-processing", "raw", "-o", "sheet.png"]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    masks = [voxels > 0.4, voxels < -0.4]
    for number, mask in enumerate(masks):
        portal.add_mask(90 + 10 * number, 5 + number, RUN, mask, spacing=16.145)
    plain = (tmp_path / "sheet.png").read_bytes()
    both = "portal:annotation/5,6@16.145"
    assert main(["preview", "portal:tomogram/7", "--mask", both, "-o", "sheet.png"]) == 0
    assert (tmp_path / "sheet.png").read_bytes() != plain
    assert main(["convert", both, "mask.zarr"]) == 0
    with open_volume("mask.zarr") as copy:
        np.testing.assert_array_equal(copy.read(Span(0, 12)), masks[0] | masks[1])
        assert copy.info.voxel_size == (16.145, 16.145, 16.145)
    assert main(["preview", "portal:tomogram/7"]) == 0
    assert (tmp_path / "ycw2013-01-03-15.png").is_file()


def test_a_choice_without_an_address_of_the_portal_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tiny.write_tomogram(tmp_path / "local.mrc", tiny.texture())
    for command in (
        ["run", str(local), "--model", "seeded-256"],
        ["convert", str(local), str(tmp_path / "c.zarr")],
        ["preview", str(local)],
    ):
        assert main([*command, "--tomogram-id", "3"]) == 1
        assert "names none. Leave them out" in capsys.readouterr().err
