"""The bundled model: its files are guarded, it is what ``run`` falls back on, and its results mean something."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from etsam_zarr_cli.main import main
from tiny import texture, write_tomogram

from etsam_zarr.bundled import (
    BUNDLED_SETTINGS,
    CHECKSUMS,
    MOST_BYTES,
    bundled_paths,
    bundled_state,
    find_bundled_weights,
    record_checksums,
)
from etsam_zarr.checkpoint import read_checkpoint
from etsam_zarr.errors import ModelError
from etsam_zarr.geometry import Span
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores

# Far below what the model scores, far above what chance gives (0.2 where a tenth is membrane).
DICE_FLOOR = 0.65


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files in the place of weights, and their checksums."""
    for number, path in enumerate(bundled_paths(folder=tmp_path)):
        path.write_bytes(bytes([number]) * 1000)
    record_checksums(folder=tmp_path)
    return tmp_path


def test_checksums_are_as_sha256sum_writes_them(folder: Path) -> None:
    expected = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in bundled_paths(folder=folder)
    )
    assert (folder / "demo-256.sha256").read_text() == expected
    assert find_bundled_weights(folder=folder) == bundled_paths(folder=folder)


def test_a_missing_file_says_how_to_get_it(folder: Path) -> None:
    bundled_paths(folder=folder)[1].unlink()
    with pytest.raises(ModelError, match=r"is absent.*demo-256-stage2\.pt.*Install etsam-zarr again"):
        find_bundled_weights(folder=folder)


@pytest.mark.parametrize("damage", ["content", "no checksums"])
def test_other_content_is_not_loaded(folder: Path, damage: str) -> None:
    if damage == "content":
        bundled_paths(folder=folder)[0].write_bytes(b"\1" * 1000)
    else:
        (folder / "demo-256.sha256").unlink()
    assert bundled_state(folder=folder)[bundled_paths(folder=folder)[0]] == "damaged"
    with pytest.raises(ModelError, match=r"is damaged.*demo-256-stage1\.pt"):
        find_bundled_weights(folder=folder)


def test_the_package_stays_small(folder: Path) -> None:
    bundled_paths(folder=folder)[0].write_bytes(bytes(MOST_BYTES + 1))
    with pytest.raises(ModelError, match=r"12\.0 MB, and a bundled stage may have 12 MB"):
        record_checksums(folder=folder)


@pytest.mark.usefixtures("bundled_model")
def test_its_files_are_small_and_whole() -> None:
    assert set(bundled_state().values()) == {"whole"}
    for path in bundled_paths():
        assert path.stat().st_size <= MOST_BYTES
        weights = read_checkpoint(path)
        assert all(not value.is_floating_point() or value.element_size() == 2 for value in weights.values())


@pytest.mark.usefixtures("bundled_model")
def test_the_wheel_brings_it(tmp_path: Path) -> None:
    root, source = Path(__file__).parents[1], tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for name in ("etsam_zarr", "cli"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        for path in (*bundled_paths(), bundled_paths()[0].with_name(CHECKSUMS)):
            assert content.read(f"etsam_zarr/models/{path.name}") == path.read_bytes()


@pytest.mark.usefixtures("bundled_model", "no_etsam_weights")
def test_run_falls_back_on_it_and_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tomogram(tmp_path / "tomo.mrc", texture((2, 30, 30)))
    assert main(["plan", str(source)]) == 0
    assert main(["run", str(source)]) == 0
    told = capsys.readouterr()
    for text in (told.out, told.err):  # of plan, of run
        (line,) = [line for line in text.splitlines() if "weights are not on this machine" in line]
        assert "bundled demonstration model" in line
        assert "etsam-zarr weights fetch" in line
    record = RunStore.open(tmp_path / "tomo.etsam.zarr").record
    assert (record["model"], record["bundled"], record["untrained"]) == ("demo-256", True, False)
    assert record["settings"]["normalize_method"] == BUNDLED_SETTINGS.normalize_method
    assert record["settings"]["logit_threshold"] == BUNDLED_SETTINGS.logit_threshold

    assert main(["run", str(source), "--model", "demo-256", "--profile", "etsam-v2", "--overwrite"]) == 0
    warned = capsys.readouterr().err
    assert "weights are not on this machine" not in warned
    assert "normalize_method is min_max_positive_values instead of percentile" in warned
    assert main(["run", str(source), "--model", "demo-256", "--logit-threshold", "1.5", "--overwrite"]) == 0
    record = RunStore.open(tmp_path / "tomo.etsam.zarr").record
    assert (record["settings"]["logit_threshold"], record["settings"]["normalize_method"]) == (1.5, "percentile")


@pytest.mark.usefixtures("bundled_model")
def test_it_finds_membranes(small_phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "run.etsam.zarr"
    command = ["run", str(small_phantom), "-o", str(store), "--model", "demo-256", "--precision", "float32"]
    assert main(command) == 0
    truth = small_phantom / "labels" / "membranes"
    capsys.readouterr()
    assert main(["evaluate", str(store), str(truth), "--no-curve", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["masks"][0]["dice"] > DICE_FLOOR
    for stage in (1, 2):
        logits = final_scores(RunStore.open(store), stage).read(Span(1, 16))
        assert np.ptp(logits) > 5
        assert 0.02 < np.mean(logits > BUNDLED_SETTINGS.logit_threshold) < 0.5
        scores = np.asarray(zarr.open_array(store / "stages" / str(stage) / "object_score", mode="r"))
        assert (scores[:, 1:] > 0).all(), "the gate says that there are membranes"


def test_fine_tuned_weights_run_with_its_settings(bundled_model: ModelSpec, tmp_path: Path) -> None:
    assert bundled_model.checkpoints is not None
    tuned = tmp_path / "tuned.pt"
    tuned.write_bytes(bundled_model.checkpoints[1].read_bytes())
    source = write_tomogram(tmp_path / "tomo.mrc", texture((2, 30, 30)))
    assert main(["run", str(source), "--model", "demo-256", "--stage1-checkpoint", str(tuned)]) == 0
    record = RunStore.open(tmp_path / "tomo.etsam.zarr").record
    assert not record["bundled"]
    assert record["fingerprint"]["stage1_weights"] == record["fingerprint"]["stage2_weights"]
    assert record["settings"]["normalize_method"] == "percentile"
