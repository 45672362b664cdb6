"""What goes wrong with files, weights, disks and keyboards, through the real command.

Each ends with an exit code that is not 0 and one paragraph that says what is wrong, the value found, the limit and the
remedy; and nothing that was computed is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from conftest import FinishedRun
from etsam_zarr_cli.main import main
from mrc_files import write_raw_mrc
from tiny import OPTIONS, assert_same_results, results_of, texture, write_tomogram

from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Block, Ledger
from etsam_zarr.model_config import BUNDLED_FOLDER
from etsam_zarr.runstore import RunStore
from etsam_zarr.sources import open_volume
from etsam_zarr.status import read_status

Capture = pytest.CaptureFixture[str]
_SLOW = pytest.mark.slow


def _paragraph(stderr: str) -> str:
    """The error in what a command said: one line, the last, and no traceback."""
    assert "Traceback" not in stderr
    lines = stderr.splitlines()
    assert [line for line in lines if line.startswith("Error: ")] == lines[-1:], stderr
    return lines[-1]


def _refused(capsys: Capture, *arguments: object) -> str:
    """Run a command that must fail, and return its error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return _paragraph(captured.err)


def _says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


# Files that are no tomogram


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.touch()


def _half_a_header(path: Path) -> None:
    write_raw_mrc(path, texture((4, 8, 9)))
    os.truncate(path, 500)


def _half_the_voxels(path: Path) -> None:
    write_raw_mrc(path, texture((4, 8, 9)))
    os.truncate(path, 1024 + 4 * 8 * 9 * 2)


def _a_table(path: Path) -> None:
    path.write_text("z,y,x\n" * 400)


def _random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _a_web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>" * 40)


def _a_picture(path: Path) -> None:
    with mrcfile.new(path, texture((1, 40, 48))[0]):
        pass


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (_missing, ("There is nothing at", "Check the spelling")),
        (_empty, ("is empty (0 bytes)", "again")),
        (_half_a_header, ("500 bytes", "1024")),
        (_half_the_voxels, ("2176 bytes", "the file holds 1600", "again")),
        (_a_table, ("is a text file, not an MRC",)),
        (_random_bytes, ("MRC",)),
        (_a_web_page, ("is a web page, not an MRC", "Download")),
        (_a_picture, ("slices are needed; give the reconstructed tomogram",)),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_is_no_tomogram_is_refused_before_anything_is_made(
    command: str, make: Callable[[Path], None], parts: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "tomo.mrc"
    make(path)
    before = sorted(tmp_path.iterdir())
    _says(_refused(capsys, command, path, *OPTIONS), "tomo.mrc", *parts)
    assert sorted(tmp_path.iterdir()) == before


# Voxels that cannot be used


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_named(value: float, tmp_path: Path, capsys: Capture) -> None:
    voxels = texture((4, 20, 24))
    voxels[2, 11, 7] = value
    source = write_tomogram(tmp_path / "tomo.mrc", np.zeros_like(voxels))
    with mrcfile.mmap(source, mode="r+") as file:
        file.data[...] = voxels
    _says(_refused(capsys, "run", source, *OPTIONS), f"{value}", "(z, y, x) = (2, 11, 7)", "replace them")


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_is_refused_with_its_value(value: int, tmp_path: Path, capsys: Capture) -> None:
    source = write_tomogram(tmp_path / "tomo.mrc", np.full((4, 20, 24), value, dtype=np.int16))
    _says(_refused(capsys, "run", source, *OPTIONS), f"the same value, {value}", "nothing to segment")


def test_a_volume_of_negative_values_is_refused_with_the_other_methods(tmp_path: Path, capsys: Capture) -> None:
    source = write_tomogram(tmp_path / "tomo.mrc", texture((4, 20, 24)) - 3)
    _says(_refused(capsys, "run", source, *OPTIONS), "largest voxel value is -2", "--normalize-method softplus_minmax")


def test_a_voxel_size_of_zero_is_a_warning_and_can_be_given(tmp_path: Path, capsys: Capture) -> None:
    source = write_raw_mrc(tmp_path / "tomo.mrc", texture((3, 20, 24)), cell=(0.0, 0.0, 0.0))
    mask = tmp_path / "mask.mrc"
    assert main(["run", str(source), *OPTIONS]) == 0
    error = capsys.readouterr().err
    _says(error, "voxel size unknown", "Warning: ", "--voxel-size")

    # No logit depends on it: what is there is kept, and only what carries the size is made again.
    store = tmp_path / "tomo.etsam.zarr"
    before = (store / "ledger" / "stage1.json").read_bytes()
    assert main(["run", str(source), *OPTIONS, "--voxel-size", "7.5"]) == 0
    error = capsys.readouterr().err
    _says(error, "voxel 7.5 A", "now 7.5 x 7.5 x 7.5 A (z y x) (before: unknown)")
    assert "Warning: " not in error
    assert (store / "ledger" / "stage1.json").read_bytes() == before
    for image in (store, store / "labels" / "membranes"):
        with open_volume(image) as volume:
            assert volume.info.voxel_size == (7.5, 7.5, 7.5)
    assert main(["export", str(store), "--mask", str(mask)]) == 0
    with mrcfile.open(mask) as file:
        assert file.voxel_size.tolist() == pytest.approx((7.5, 7.5, 7.5))

    # Later commands need not repeat it.
    assert main(["run", str(source), *OPTIONS]) == 0
    assert "finished already" in capsys.readouterr().out
    assert RunStore.open(store).voxel_size == (7.5, 7.5, 7.5)


# Models and weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tomogram(tmp_path / "tomo.mrc", texture((4, 20, 24)))


def test_an_error_page_for_weights_is_recognised(source: Path, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "etsam_stage1_v1.pt"
    page.write_text("<html>403 Forbidden</html>")
    checkpoints = ("--stage1-checkpoint", page, "--stage2-checkpoint", page)
    message = _refused(capsys, "run", source, *OPTIONS, *checkpoints)
    _says(message, "etsam_stage1_v1.pt is an HTML page (26 bytes)", "Download it again")
    page.unlink()
    _says(_refused(capsys, "run", source, *OPTIONS, *checkpoints), "cannot be opened: No such file", "zenodo")
    assert not (tmp_path / "tomo.etsam.zarr").exists()


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_of_another_architecture_name_the_first_that_differs(
    stage: int, source: Path, tmp_path: Path, capsys: Capture, seeded_predictor: Any
) -> None:
    right, wrong = tmp_path / "right.pt", tmp_path / "wrong.pt"
    state = dict(seeded_predictor.state_dict())
    torch.save({"model": state}, right)
    name = next(name for name, value in state.items() if value.ndim == 4)
    torch.save({"model": state | {name: torch.zeros(2, 2)}}, wrong)
    first, second = (wrong, right) if stage == 1 else (right, wrong)
    message = _refused(capsys, "run", source, *OPTIONS, "--stage1-checkpoint", first, "--stage2-checkpoint", second)
    _says(message, "wrong.pt does not belong to this model", f"{name} has shape (2, 2)", "--model")
    # Also stage 2's are checked before stage 1 is computed.
    assert read_status(tmp_path / "tomo.etsam.zarr").stages[0].slices == 0


def test_one_checkpoint_or_none_is_refused(source: Path, tmp_path: Path, capsys: Capture) -> None:
    missing = _refused(capsys, "run", source, "--model", "sam2.1_hiera_b+")
    _says(missing, "no weights", "--stage1-checkpoint", "zenodo")
    _says(_refused(capsys, "run", source, *OPTIONS, "--stage1-checkpoint", "a.pt"), "--stage2-checkpoint as well")


def test_a_model_config_that_names_foreign_code_is_refused(source: Path, tmp_path: Path, capsys: Capture) -> None:
    content = yaml.safe_load((BUNDLED_FOLDER / "seeded-256.yaml").read_text())
    mark = tmp_path / "mark"
    content["model"]["extra"] = {"_target_": "sam2.modeling.sam2_base.torch.save", "obj": 1, "f": str(mark)}
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump(content))
    message = _refused(capsys, "plan", source, "--model", config)
    _says(message, "model.yaml", "torch.save", "Remove it")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--device", "cuda:99"), 1, ("cuda:99 is not there", "--device cpu")),
        (("--slab", "0"), 1, ("slab of 0 slices", "--slab 1 or more")),
        (("--grid-interval", "-1"), 1, ("interval is -1", "at least 1")),
        (("--stage1-prompt", "stage1_partial"), 1, ("cannot prompt stage 1 itself",)),
        (("--voxel-size", "0"), 2, ("--voxel-size",)),
        (("--profile", "etsam-v3"), 2, ("etsam-v3", "etsam-v1")),
        (("--overwrite", "--resume"), 2, ("contradict",)),
    ],
)
def test_settings_out_of_range_are_refused_by_flag(
    arguments: tuple[str, ...], code: int, parts: tuple[str, ...], source: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["run", str(source), *OPTIONS, *arguments]) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    _says(error, *parts)
    assert not (tmp_path / "tomo.etsam.zarr").exists()


# Destinations


@pytest.mark.parametrize("extra", [(), ("--overwrite",)])
def test_what_is_no_run_store_is_never_touched(
    extra: tuple[str, ...], source: Path, tmp_path: Path, capsys: Capture
) -> None:
    for mine in (tmp_path / "folder", tmp_path / "file"):
        if mine.name == "folder":
            mine.mkdir()
            (mine / "thesis.txt").write_text("mine")
        else:
            mine.write_text("mine")
        message = _refused(capsys, "run", source, *OPTIONS, "-o", mine, *extra)
        _says(message, f"something at {mine} that is no run store", "another -o")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_is_kept_unless_overwriting_is_asked_for(
    finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    store = Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))
    command = ("run", finished_run.source, *OPTIONS, "-o", store)
    before = (store / "ledger" / "stage1.json").read_bytes()

    assert main([str(part) for part in command]) == 0
    assert "finished already; nothing was computed" in capsys.readouterr().out
    message = _refused(capsys, *command, "--profile", "etsam-v2")
    _says(message, "stage2_prompt (", "there, ", "now)", "another -o", "--overwrite")
    assert_same_results(store, finished_run.store)
    assert (store / "ledger" / "stage1.json").read_bytes() == before

    # Another final threshold is no other run: only the mask is made again.
    assert main([*map(str, command), "--logit-threshold", "0.5"]) == 0
    captured = capsys.readouterr()
    _says(captured.err, "The mask was made with the threshold -0.5; it is made again with 0.5")
    assert (store / "ledger" / "stage1.json").read_bytes() == before
    theirs, mine = results_of(finished_run.store), results_of(store)
    assert mine["labels/membranes/0"].sum() < theirs["labels/membranes/0"].sum()
    np.testing.assert_array_equal(mine["stages/2/logits"], theirs["stages/2/logits"])


def test_a_folder_that_cannot_be_written_is_named(source: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    message = _refused(capsys, "run", source, *OPTIONS, "-o", tmp_path / "file" / "run.etsam.zarr")
    _says(message, str(tmp_path / "file"), "Check the path and its permissions")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    _says(_refused(capsys, "run", source, *OPTIONS, "-o", locked / "run.etsam.zarr"), "locked", "Permission denied")


# Full disks


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "etsam_zarr_cli.main", *map(str, arguments)]


def _threads() -> tuple[str, str]:
    # Results are equal to the last bit for equal numbers of threads only.
    return "--threads", str(torch.get_num_threads())


def test_a_limit_on_file_sizes_stops_the_run_which_goes_on_without_it(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    store = tmp_path / "run.etsam.zarr"
    command = _command("run", finished_run.source, *OPTIONS, *_threads(), "-o", store)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (95_000, 95_000))

    stopped = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert stopped.returncode == 1
    _says(_paragraph(stopped.stderr), str(store), os.strerror(errno.EFBIG), "ulimit -f", "finished work is kept")
    kept = [stage.slices for stage in read_status(store).stages]
    assert kept[0] > 0, "the limit is meant to strike in the middle"
    assert sum(kept) < 24
    _finish(finished_run, store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left", [400_000, *(pytest.param(left, marks=_SLOW) for left in (4_000, 100_000, 700_000))])
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_space(
    left: int, finished_run: FinishedRun, small_disk: Path, capsys: Capture
) -> None:
    store, ballast = small_disk / "run.etsam.zarr", small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(ballast, ballast.stat().st_size - left)
    command = ("run", finished_run.source, *OPTIONS, "-o", store)
    _says(_refused(capsys, *command), "would take up to", "are free at", "Give -o on another disk")
    message = _refused(capsys, *command, "--force")
    _says(message, str(small_disk), "No space left on device", "Free some space", "finished work is kept")
    ballast.unlink()
    _finish(finished_run, store)


def test_a_read_only_disk_is_named(finished_run: FinishedRun, small_disk: Path, capsys: Capture) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = _refused(capsys, "run", finished_run.source, *OPTIONS, "-o", small_disk / "run.etsam.zarr")
    _says(message, str(small_disk), "Read-only file system", "Check the path and its permissions")


def _finish(run: FinishedRun, store: Path) -> None:
    """Give the command again; what was computed is not computed again, and the result is the undisturbed one."""
    finished = {path: path.read_bytes() for path in sorted((store / "ledger").rglob("[0-9]*.json")) if store.exists()}
    assert main(["run", str(run.source), *OPTIONS, "-o", str(store)]) == 0
    assert read_status(store).finished
    assert {path: path.read_bytes() for path in finished} == finished
    assert_same_results(store, run.store)


# Interruption


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=_SLOW)])
def test_ctrl_c_is_answered_and_the_same_command_goes_on(stage: int, finished_run: FinishedRun, tmp_path: Path) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = subprocess.Popen(
        _command("run", finished_run.source, *OPTIONS, *_threads(), "-o", store),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A batch system may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    ledger = Ledger(store / "ledger")
    while process.poll() is None and not ledger.reached(Block(stage, 0, 0, Span(0, 12))):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("Interrupted. What was finished is on disk; give the same command again")
    assert not read_status(store).finished
    _finish(finished_run, store)
    assert out == ""


# What a power failure leaves


def _cut(chunk: Path) -> None:
    os.truncate(chunk, 1000)


def _fill(chunk: Path) -> None:
    chunk.write_bytes(b"x" * 20_000)


@pytest.mark.parametrize(("damage", "noted"), [(_cut, True), (_fill, False)])
def test_a_damaged_chunk_is_computed_again(
    damage: Callable[[Path], None], noted: bool, finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    store = Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))
    for name in ("stage1", "mask"):
        Ledger(store / "ledger").reopen(name)
    if not noted:
        Ledger(store / "ledger").forget(1, 0)
    for array in ("logits/0/0/0/0", "object_pointer/0/0/0", "object_score/0/0"):
        damage(store / "stages" / "1" / array)
    assert main(["run", str(finished_run.source), *OPTIONS, "-o", str(store)]) == 0
    error = capsys.readouterr().err
    assert ("Warning: Stage 1 is computed again from its start. A chunk of" in error) is noted
    assert_same_results(store, finished_run.store)


def test_damage_in_a_finished_run_is_said_and_not_exported(
    finished_run: FinishedRun, tmp_path: Path, capsys: Capture
) -> None:
    store = Path(shutil.copytree(finished_run.store, tmp_path / "copy.etsam.zarr"))
    target = tmp_path / "logits.mrc"
    _cut(store / "stages" / "2" / "logits" / "0" / "0" / "0" / "0")
    _says(_refused(capsys, "export", store, "--logits", target), "stages/2/logits", "is damaged", "--overwrite")
    assert not target.exists()
    (store / "stages" / "2" / "logits" / ".zarray").write_bytes(b"")
    _says(_refused(capsys, "export", store, "--logits", target), "metadata in", "cannot be read", "--overwrite")
