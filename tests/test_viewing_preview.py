"""The contact sheet: what it reads, where it puts things, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import numpy.typing as npt
import pytest
from etsam_zarr_cli.main import main
from PIL import Image

from etsam_zarr.errors import SettingsError
from etsam_zarr.ome.groups import create_pyramid
from etsam_zarr.ome.pyramid import build_pyramid
from etsam_zarr.sources import open_volume
from etsam_zarr.viewing.preview import PreviewSettings, contact_sheet, open_for_pixels, save_sheet

Array = npt.NDArray[Any]
MARGIN, TITLE = 8, 28
ORANGE = (255, 176, 0)


def write_pyramid(
    path: Path, voxels: Array, voxel_size: tuple[float, float, float] | None = (20.0, 10.0, 10.0)
) -> Path:
    levels = create_pyramid(
        path, shape=voxels.shape, dtype=voxels.dtype, voxel_size=voxel_size, origin=(0.0, 0.0, 0.0),
        chunks=(16, 64, 64), version="0.4", name="t",
    )  # fmt: skip
    levels[0][:] = voxels
    build_pyramid(levels, reduce="max")
    return path


def ramp(shape: tuple[int, int, int] = (40, 100, 200)) -> Array:
    """Grey rises along x, so that orientation can be seen in the panels."""
    return np.broadcast_to(np.arange(shape[2], dtype=np.float32), shape).copy()


def test_panels_are_where_they_should_be(tmp_path: Path) -> None:
    settings = PreviewSettings(slices=4, columns=2, panel=100, percentiles=(0, 100))
    with open_volume(write_pyramid(tmp_path / "t.zarr", ramp())) as volume:
        sheet = np.asarray(contact_sheet(volume, settings=settings))
    # xy: 2000 x 1000 angstrom in 100 x 50 pixels; z: 800 angstrom in 40 pixels.
    assert sheet.shape == (TITLE + 2 * (50 + MARGIN) + (40 + MARGIN) + MARGIN, 2 * (100 + MARGIN) + MARGIN, 3)
    top, left = TITLE + MARGIN + 50 + MARGIN, MARGIN + 100 + MARGIN
    panel = sheet[top : top + 50, left : left + 100, 0].astype(int)
    row = panel[40]
    assert row[2] < 20
    assert row[97] > 235
    assert (np.diff(row) >= 0).all()
    # yz: x does not vary in it, so grey is that of the middle.
    yz = sheet[-MARGIN - 40 : -MARGIN, MARGIN + 100 + MARGIN :][35, :50, 0]
    assert abs(yz.astype(int) - 128).max() < 8


def test_membranes_are_outlined_not_filled(tmp_path: Path) -> None:
    mask = np.zeros((40, 100, 200), np.uint8)
    mask[:, 30:70, 80:120] = 1
    settings = PreviewSettings(slices=1, columns=1, panel=200)
    paths = write_pyramid(tmp_path / "t.zarr", ramp()), write_pyramid(tmp_path / "m.zarr", mask)
    with open_volume(paths[0]) as volume, open_volume(paths[1]) as outlined:
        sheet = np.asarray(contact_sheet(volume, outlined, settings=settings))
    panel = sheet[TITLE + MARGIN :][:100, MARGIN : MARGIN + 200]
    orange = (panel == ORANGE).all(axis=2)
    assert orange[30:70, 80].all()
    assert orange[30, 80:120].all()
    assert not orange[32:68, 82:118].any()
    assert not orange[:28].any()


def test_truth_is_tinted_beneath_the_outline(tmp_path: Path) -> None:
    mask, truth = np.zeros((2, 40, 100, 200), np.uint8)
    mask[:, 30:70, 80:120] = 1
    truth[:, 30:70, 100:140] = 1
    settings = PreviewSettings(slices=1, columns=1, panel=200)
    paths = [write_pyramid(tmp_path / name, voxels) for name, voxels in (("t", ramp()), ("m", mask), ("u", truth))]
    with open_volume(paths[0]) as volume, open_volume(paths[1]) as outlined, open_volume(paths[2]) as tinted:
        plain, sheet = (
            np.asarray(contact_sheet(volume, outlined, truth=shown, settings=settings))[TITLE + MARGIN :][:100].astype(
                int
            )
            for shown in (None, tinted)
        )
    bluer = (sheet[..., 2] - sheet[..., 0]) - (plain[..., 2] - plain[..., 0]) > 30
    inside = bluer[30:70, MARGIN + 100 : MARGIN + 140]
    assert inside.sum() == inside.size - np.count_nonzero((sheet[30:70, MARGIN + 100 : MARGIN + 140] == ORANGE).all(2))
    assert bluer.sum() == inside.sum()
    assert (sheet[30:70, MARGIN + 119] == ORANGE).all(), "the outline is on top"


def test_one_voxel_membranes_survive_shrinking(tmp_path: Path) -> None:
    mask = np.zeros((4, 400, 400), np.uint8)
    mask[:, :, 201] = 1
    paths = write_pyramid(tmp_path / "t.zarr", ramp(mask.shape)), write_pyramid(tmp_path / "m.zarr", mask)
    with open_volume(paths[0]) as volume, open_volume(paths[1]) as outlined:
        sheet = np.asarray(contact_sheet(volume, outlined, settings=PreviewSettings(1, 1, 100)))
    assert (sheet == ORANGE).all(axis=2).any(axis=1)[TITLE + MARGIN :][22:60].all()


def test_reads_the_level_that_suffices(tmp_path: Path) -> None:
    """Level 0 is taken away: a sheet of small panels does not miss it, one of large panels does."""
    path = write_pyramid(tmp_path / "t.zarr", ramp((20, 200, 400)))
    with open_for_pixels(path, 100) as volume:
        assert volume.info.shape == (5, 50, 100)
        assert volume.info.voxel_size == (80.0, 40.0, 40.0)
        want = np.asarray(contact_sheet(volume, settings=PreviewSettings(panel=100), depth=20))
    for chunk in (path / "0").glob("[0-9]*"):
        for file in sorted(chunk.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    with open_for_pixels(path, 100) as volume:
        got = np.asarray(contact_sheet(volume, settings=PreviewSettings(panel=100), depth=20))
    np.testing.assert_array_equal(got, want)
    with open_for_pixels(path, 201) as volume:
        assert volume.info.shape[2] == 400


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan])
def test_flat_and_empty_volumes(value: float, tmp_path: Path) -> None:
    voxels = np.full((3, 20, 20), value, np.float32)
    with open_volume(write_pyramid(tmp_path / "t.zarr", voxels, None)) as volume:
        sheet = contact_sheet(volume, settings=PreviewSettings(panel=64))
    assert sheet.width > 3 * 64


def test_command_on_files(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "tomo_10.5A.mrc") as mrc:
        mrc.set_data(ramp())
        mrc.voxel_size = 10.5
    assert main(["preview", str(tmp_path / "tomo_10.5A.mrc"), "--slices", "2", "--panel", "120"]) == 0
    with Image.open(tmp_path / "tomo_10.5A.png") as sheet:
        assert sheet.size[0] == 2 * (120 + MARGIN) + MARGIN
    mask = write_pyramid(tmp_path / "m.zarr", (ramp() > 100).astype(np.uint8))
    command = ["preview", str(tmp_path / "tomo_10.5A.mrc"), "--mask", str(mask), "-o", str(tmp_path / "a.jpg")]
    assert main(command) == 0
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_command_on_a_run(run_store: Any) -> None:
    out = run_store.path.parent / "sheet.png"
    assert main(["preview", str(run_store.path), "-o", str(out)]) == 0
    with Image.open(out) as sheet:
        assert ORANGE in {colour for _, colour in sheet.getcolors(2**24)}
    assert main(["preview", str(run_store.path), "-o", str(out), "--no-mask"]) == 0
    with Image.open(out) as sheet:
        assert ORANGE not in {colour for _, colour in sheet.getcolors(2**24)}


def test_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="--panel is 3"):
        PreviewSettings(panel=3)
    with pytest.raises(SettingsError, match="--percentiles is 99,1"):
        PreviewSettings(percentiles=(99, 1))
    with pytest.raises(SettingsError, match=r"neither .png nor .jpg"):
        save_sheet(Image.new("RGB", (2, 2)), tmp_path / "x.gif")
    assert main(["preview", str(tmp_path / "absent.mrc")]) == 1
    assert "nothing at" in capsys.readouterr().err


@pytest.mark.real_data
def test_real_stack_with_its_membranes(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    command = ["preview", str(real_data / "isbi2012_raw_u16.mrc"), "-o", str(out)]
    assert main([*command, "--mask", str(real_data / "isbi2012_membrane.mrc")]) == 0
    with Image.open(out) as sheet:
        colours = {colour: count for count, colour in sheet.getcolors(2**24)}
        assert 0.03 < colours[ORANGE] / (sheet.width * sheet.height) < 0.3
