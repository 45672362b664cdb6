"""Phantoms on disk, through the library and the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from etsam_zarr_cli.main import main

from etsam_zarr.errors import DoesNotFitError, OutputExistsError
from etsam_zarr.geometry import Span
from etsam_zarr.phantom.store import SETTINGS_ATTRIBUTE, write_phantom
from etsam_zarr.phantom.volume import Phantom, PhantomSettings
from etsam_zarr.sources import open_volume

SETTINGS = PhantomSettings(shape=(24, 60, 70), seed=7, snr=0.2, voxel_size=12.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "p.zarr", SETTINGS)


def test_chunks_do_not_change_the_voxels(written: Path, tmp_path: Path) -> None:
    other = write_phantom(tmp_path / "q.zarr", SETTINGS, chunks=(7, 32, 19), version="0.5")
    for path in ("0", "labels/membranes/0"):
        first, second = zarr.open_array(written / path, mode="r"), zarr.open_array(other / path, mode="r")
        assert first.chunks != second.chunks
        assert np.array_equal(first[:], second[:])


def test_the_ratio_is_the_one_asked_for(written: Path) -> None:
    signal = Phantom(SETTINGS).signal(SETTINGS.whole)
    stored: Any = zarr.open_array(written / "0", mode="r")[:]
    assert signal.var() / (stored - signal).var() == pytest.approx(0.2, rel=0.05)


def test_it_opens_as_volume_and_label(written: Path) -> None:
    with open_volume(written) as volume, open_volume(written / "labels/membranes") as truth:
        assert volume.info.shape == truth.info.shape == SETTINGS.shape
        assert volume.info.voxel_size == truth.info.voxel_size == (12.0, 12.0, 12.0)
        assert set(np.unique(truth.read(Span(0, 24)))) == {0, 1}
    made = zarr.open_group(written, mode="r").attrs[SETTINGS_ATTRIBUTE]
    assert isinstance(made, dict)
    assert made["seed"] == 7


def test_metadata_is_valid(written: Path) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    yaozarrs.validate_zarr_store(str(written))


def test_existing_output_is_kept(written: Path) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_phantom(written, SETTINGS)


def test_a_full_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DoesNotFitError, match="GB free"):
        write_phantom(tmp_path / "p.zarr", SETTINGS)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.zarr"
    assert main(["phantom", str(out), "--shape", "8,30,40", "--seed", "1", "--snr", "0.1", "--carbon"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert open_volume(out).info.shape == (8, 30, 40)
    assert main(["phantom", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["phantom", str(out), "--shape", "8,30"]) == 2
    assert main(["phantom", str(tmp_path / "r.zarr"), "--snr", "-1"]) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    program = (
        "import sys; from etsam_zarr.phantom.volume import PhantomSettings; "
        "from etsam_zarr.phantom.store import write_phantom; "
        "write_phantom(sys.argv[1], PhantomSettings(shape=(int(sys.argv[2]), 256, 256), seed=1)); "
        "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))"
    )
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", program, str(tmp_path / f"{depth}.zarr"), str(depth)]))
        for depth in (384, 1024)  # tiles differ in what is in them, so the fullest must be in both
    ]
    assert peaks[1] < 1.1 * peaks[0]
