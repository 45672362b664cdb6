"""The benchmark of a large volume, on small ones."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import large

from etsam_zarr.geometry import Span
from etsam_zarr.sources import open_volume

SHAPE = (10, 40, 24)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    large.make_volume(folder, SHAPE)
    large.make_mask(folder, SHAPE)
    return folder


def test_the_volume_has_the_wanted_shape_and_is_no_mere_noise(made: Path) -> None:
    with open_volume(made / "volume.mrc") as volume:
        assert (volume.info.shape, volume.info.dtype, volume.info.voxel_size) == (SHAPE, "int8", (1.25, 1.25, 1.25))
        voxels = volume.read(Span(0, 10)).astype(float)
    assert 0.1 < voxels[0].ravel().dot(voxels[1].ravel()) / (voxels[0] ** 2).sum() < 1
    assert (voxels[0] != voxels[1]).any()
    with open_volume(made / "mask.zarr") as mask:
        assert mask.info.shape == SHAPE


def test_a_step_is_measured_with_the_processes_that_it_starts(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume.mrc").symlink_to(made / "volume.mrc")
    ballast = b"\x01" * (700 << 20)  # of this process, which must not count
    result = large.measure(large.Step("convert", ("convert", "volume.mrc", "volume.zarr")), tmp_path)
    assert ballast[-1] == 1
    assert (tmp_path / "volume.zarr" / "0").is_dir()
    assert result["command"] == "etsam-zarr convert volume.mrc volume.zarr"
    assert 20e6 < result["peak_bytes"] < 600 << 20
    assert result["told"][0].startswith("volume.zarr: OME-Zarr")
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time; held = bytearray(300 << 20); time.sleep(2)'])\n"
    )
    monkeypatch.setattr(large, "__file__", str(script))
    result = large.measure(large.Step("parent", ("--child",)), tmp_path)
    (child,) = result["children_peak_bytes"]
    assert 300 << 20 < child < 400 << 20
    assert large.rows_of([result])[0]["of its workers"] == str(round(child / 2**20))


def test_a_step_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"no step ended with 1:\n(.|\n)*missing\.mrc"):
        large.measure(large.Step("no step", ("convert", "missing.mrc", "volume.zarr")), tmp_path)


def test_nothing_goes_on_behind_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "endless.py"
    script.write_text("import time\nwhile True: time.sleep(1)\n")
    monkeypatch.setattr(large, "__file__", str(script))
    seen: list[int] = []

    def interrupted(pid: int, peaks: dict[int, int]) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(large, "_look_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        large.measure(large.Step("endless", ("--child",)), tmp_path)
    assert len(seen) == 1
    assert not psutil.pid_exists(seen[0])


def test_a_disk_that_would_be_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="are needed at a time"):
        large.check_room(tmp_path, (10**6, 10**6, 10**6))


@pytest.mark.slow
def test_all_steps(tmp_path: Path) -> None:
    shape = (16, 64, 64)
    found = list(large.measure_all(tmp_path, shape))
    assert [result["step"] for result in found] == [step.name for step in large.steps(shape)]
    fine = next(result for result in found if result["step"] == "run, fine")
    assert len(large.rows_of([fine])[0]["of its workers"].split(", ")) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"small.zarr", "labels.csv", "out.txt", "err.txt"}
