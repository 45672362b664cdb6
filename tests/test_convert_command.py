"""``etsam-zarr convert`` as users meet it."""

from __future__ import annotations

import doctest
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import yaozarrs
import zarr
from etsam_zarr_cli import triples
from etsam_zarr_cli.main import main
from mrc_files import voxels_of, write_raw_mrc

from etsam_zarr.geometry import Span
from etsam_zarr.sources import open_volume

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs resource limits and signals of POSIX")


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    return write_raw_mrc(tmp_path / "tomo_10.5A.mrc", voxels_of("int16", (10, 80, 90)))


def voxels(path: Path) -> np.ndarray:
    with open_volume(path) as volume:
        return volume.read(Span(0, volume.info.shape[0]))


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(triples).failed == 0


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_converts_and_says_what_it_made(
    tmp_path: Path, tomogram: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "a.zarr"
    assert main(["convert", str(tomogram), str(destination), "--ome-zarr", version]) == 0
    shown = capsys.readouterr()
    assert f"OME-Zarr {version}, 2 levels" in shown.out
    assert "10 x 80 x 90 (z, y, x) int16" in shown.out
    assert "10 x 10 x 10 A" in shown.out
    assert "144 kB in" in shown.out
    assert "convert: 10 slices" in shown.err
    yaozarrs.validate_zarr_store(str(destination))
    np.testing.assert_array_equal(voxels(destination), voxels(tomogram))
    with open_volume(destination) as volume:
        assert volume.info.format == f"ome-zarr {version}"
        assert volume.info.name == "a"
    image = zarr.open_group(destination, mode="r").attrs.asdict()
    assert image.get("ome", image)["multiscales"][0]["name"] == "tomo_10.5A"


def test_options_reach_the_store(tmp_path: Path, tomogram: Path) -> None:
    destination = tmp_path / "a.zarr"
    options = ["--ome-zarr", "0.5", "--chunks", "2,16,16", "--shards", "4,32,32", "--voxel-size", "20,10,10.5"]
    assert main(["convert", str(tomogram), str(destination), *options]) == 0
    with open_volume(destination) as volume:
        assert volume.info.chunks == (2, 16, 16)
        assert volume.info.voxel_size == (20.0, 10.0, 10.5)
    assert zarr.open_array(destination / "0", mode="r").shards == (4, 32, 32)


def test_back_to_mrc_from_any_level(tmp_path: Path, tomogram: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tomogram), str(tmp_path / "a.zarr")]) == 0
    back, coarse = tmp_path / "b.mrc", tmp_path / "c.MRC"
    assert main(["convert", str(tmp_path / "a.zarr"), str(back)]) == 0
    assert "b.mrc: MRC" in capsys.readouterr().out
    np.testing.assert_array_equal(voxels(back), voxels(tomogram))
    assert main(["convert", str(tmp_path / "a.zarr"), str(coarse), "--level", "1"]) == 0
    with mrcfile.open(coarse) as file:
        assert file.data.shape == (5, 40, 45)
        assert file.voxel_size.x == pytest.approx(20.0)
        assert file.header.origin.x == pytest.approx(5.0)


def test_warnings_of_the_header_reach_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"), cell=(0.0, 0.0, 0.0))
    assert main(["convert", str(source), str(tmp_path / "a.zarr")]) == 0
    shown = capsys.readouterr()
    assert "Warning: The header gives no voxel size; give it with --voxel-size." in shown.err
    assert "voxel size  not known" in shown.out


def broken_inputs(folder: Path) -> dict[str, Path]:
    """Return one broken input per word that its message must hold."""
    good = write_raw_mrc(folder / "good.mrc", voxels_of("int16")).read_bytes()
    made = {
        "is empty": b"",
        "is truncated": good[:-1],
        "an image, not a volume": good[:8] + (1).to_bytes(4, "little") + good[12:],
        "a web page": b"<html><body>404</body></html>",
        "gunzip": b"\x1f\x8b" + good,
        "a PNG picture": b"\x89PNG\r\n\x1a\n" + good,
    }
    paths = {"nothing at": folder / "absent.mrc", "folder but no Zarr": folder / "empty"}
    (folder / "empty").mkdir()
    for number, (said, data) in enumerate(made.items()):
        paths[said] = folder / f"{number}.mrc"
        paths[said].write_bytes(data)
    return paths


def test_bad_input_is_one_paragraph_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for said, path in broken_inputs(tmp_path).items():
        assert main(["convert", str(path), str(tmp_path / "out.zarr")]) == 1, said
        shown = capsys.readouterr()
        assert said in shown.err
        assert str(path) in shown.err
        assert shown.err.count("\n") == 1
        assert shown.out == ""
        assert not list(tmp_path.glob("out.zarr*"))


def test_existing_output_needs_overwrite(tmp_path: Path, tomogram: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.zarr", "a.mrc"):
        command = ["convert", str(tomogram), str(tmp_path / name)]
        assert main(command) == 0
        assert main(command) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--chunks", "1,2"],
        ["--chunks", "0,1,1"],
        ["--voxel-size", "0"],
        ["--voxel-size", "1,2"],
        ["--voxel-size", "x"],
        ["--ome-zarr", "0.3"],
        ["--level", "-1"],
    ],
)
def test_wrong_options_are_exit_code_2(tmp_path: Path, tomogram: Path, options: list[str]) -> None:
    assert main(["convert", str(tomogram), str(tmp_path / "a.zarr"), *options]) == 2
    assert not list(tmp_path.glob("a.zarr*"))


def test_contradicting_options_are_explained(
    tmp_path: Path, tomogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tomogram), str(tmp_path / "a.zarr"), "--shards", "16,256,256"]) == 1
    assert "only in OME-Zarr 0.5" in capsys.readouterr().err
    assert main(["convert", str(tomogram), str(tmp_path / "a.mrc"), "--shards", "16,256,256"]) == 1
    assert "leave it out" in capsys.readouterr().err


def start(folder: Path, *options: str, limit: int | None = None) -> subprocess.Popen[str]:
    def restrict() -> None:
        if limit is not None:
            # Writing past the limit raises SIGXFSZ, which would end the process before it can explain.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "etsam_zarr_cli.main", "convert", "tomo.mrc", *options]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=restrict
    )


@needs_posix
@pytest.mark.parametrize("name", ["a.zarr", "a.mrc"])
def test_a_limit_on_file_sizes_is_explained_and_nothing_looks_finished(tmp_path: Path, name: str) -> None:
    write_raw_mrc(tmp_path / "tomo.mrc", voxels_of("int16", (10, 200, 200)))
    process = start(tmp_path, name, limit=20_000)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ulimit" in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / name).exists()
    assert main(["convert", str(tmp_path / "tomo.mrc"), str(tmp_path / name)]) == 0
    np.testing.assert_array_equal(voxels(tmp_path / name), voxels(tmp_path / "tomo.mrc"))


@needs_posix
def test_interrupted_it_exits_130_and_goes_on(tmp_path: Path) -> None:
    write_raw_mrc(tmp_path / "tomo.mrc", voxels_of("uint16", (100, 100, 100)))
    options = ["a.zarr", "--chunks", "1,32,32"]
    process = start(tmp_path, *options)
    while process.poll() is None and not (tmp_path / "a.zarr.partial" / "0" / "3").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "give the same command again" in err
    assert not (tmp_path / "a.zarr").exists()
    again = start(tmp_path, *options)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0
    assert "already done" in err
    np.testing.assert_array_equal(voxels(tmp_path / "a.zarr"), voxels(tmp_path / "tomo.mrc"))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["etspy_HAADF", "isbi2012_raw_u16", "isbi2012_membrane", "pyto_new-head_int16", "tardis_mrc3D"]
)
def test_real_tomograms_there_and_back(tmp_path: Path, real_data: Path, name: str) -> None:
    source, there, back = real_data / f"{name}.mrc", tmp_path / "a.zarr", tmp_path / "b.mrc"
    assert main(["convert", str(source), str(there)]) == 0
    yaozarrs.validate_zarr_store(str(there))
    assert main(["convert", str(there), str(back)]) == 0
    expected = voxels(source)
    np.testing.assert_array_equal(voxels(there), expected)
    assert voxels(there).dtype == expected.dtype
    np.testing.assert_array_equal(voxels(back), expected)
    with open_volume(source) as a, open_volume(back) as b:
        assert b.info.voxel_size == pytest.approx(a.info.voxel_size)
        assert b.info.origin == pytest.approx(a.info.origin)
