"""Results as files, through the command, read by mrcfile and zarr."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
import pytest
import yaozarrs
import zarr
from conftest import FinishedRun
from etsam_zarr_cli.main import main
from made_run import make_run

from etsam_zarr.export import components_export, etsam_exports, write_all
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import ScoreView, final_scores
from etsam_zarr.sources import open_volume


def _facts(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with mrcfile.open(path) as file:
        assert mrcfile.validate(path)
        size, origin = file.voxel_size, file.header.origin
        return tuple(float(size[axis]) for axis in "xyz"), tuple(float(origin[axis]) for axis in "xyz")


def test_mask_and_logits_come_back_with_voxel_size_and_origin(finished_run: FinishedRun, tmp_path: Path) -> None:
    mask, logits, first = tmp_path / "mask.mrc", tmp_path / "logits.mrc", tmp_path / "first.mrc"
    run = str(finished_run.store)
    assert main(["export", run, "--mask", str(mask), "--logits", str(logits)]) == 0
    assert main(["export", run, "--logits", str(first), "--stage", "1"]) == 0
    store = RunStore.open(finished_run.store)
    with mrcfile.open(mask) as file:
        assert file.header.mode == 0
        np.testing.assert_array_equal(file.data, zarr.open_array(store.path / "labels/membranes/0", mode="r")[:])
    for path, stage in ((logits, 2), (first, 1)):
        with mrcfile.open(path) as file:
            assert file.data.dtype == np.float32
            scores = ScoreView(store.stage(stage), store.shape)  # type: ignore[arg-type]
            np.testing.assert_array_equal(file.data, scores.read(Span(0, 12)))
    for path in (mask, logits, first):
        size, origin = _facts(path)
        assert size == pytest.approx((10.0, 10.0, 10.0))
        assert origin == (10.0, 20.0, 30.0)


def test_existing_files_are_refused_before_any_is_written(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, logits = tmp_path / "mask.mrc", tmp_path / "logits.mrc"
    logits.write_text("mine")
    arguments = ["export", str(finished_run.store), "--mask", str(mask), "--logits", str(logits)]
    assert main(arguments) == 1
    assert f"There is a file at {logits} already. Give --overwrite to replace it." in capsys.readouterr().err
    assert logits.read_text() == "mine"
    assert not mask.exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert mrcfile.validate(logits)


def test_an_unfinished_run_is_refused_with_how_far_it_is(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))
    Ledger(store / "ledger").reopen("mask")
    (store / "ledger" / "stage2" / "tile00000" / "window00000" / "generation000" / "0000009-0000012.json").unlink()
    target = tmp_path / "a.mrc"
    for option, message in (
        ("--mask", "has no mask yet: it is not finished"),
        ("--logits", "Stage 2 of the run .* has 9 of 12 slices"),
    ):
        assert main(["export", str(store), option, str(target)]) == 1
        error = capsys.readouterr().err
        assert " ".join(message.split(" .* ")) in error or all(part in error for part in message.split(" .* "))
        assert not target.exists()
    assert main(["export", str(store), "--logits", str(target), "--stage", "1"]) == 0


def test_nothing_to_export_is_a_wrong_command_line(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished_run.store)]) == 2
    assert "Nothing to export: give --mask, " in capsys.readouterr().err
    assert main(["export", str(finished_run.store), "--mask", "m.mrc", "--output-dir", "d"]) == 2
    assert "--output-dir goes with --etsam-names" in capsys.readouterr().err


# --- other results, on a run with more in it


@pytest.fixture
def cleaned_run(run_store: RunStore) -> RunStore:
    """A run with a processed mask and components."""
    assert main(["threshold", str(run_store.path), "--logit-threshold", "2"]) == 0
    assert main(["postprocess", str(run_store.path), "--min-slices", "4"]) == 0
    assert main(["label", str(run_store.path)]) == 0
    return run_store


def _label(store: RunStore, name: str) -> npt.NDArray[Any]:
    return np.asarray(zarr.open_array(store.path / "labels" / name / "0", mode="r"))


def test_etsams_names(cleaned_run: RunStore, tmp_path: Path) -> None:
    run, folder = str(cleaned_run.path), tmp_path / "new" / "out"
    assert main(["export", run, "--etsam-names", "--output-dir", str(folder)]) == 0
    start = "t_etsam_predicted_"
    names = [f"{start}logits.mrc", f"{start}mask.mrc", f"{start}post_processed_mask.mrc"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name, label in ((names[1], "membranes"), (names[2], "membranes_processed")):
        with mrcfile.open(folder / name) as file:
            assert file.header.mode == 0
            np.testing.assert_array_equal(file.data, _label(cleaned_run, label))
    with mrcfile.open(folder / names[0]) as file:
        np.testing.assert_array_equal(file.data, final_scores(cleaned_run).read(Span(0, 24)))
    assert (_label(cleaned_run, "membranes") != _label(cleaned_run, "membranes_processed")).any()


def test_a_stale_processed_mask_is_not_exported(
    cleaned_run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(cleaned_run.path)
    assert main(["threshold", run, "--logit-threshold", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["export", run, "--etsam-names"]) == 0
    names = {path.name for path in tmp_path.glob("*.mrc")}
    assert names == {"t_etsam_predicted_mask.mrc", "t_etsam_predicted_logits.mrc"}
    capsys.readouterr()
    assert main(["export", run, "--processed-mask", "p.mrc"]) == 1
    error = capsys.readouterr().err
    assert "was made from an earlier mask" in error
    assert "etsam-zarr postprocess" in error
    assert not Path("p.mrc").exists()


def test_what_was_never_made_is_refused_with_the_command_that_makes_it(
    run_store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, remedy in (("--processed-mask", "etsam-zarr postprocess"), ("--components", "etsam-zarr label")):
        assert main(["export", str(run_store.path), option, str(tmp_path / "a.mrc")]) == 1
        assert remedy in capsys.readouterr().err


def test_components_come_back_as_mode_6(cleaned_run: RunStore, tmp_path: Path) -> None:
    mrc = tmp_path / "c.mrc"
    assert main(["export", str(cleaned_run.path), "--components", str(mrc)]) == 0
    ids = _label(cleaned_run, "components")
    assert ids.max() > 1
    with mrcfile.open(mrc) as file:
        assert file.header.mode == 6
        np.testing.assert_array_equal(file.data, ids)


def test_no_more_than_a_layer_of_ids_is_held(run_store: RunStore, tmp_path: Path) -> None:
    """Ids have four bytes: two layers of large slices, and a copy, would be a gigabyte and more."""
    shape, depth = (48, 512, 512), 16
    ids = zarr.create_array(
        run_store.path / "labels" / "components" / "0",
        shape=shape,
        chunks=(depth, 64, 64),
        dtype="uint32",
        zarr_format=2,
    )
    ids[...] = np.broadcast_to(np.arange(shape[0], dtype=np.uint32)[:, None, None], shape)
    run_store.record["shape"] = shape
    tracemalloc.start()
    try:
        write_all([components_export(run_store, tmp_path / "ids.mrc")])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    layer = depth * 512 * 512 * 4
    assert layer < peak < 1.7 * layer
    with mrcfile.open(tmp_path / "ids.mrc") as file:
        np.testing.assert_array_equal(file.data[:, 7, 9], np.arange(48))


@pytest.mark.parametrize("largest", [65535, 65536])
def test_ids_that_mrc_cannot_hold_are_refused(
    largest: int, cleaned_run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = zarr.open_array(cleaned_run.path / "labels/components/0", mode="r+")
    ids[-1, -1, -1] = largest
    mask, mrc = tmp_path / "m.mrc", tmp_path / "c.mrc"
    fits = largest == 65535
    run = str(cleaned_run.path)
    assert main(["export", run, "--mask", str(mask), "--components", str(mrc)]) == (0 if fits else 1)
    assert mask.exists() == mrc.exists() == fits
    if fits:
        with mrcfile.open(mrc) as file:
            assert file.data[-1, -1, -1] == 65535
    else:
        error = capsys.readouterr().err
        assert "ids up to 65,536" in error
        assert "--min-voxels" in error


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32"])
def test_scores_at_full_resolution(kind: str, run_store: RunStore, tmp_path: Path) -> None:
    place = tmp_path / "scores.zarr"
    arguments = ["export", str(run_store.path), "--scores", str(place)]
    assert main([*arguments, *(() if kind == "uint8" else ("--scores-type", kind))]) == 0
    yaozarrs.validate_zarr_store(str(place))
    logits = final_scores(run_store).read(Span(0, 24))
    with open_volume(place) as volume:
        assert volume.info.voxel_size == (10.0, 5.0, 5.0)
        assert volume.info.origin == (0.0, 100.0, 0.0)
        assert volume.info.dtype == np.dtype(kind)
        stored = volume.read(Span(0, 24))
    if kind == "uint8":
        assert stored.std() > 10
        np.testing.assert_allclose(stored / 255, 1 / (1 + np.exp(-logits.astype(float))), atol=0.5 / 255 + 1e-6)
    else:
        np.testing.assert_array_equal(stored, logits.astype(kind))


def test_scores_have_a_pyramid_of_means_in_the_version_of_the_run(tmp_path: Path) -> None:
    """A larger run of 0.5, several chunks deep."""
    run, place = make_run(tmp_path, shape=(70, 72, 80), version="0.5"), tmp_path / "scores.zarr"
    assert main(["export", str(run.path), "--scores", str(place), "--scores-type", "float32"]) == 0
    yaozarrs.validate_zarr_store(str(place))
    assert (place / "zarr.json").is_file()
    logits = final_scores(run).read(Span(0, 70))
    np.testing.assert_array_equal(zarr.open_array(place / "0", mode="r")[:], logits)
    means = logits.reshape(35, 2, 36, 2, 40, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(zarr.open_array(place / "1", mode="r")[:], means, atol=1e-5)


def test_scores_appear_whole_or_not_at_all(
    run_store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "scores.zarr"
    arguments = ["export", str(run_store.path), "--scores", str(place)]
    assert main([*arguments, "--stage", "2", "--scores-type", "float32"]) == 0
    before = np.asarray(zarr.open_array(place / "0", mode="r"))

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("etsam_zarr.label_output.build_pyramid", broken)
        assert main([*arguments, "--overwrite"]) == 130
        np.testing.assert_array_equal(zarr.open_array(place / "0", mode="r")[:], before)
        shutil.rmtree(place)
        assert main(arguments) == 130
        assert not place.exists()
    assert main(arguments) == 0
    assert zarr.open_array(place / "0", mode="r").dtype == np.uint8
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_nothing_is_written_where_something_is(
    cleaned_run: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mask, scores = str(cleaned_run.path), tmp_path / "m.mrc", tmp_path / "s.zarr"
    scores.mkdir()
    (scores / "diary.txt").write_text("mine")
    arguments = ["export", run, "--mask", str(mask), "--scores", str(scores)]
    assert main(arguments) == 1
    assert "There is a folder at" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 1
    assert "is no OME-Zarr image, so it is not replaced even with --overwrite" in capsys.readouterr().err
    assert (scores / "diary.txt").read_text() == "mine"
    assert main(["export", run, "--mask", str(mask), "--logits", str(mask)]) == 1
    assert "Two results are to go to" in capsys.readouterr().err
    assert main(["export", run, "--mask", str(tmp_path), "--overwrite"]) == 1
    assert "is a folder" in capsys.readouterr().err
    assert not mask.exists()


@pytest.mark.parametrize("inside", ["", "scores.zarr", "..", "labels/membranes"])
def test_scores_never_replace_the_run(inside: str, run_store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    place = run_store.path / inside
    before = sorted(run_store.path.rglob("*"))
    assert main(["export", str(run_store.path), "--scores", str(place), "--overwrite"]) == 1
    assert "lie in each other" in capsys.readouterr().err
    assert sorted(run_store.path.rglob("*")) == before


def test_another_run_is_not_replaced_either(
    run_store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = make_run(tmp_path / "other")
    assert main(["export", str(run_store.path), "--scores", str(other.path), "--overwrite"]) == 1
    assert "is not replaced even with --overwrite" in capsys.readouterr().err
    assert RunStore.is_store(other.path)


def test_scores_are_not_written_as_mrc(run_store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run_store.path), "--scores", str(tmp_path / "s.mrc")]) == 1
    assert "--logits" in capsys.readouterr().err


def test_quadrants_have_the_names_of_etsams_split_processing(run_store: RunStore, tmp_path: Path) -> None:
    run_store.revise(settings={**run_store.record["settings"], "tiling": "quadrants"})
    names = {export.path.name for export in etsam_exports(run_store, tmp_path)}
    assert names == {
        "t_etsam_predicted_split_processing_mask.mrc", "t_etsam_predicted_split_processing_logits.mrc",
    }  # fmt: skip
