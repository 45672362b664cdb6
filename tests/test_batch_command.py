"""``etsam-zarr batch`` on a portal on this machine, and ``evaluate --truth portal`` on what it made."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from etsam_zarr_cli.main import main
from portal_stub import Stub, run_record

OPTIONS = ["--model", "seeded-256", "--precision", "float32", "--profile", "etsam-v2", "--slab", "6"]
FIRST, SECOND = run_record(245, "TS_026", 10000), run_record(247, "TS_037", 10000)
# Rows as in ETSAM's tables: two on the portal, one of another archive, a simulation, a run that is not there.
TABLE = """dataset_id,run_id,annotation_ids,split,organism_name
10000,245,501|502,test,Schizosaccharomyces pombe 972h-
emdb,4603,none,test,Synechocystis sp. PCC 6803
10000,247,none,test,Schizosaccharomyces pombe 972h-
polnet_data_3,polnet_data_3_generation_4,simulated_annotation,train,polnet_simulated_tomogram
10000,999,none,test,Nobody
"""


@pytest.fixture
def filled(portal: Stub, tmp_path: Path) -> Stub:
    for number, run in ((1, FIRST), (2, SECOND)):
        portal.add_tomogram(number, run, tiny.texture(seed=number), spacing=13.48)
        portal.add_tomogram(10 + number, run, tiny.texture(seed=9), spacing=13.48, processing="denoised")
    portal.add_mask(9001, 501, FIRST, tiny.texture(seed=1) > 0.3, spacing=13.48)
    portal.add_mask(9003, 502, FIRST, tiny.texture(seed=1) < -0.3, spacing=13.48, name="outer membrane")
    portal.add_mask(9005, 502, FIRST, np.ones((3, 3, 3), bool), spacing=26.96, name="outer membrane")
    portal.add_mask(9007, 503, SECOND, tiny.texture(seed=2) > 0.2, spacing=13.48)
    portal.add_mask(9009, 504, SECOND, tiny.texture(seed=2) < 0.2, spacing=13.48, name="ribosome")
    (tmp_path / "testset.csv").write_text(TABLE)
    return portal


def summary_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_etsams_test_set_from_the_portal_to_its_scores(
    filled: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From ETSAM's table to scores.

    1. batch: the two runs are segmented, other archives skipped, the absent run fails, the exit code tells.
    2. evaluate against the annotations that the table names, and by name where it names none.
    3. batch again: nothing is done twice.
    """
    out, table = tmp_path / "out", str(tmp_path / "testset.csv")
    batch = ["batch", table, "-o", str(out), "--tomogram-processing", "raw", *OPTIONS]
    assert main(batch) == 1
    captured = capsys.readouterr()
    assert "2 finished, 0 were there already, 2 skipped, 1 failed" in captured.out
    assert "emdb is no dataset of the CryoET Data Portal" in captured.out
    assert "Error: 10000_999: The CryoET Data Portal has no tomogram for portal:999" in captured.err
    rows = summary_of(out)
    assert [row["state"] for row in rows.values()] == ["finished", "skipped", "finished", "skipped", "failed"]
    assert rows["10000_245"]["organism_name"] == "Schizosaccharomyces pombe 972h-"
    record = json.loads((out / "10000_245.etsam.zarr" / "run.json").read_text())
    assert (record["portal"]["tomogram_id"], record["portal"]["processing"]) == (1, "raw")
    # The same as one by one.
    local = tiny.write_tomogram(tmp_path / "local.mrc", tiny.texture(seed=1), voxel_size=13.48)
    assert main(["run", str(local), *OPTIONS]) == 0
    tiny.assert_same_results(out / "10000_245.etsam.zarr", tmp_path / "local.etsam.zarr")

    # The truth is the union of both annotations at the tomogram's spacing.
    union = tmp_path / "union.mrc"
    tiny.write_tomogram(union, (np.abs(tiny.texture(seed=1)) > 0.3).astype(np.int8), voxel_size=13.48)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "local.etsam.zarr"), str(union), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    evaluate = [
        "evaluate",
        "--manifest",
        str(out / "summary.csv"),
        "--truth",
        "portal",
        "--csv",
        str(tmp_path / "e.csv"),
    ]
    assert main([*evaluate, "--json"]) == 0
    captured = capsys.readouterr()
    first, *others = json.loads(captured.out)
    assert first["masks"] == expected["masks"]
    assert all("skipped" in record for record in others)
    assert "is skipped: its annotation_ids are 'none'" in captured.err
    assert "The truth is portal:annotation/501,502@13.48" in captured.err

    # By name, where the table says none; rows that have no prediction are failures then.
    by_name = [*evaluate, "--truth-object", "membrane", "--where", "state=finished"]
    assert main(by_name) == 0
    with (tmp_path / "e.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["run_id"] for row in scores] == ["245", "247"]
    assert float(scores[0]["dice"]) == pytest.approx(expected["masks"][0]["dice"])
    assert "portal:mask/9007" in capsys.readouterr().err

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "summary" not in path.name}
    fetched = len(filled.paths)
    filled.add_tomogram(99, run_record(999, "late", 10000), tiny.texture(seed=3), spacing=13.48)
    assert (
        main(["batch", table, "-o", str(out), "--tomogram-processing", "raw", "--where", "run_id=245", *OPTIONS]) == 0
    )
    assert "0 finished, 1 were there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # Not even its input was looked at.
    assert len(filled.paths) == fetched


def test_files_and_addresses_in_one_manifest(filled: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure in the middle leaves the others alone; when its cause is gone only that one is run."""
    tiny.write_tomogram(tmp_path / "local.mrc", tiny.texture(seed=4))
    address = f"{filled.url}/10000/TS_026/Reconstructions/VoxelSpacing13.480/Tomograms/1/TS_026.zarr"
    (tmp_path / "m.csv").write_text(
        f"input,name\n{address},far\nabsent.mrc,\nportal:10000/TS_037,\nlocal.mrc,\n"
    )  # fmt: skip
    batch = ["batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out"), *OPTIONS]
    assert main(batch) == 1
    error = capsys.readouterr().err
    assert "Error: absent: There is nothing at" in error
    assert "Error: 10000_TS_037: portal:10000/TS_037 fits 2 tomograms" in error
    assert "--tomogram-id 12" in error
    assert {name: row["state"] for name, row in summary_of(tmp_path / "out").items()} == {
        "far": "finished", "absent": "failed", "10000_TS_037": "failed", "local": "finished",
    }  # fmt: skip

    tiny.write_tomogram(tmp_path / "absent.mrc", tiny.texture(seed=5))
    (tmp_path / "m.csv").write_text(
        f"input,name\n{address},far\nabsent.mrc,\nportal:10000/TS_037?tomogram=12,10000_TS_037\nlocal.mrc,\n"
    )
    assert main(batch) == 0
    assert "2 finished, 2 were there already, 0 skipped, 0 failed" in capsys.readouterr().out


def test_an_unfinished_run_goes_on(
    filled: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from etsam_zarr import pipeline

    tiny.write_tomogram(tmp_path / "local.mrc", tiny.texture(seed=1), voxel_size=13.48)
    (tmp_path / "m.csv").write_text("input\nlocal.mrc\nportal:tomogram/2\n")
    batch = ["batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out"), *OPTIONS]
    write = pipeline.write_mask

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_mask", interrupted)
    assert main(batch) == 130
    assert [row["state"] for row in summary_of(tmp_path / "out").values()] == ["open", "open"]
    monkeypatch.setattr(pipeline, "write_mask", write)
    logits = tmp_path / "out" / "local.etsam.zarr" / "stages" / "2" / "logits"
    written = {path: path.stat().st_mtime_ns for path in logits.rglob("*") if path.is_file()}
    assert len(written) > 1
    assert main(batch) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert main(["run", str(tmp_path / "local.mrc"), *OPTIONS]) == 0
    tiny.assert_same_results(tmp_path / "out" / "local.etsam.zarr", tmp_path / "local.etsam.zarr")


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        (None, [], "There is no manifest"),
        ("input\n", [], "no lines"),
        ("path\na.mrc\n", [], "names no tomograms"),
        (TABLE, ["--where", "split=validation"], "has split=validation"),
        ("input\na.mrc\n", ["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_begun(
    text: str | None, arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "m.csv").write_text(text)
    assert main(["batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out"), *arguments]) == 1
    assert says in capsys.readouterr().err


def test_wrong_command_lines_exit_with_2(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("input\na.mrc\n")
    manifest = str(tmp_path / "m.csv")
    assert main(["batch", manifest]) == 2
    assert main(["batch", manifest, "-o", str(tmp_path), "--where", "split"]) == 2
    assert main(["batch", manifest, "-o", "s3://bucket/results"]) == 2
    assert main(["batch", manifest, "-o", str(tmp_path), "--tomogram-id", "3"]) == 2
    assert main(["evaluate", "a", "b", "--truth", "c"]) == 2
    assert main(["evaluate", "a", "b", "--annotation-ids", "3"]) == 2
    assert main(["evaluate", "a", "--truth", "portal", "--annotation-ids", "x"]) == 2
    assert main(["evaluate", "--manifest", manifest, "--truth", "portal", "--annotation-ids", "3"]) == 2


def test_evaluate_finds_the_masks_of_one_run(
    filled: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "portal:tomogram/2", *OPTIONS]) == 0
    store = "TS_037.etsam.zarr"
    capsys.readouterr()
    assert main(["evaluate", store, "--truth", "portal", "--json"]) == 1
    error = capsys.readouterr().err
    assert "portal:247@13.48 has 2 segmentation masks" in error
    assert "annotation 503  13.48 A  membrane, ground truth" in error
    answers = []
    for asked in (
        ["--truth", "portal", "--annotation-ids", "503"],
        ["--truth", "portal", "--truth-object", "membrane"],
        ["portal:annotation/503"],
        ["--truth", f"{filled.url}/10000/TS_037/Reconstructions/VoxelSpacing13.480/Annotations/503/"
                    "membrane-1.0_segmentationmask.mrc"],
    ):  # fmt: skip
        assert main(["evaluate", store, *asked, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["masks"])
    assert answers[1:] == answers[:-1]
    # A mask of the portal as the prediction, too.
    assert main(["evaluate", "portal:annotation/503", "portal:mask/9007"]) == 0
    assert "1.0000" in capsys.readouterr().out


def test_evaluate_says_what_it_does_not_know(filled: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = str(tiny.write_tomogram(tmp_path / "local.mrc", (tiny.texture() > 0).astype(np.int8)))
    assert main(["evaluate", local, "--truth", "portal", "--annotation-ids", "503"]) == 1
    assert "it was not read from the CryoET Data Portal" in capsys.readouterr().err
    assert main(["evaluate", "portal:annotation/503", "portal:mask/9007", "--label", "x"]) == 1
    assert "--label goes with run stores" in capsys.readouterr().err
    (tmp_path / "m.csv").write_text("prediction,dataset_id,run_id,annotation_ids\nlocal.mrc,10000,245,none\n")
    assert main(["evaluate", "--manifest", str(tmp_path / "m.csv"), "--truth", "portal"]) == 1
    assert "all 1 lines were skipped" in capsys.readouterr().err


def test_a_mask_made_elsewhere_is_compared_by_the_tables_ids(
    filled: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The voxel size of the prediction picks the masks of its grid."""
    mask = (np.abs(tiny.texture(seed=1)) > 0.3).astype(np.int8)
    tiny.write_tomogram(tmp_path / "245_mask.mrc", mask, voxel_size=13.480796)
    (tmp_path / "m.csv").write_text(TABLE)
    evaluate = ["evaluate", "--manifest", str(tmp_path / "m.csv"), "--where", "run_id=245", "--truth", "portal"]
    assert main([*evaluate, "--prediction-path", "{run_id}_mask.mrc", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["masks"][0]["dice"] == 1


def test_a_run_of_a_region_is_compared_with_the_truth_of_the_whole(
    filled: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "portal:tomogram/2", "--roi", "2:10,4:36,8:40", *OPTIONS]) == 0
    capsys.readouterr()
    truth = tmp_path / "part.mrc"
    tiny.write_tomogram(truth, (tiny.texture(seed=2) > 0.2).astype(np.int8)[2:10, 4:36, 8:40], voxel_size=13.48)
    assert main(["evaluate", "TS_037.etsam.zarr", str(truth), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["masks"]
    assert main(["evaluate", "TS_037.etsam.zarr", "--truth", "portal", "--annotation-ids", "503", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["masks"] == expected
    assert "the truth is cut to it" in captured.err


def test_the_model_is_built_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its weights are changed back and forth, so that each result is that of a run of its own."""
    from etsam_zarr.modelspec import ModelSpec

    for seed in (1, 2):
        tiny.write_tomogram(tmp_path / f"t{seed}.mrc", tiny.texture(seed=seed))
    (tmp_path / "m.csv").write_text("input\nt1.mrc\nt2.mrc\n")
    built = []
    build = ModelSpec.build
    monkeypatch.setattr(ModelSpec, "build", lambda self, device: built.append(device) or build(self, device))
    assert main(["batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out"), *OPTIONS]) == 0
    assert len(built) == 1
    assert main(["run", str(tmp_path / "t2.mrc"), *OPTIONS]) == 0
    assert len(built) == 2
    tiny.assert_same_results(tmp_path / "out" / "t2.etsam.zarr", tmp_path / "t2.etsam.zarr")


@pytest.mark.slow
def test_a_killed_batch_goes_on_and_ends_the_same(portal: Stub, tmp_path: Path) -> None:
    voxels = {number: tiny.texture((48, 64, 64), seed=number) for number in (1, 2)}
    for number, texture in voxels.items():
        portal.add_tomogram(number, run_record(number, f"TS_{number}", 10), texture)
    (tmp_path / "m.csv").write_text("input\nportal:1\nportal:2\n")
    options = ["--model", "seeded-256", "--precision", "float32", "--profile", "etsam-v2", "--slab", "8"]
    batch = [sys.executable, "-m", "etsam_zarr_cli.main", "batch", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out")]
    ledger = tmp_path / "out" / "run_1.etsam.zarr" / "ledger"
    with subprocess.Popen([*batch, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(ledger.glob("stage1/**/0*.json"))) < 2:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [row["state"] for row in summary_of(tmp_path / "out").values()] == ["open", "open"]
    again = subprocess.run([*batch, *options], capture_output=True, text=True, check=True)
    assert "2 finished, 0 were there already" in again.stdout
    assert "48 slices, " in again.stderr
    assert "already done" in again.stderr
    for number, texture in voxels.items():
        local = tiny.write_tomogram(tmp_path / f"t{number}.mrc", texture)
        assert main(["run", str(local), *options]) == 0
        tiny.assert_same_results(tmp_path / "out" / f"run_{number}.etsam.zarr", tmp_path / f"t{number}.etsam.zarr")
