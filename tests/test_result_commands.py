"""threshold, postprocess, label and evaluate through the real command line, on files and on a run store."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from etsam_zarr_cli.main import main
from made_run import SHAPE
from membrane_masks import severed_by_the_rule, sheets
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score
from yaozarrs import validate_zarr_store

from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores

Array = npt.NDArray[Any]
EVERYWHERE = np.ones((3, 3, 3))


def write(path: Path, voxels: Array, voxel_size: float = 10.0) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(voxels.astype(np.int8) if voxels.dtype == np.bool_ else voxels)
        mrc.voxel_size = voxel_size
    return path


def read(path: Path) -> Array:
    with mrcfile.open(path) as mrc:
        return mrc.data.copy()


def blobs(seed: int = 1) -> Array:
    """Membranes with some specks that span few slices."""
    mask = sheets(seed, SHAPE)
    return mask & (ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2) > -0.02)


def thick(mask: Array, min_slices: int) -> Array:
    labels, _ = ndimage.label(mask, EVERYWHERE)
    kept = [i + 1 for i, box in enumerate(ndimage.find_objects(labels)) if box[0].stop - box[0].start >= min_slices]
    return np.isin(labels, kept)


def logits_of(store: RunStore) -> Array:
    from etsam_zarr.geometry import Span

    return final_scores(store).read(Span(0, SHAPE[0]))


def label_of(store: RunStore, name: str) -> Array:
    return np.asarray(zarr.open_array(store.path / "labels" / name / "0", mode="r")[:])


# --- files


@pytest.mark.parametrize("form", ["clean.mrc", "clean.zarr"])
@pytest.mark.parametrize("sever", [False, True])
def test_postprocess_of_a_file(form: str, sever: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = blobs()
    source = write(tmp_path / "mask.mrc", mask)
    out = tmp_path / form
    flags = ["--sever-bridges"] if sever else []
    assert main(["postprocess", str(source), "-o", str(out), "--min-slices", "6", *flags]) == 0
    want = thick(mask, 6)
    assert 0 < want.sum() < mask.sum()
    if sever:
        want = np.stack([severed_by_the_rule(plane, 5, 0) for plane in want])
    got = read(out) if form.endswith("mrc") else zarr.open_array(out / "0", mode="r")[:]
    np.testing.assert_array_equal(got, want)
    assert "kept" in capsys.readouterr().out
    # Nothing of the work in between stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mask.mrc", form])
    if form.endswith("mrc"):
        with mrcfile.open(out) as mrc:
            assert mrc.header.mode == 0
            assert float(mrc.voxel_size.x) == 10.0
    else:
        validate_zarr_store(out)


@pytest.mark.parametrize("form", ["components.mrc", "components.zarr"])
@pytest.mark.parametrize("connectivity", [6, 26])
def test_label_of_a_file(form: str, connectivity: int, tmp_path: Path) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=SHAPE), 1) > 0.25
    source = write(tmp_path / "mask.mrc", mask)
    out = tmp_path / form
    command = ["label", str(source), "-o", str(out), "--min-voxels", "20", "--connectivity", str(connectivity)]
    assert main(command) == 0
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, {6: 1, 26: 3}[connectivity]))
    sizes = np.bincount(labels.ravel())
    kept = [i for i in range(1, sizes.size) if sizes[i] >= 20]
    assert 1 < len(kept) < sizes.size - 1
    lookup = np.zeros(sizes.size, int)
    lookup[kept] = np.arange(1, len(kept) + 1)
    got = read(out) if form.endswith("mrc") else zarr.open_array(out / "0", mode="r")[:]
    # scipy numbers by first voxel as well.
    np.testing.assert_array_equal(got, lookup[labels])
    assert got.dtype == ("uint16" if form.endswith("mrc") else "uint32")

    with (tmp_path / "components.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["voxels"]) for row in rows] == sizes[kept].tolist()
    centre = ndimage.center_of_mass(labels == kept[0])
    assert float(rows[0]["volume_nm3"]) == pytest.approx(sizes[kept[0]])  # 1 nm voxels
    assert float(rows[0]["centroid_y_angstrom"]) == pytest.approx(centre[1] * 10)
    assert rows[0]["touches_border"] in ("True", "False")


def test_threshold_of_a_file(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    source = write(tmp_path / "logits.mrc", scores)
    assert main(["threshold", str(source), "--logit-threshold", "-0.25", "-o", str(tmp_path / "m.mrc")]) == 0
    np.testing.assert_array_equal(read(tmp_path / "m.mrc"), scores > np.float32(-0.25))


def test_evaluate_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = blobs()
    scores = (truth + np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
    a, b = write(tmp_path / "scores.mrc", scores), write(tmp_path / "truth.mrc", truth)
    command = ["evaluate", str(a), str(b), "--logit-threshold", "0,0.5", "--json", "--tolerance", "1"]
    assert main([*command, "--figure", str(tmp_path / "pr.png")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["curve"]["average_precision"] == pytest.approx(average_precision_score(truth.ravel(), scores.ravel()))
    assert record["masks"][1]["dice"] == pytest.approx(f1_score(truth.ravel(), scores.ravel() > 0.5))
    assert (tmp_path / "pr.png").stat().st_size > 5000

    mask = write(tmp_path / "mask.mrc", scores > 0.5)
    assert main(["evaluate", str(mask), str(b), "--roi", "0:10,5:30,0:36"]) == 0
    dice = f1_score(truth[:10, 5:30].ravel(), scores[:10, 5:30].ravel() > 0.5)
    assert f"{dice:.4f}" in capsys.readouterr().out


def test_manifest_goes_on_after_a_bad_pair_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = blobs()
    write(tmp_path / "a.mrc", truth)
    write(tmp_path / "b.mrc", truth[:10])
    (tmp_path / "testset.csv").write_text("run_id\nb\na\n")
    command = ["evaluate", "--manifest", str(tmp_path / "testset.csv"), "--prediction-path", "{run_id}.mrc"]
    code = main([*command, "--truth-path", "a.mrc", "--csv", str(tmp_path / "results.csv")])
    assert code == 1
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "10 x 40 x 36" in rows[0]["error"]
    assert float(rows[1]["dice"]) == 1
    assert "1 of 2 pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["postprocess", "{scores}", "-o", "{new}"], "not a binary mask"),
        (["label", "{scores}", "-o", "{new}"], "not a binary mask"),
        (["label", "{mask}"], "is not a run store: say with -o"),
        (["label", "{mask}", "-o", "{mask}"], "--overwrite"),
        (["label", "{mask}", "-o", "{new}", "--label", "x"], "--label goes with run stores"),
        (["threshold", "{scores}", "--logit-threshold", "0"], "say with -o"),
        (["evaluate", "{mask}", "{small}"], "24 x 40 x 36 voxels"),
        (["evaluate", "{mask}", "{mask}", "--logit-threshold", "0"], "is a mask (int8)"),
        (["evaluate", "{mask}", "{mask}", "--figure", "x.png"], "--figure draws the curve of scores"),
        (["evaluate", "{mask}", "{absent}"], "nothing at"),
        (["postprocess", "{mask}", "-o", "{new}", "--min-slices", "0"], "--min-slices is 0"),
    ],
)
def test_errors_are_one_paragraph(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {
        "mask": write(tmp_path / "mask.mrc", blobs()),
        "small": write(tmp_path / "small.mrc", blobs()[:4]),
        "scores": write(tmp_path / "scores.mrc", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)),
        "new": tmp_path / "new.zarr",
        "absent": tmp_path / "absent.mrc",
    }
    assert main([part.format(**paths) for part in command]) == 1
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert error[-1].startswith("Error: ")
    assert not paths["new"].exists()


def test_wrong_command_lines_exit_with_2(tmp_path: Path) -> None:
    assert main(["evaluate"]) == 2
    assert main(["threshold", "x", "--logit-threshold", "many"]) == 2
    assert main(["evaluate", "a", "b", "--roi", "1-2"]) == 2


def test_empty_mask_gives_an_empty_table(tmp_path: Path) -> None:
    source = write(tmp_path / "mask.mrc", np.zeros(SHAPE, bool))
    assert main(["label", str(source), "-o", str(tmp_path / "c.zarr")]) == 0
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1
    assert not zarr.open_array(tmp_path / "c.zarr" / "0", mode="r")[:].any()


# --- run stores


def test_all_of_it_on_a_run(run_store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Threshold, clean, label, compare; what was there before stays, and viewers can open the store."""
    run = str(run_store.path)
    logits = logits_of(run_store)
    assert main(["threshold", run, "--logit-threshold", "1"]) == 0
    np.testing.assert_array_equal(label_of(run_store, "membranes"), logits > 1)
    assert main(["threshold", run, "--logit-threshold", "0,2.5"]) == 0
    np.testing.assert_array_equal(label_of(run_store, "membranes_2.5"), logits > 2.5)

    assert main(["postprocess", run, "--min-slices", "8"]) == 0
    clean = thick(logits > 1, 8)
    assert 0 < clean.sum() < (logits > 1).sum()
    np.testing.assert_array_equal(label_of(run_store, "membranes_processed"), clean)
    np.testing.assert_array_equal(label_of(run_store, "membranes"), logits > 1)

    assert main(["label", run]) == 0
    np.testing.assert_array_equal(label_of(run_store, "components"), ndimage.label(clean, EVERYWHERE)[0])
    listed = zarr.open_group(run_store.path / "labels", mode="r").attrs["labels"]
    assert set(listed) == {"membranes", "membranes_0", "membranes_2.5", "membranes_processed", "components"}
    for name in listed:
        validate_zarr_store(run_store.path / "labels" / name)
    with (run_store.path / "components.csv").open() as file:
        first = next(csv.DictReader(file))
    # 10 x 5 x 5 angstrom voxels, origin 100 angstrom along y
    assert float(first["volume_nm3"]) == pytest.approx(int(first["voxels"]) * 0.25)
    assert float(first["centroid_y_angstrom"]) >= 100

    truth = write(run_store.path.parent / "truth.mrc", logits + np.random.default_rng(0).normal(size=SHAPE) * 3 > 0)
    capsys.readouterr()
    assert main(["evaluate", run, str(truth), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["masks"][0]["threshold"] == 1
    assert record["curve"]["average_precision"] == pytest.approx(
        average_precision_score(read(truth).ravel() != 0, logits.ravel()), rel=1e-12
    )
    assert main(["evaluate", run, str(truth), "--label", "membranes_processed"]) == 0


def test_again_replaces(run_store: RunStore) -> None:
    run = str(run_store.path)
    for limit in (20, 3):
        assert main(["label", run, "--min-voxels", str(limit)]) == 0
        want, _ = ndimage.label(logits_of(run_store) > -0.5, EVERYWHERE)
        assert label_of(run_store, "components").max() == (np.bincount(want.ravel())[1:] >= limit).sum()
    listed = zarr.open_group(run_store.path / "labels", mode="r").attrs["labels"]
    assert listed == ["membranes", "components"]


def test_a_processed_mask_of_an_earlier_mask_is_not_taken_for_the_present_one(
    run_store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(run_store.path)
    assert main(["postprocess", run, "--min-slices", "24"]) == 0
    assert main(["threshold", run, "--logit-threshold", "1"]) == 0
    assert "membranes_processed" in capsys.readouterr().err
    assert main(["label", run]) == 0
    want, _ = ndimage.label(logits_of(run_store) > 1, EVERYWHERE)
    np.testing.assert_array_equal(label_of(run_store, "components"), want)


@pytest.mark.parametrize("command", [["label"], ["postprocess"], ["threshold", "--logit-threshold", "0"]])
def test_a_run_that_is_being_written_is_left_alone(
    command: list[str], run_store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_store.locked():
        assert main([command[0], str(run_store.path), *command[1:]]) == 1
    assert "Another process is writing" in capsys.readouterr().err


def test_unfinished_run_and_absent_label(run_store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(run_store.path), "--label", "vesicles"]) == 1
    assert "no finished label 'vesicles'; it has: membranes" in capsys.readouterr().err
    Ledger(run_store.path / "ledger").reopen("mask")
    assert main(["postprocess", str(run_store.path)]) == 1
    assert "no finished label 'membranes'" in capsys.readouterr().err
    Ledger(run_store.path / "ledger").forget(2, 0)
    assert main(["threshold", str(run_store.path), "--logit-threshold", "0"]) == 1
    assert "0 of 24 slices" in capsys.readouterr().err


KILLED = """
    import os, signal, sys
    from etsam_zarr_cli import main, progress
    from etsam_zarr.events import Advanced

    seen = 0

    class Killer(progress.Progress):
        def __call__(self, event):
            global seen
            if isinstance(event, Advanced) and event.name == sys.argv[1]:
                seen += 1
                if seen == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
            super().__call__(event)

    progress.Progress = Killer
    main.main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("command", "kill_in", "kill_after", "label"),
    [
        (["threshold", "{run}", "--logit-threshold", "0,2.5"], "threshold", 5, "membranes_2.5"),
        (["label", "{run}", "--block", "24,40,36"], "label", 1, "components"),
        (["label", "{run}", "--block", "24,40,36"], "write components", 1, "components"),
        (["postprocess", "{run}", "--min-slices", "8", "--sever-bridges"], "sever bridges", 1, "membranes_processed"),
    ],
)
def test_killed_and_run_again(
    command: list[str], kill_in: str, kill_after: int, label: str, run_store: RunStore, tmp_path: Path
) -> None:
    """Killed: no half label in sight. Again: as if nothing had happened."""
    import textwrap

    arguments = [part.format(run=run_store.path) for part in command]
    script = [sys.executable, "-c", textwrap.dedent(KILLED), kill_in, str(kill_after), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(script, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (run_store.path / "labels" / label).exists()
    assert main(arguments) == 0
    again = label_of(run_store, label)
    assert not [path for path in (run_store.path / "labels").iterdir() if path.name.endswith((".partial", ".scratch"))]

    flag = [] if command[0] == "label" or command[0] == "postprocess" else ["--overwrite"]
    assert main([*arguments, *flag]) == 0
    np.testing.assert_array_equal(again, label_of(run_store, label))
    logits = logits_of(run_store)
    if label == "components":
        np.testing.assert_array_equal(again, ndimage.label(logits > -0.5, EVERYWHERE)[0])
    elif label == "membranes_2.5":
        np.testing.assert_array_equal(again, logits > 2.5)
    else:
        want = np.stack([severed_by_the_rule(plane, 5, 0) for plane in thick(logits > -0.5, 8)])
        np.testing.assert_array_equal(again, want)
