"""The projection of memory and disk, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from peak_memory import peak_of

from etsam_zarr.bundled import BUNDLED_SETTINGS
from etsam_zarr.config import PROFILES
from etsam_zarr.errors import DoesNotFitError
from etsam_zarr.memory import Projection, check_fits, project
from etsam_zarr.model_config import read_model_config
from etsam_zarr.mrc.write import MrcPlan, write_mrc
from etsam_zarr.plan import plan_run
from etsam_zarr.volume import VolumeInfo

GIB = 2**30
ETSAM = read_model_config("sam2.1_hiera_b+")
WEIGHTS = 320 * 2**20


def _projection(
    depth: int, profile: str, *, slab: int | None = None, on_host: bool = True, half: bool = False, edge: int = 900
) -> Projection:
    shape = (depth, edge, edge)
    info = VolumeInfo(
        uri="x", name="x", format="mrc", shape=shape, dtype=np.dtype("float32"), chunks=(1, edge, edge), voxel_size=None
    )
    plan = plan_run(shape, PROFILES[profile], ETSAM, voxel_bytes=4, slab=slab)
    return project(plan, ETSAM, info, weights=WEIGHTS, on_host=on_host, half=half)


def test_memory_does_not_depend_on_the_depth_where_one_slice_is_prompted() -> None:
    assert _projection(100, "etsam-v2").host == _projection(5000, "etsam-v2").host
    assert _projection(100, "etsam-v2").disk < _projection(5000, "etsam-v2").disk


def test_memory_grows_by_the_prompted_slices_where_they_are_many() -> None:
    shallow, deep = _projection(100, "etsam-v1"), _projection(5000, "etsam-v1")
    assert deep.host - shallow.host == deep.prompted - shallow.prompted
    # At least what 98 more memories of 64 x 64 cells, 64 channels in bfloat16, take with their native logits.
    assert deep.prompted - shallow.prompted > 98 * (64 * 64 * 64 * 2 + 256 * 256 * 4)


def test_memory_follows_slab_and_slice() -> None:
    assert _projection(100, "etsam-v2", slab=1).host < _projection(100, "etsam-v2", slab=64).host
    assert _projection(100, "etsam-v2", edge=500).host < _projection(100, "etsam-v2", edge=2000).host
    assert _projection(100, "etsam-v2", half=True).host < _projection(100, "etsam-v2").host


def test_a_device_with_memory_of_its_own_takes_the_model_from_the_host() -> None:
    there, here = _projection(100, "etsam-v2", on_host=False), _projection(100, "etsam-v2")
    assert here.device == 0
    assert there.device > WEIGHTS
    assert there.host < here.host


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 GiB of free memory and 20 GiB of free disk."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=20 * GIB))


@pytest.mark.usefixtures("machine")
def test_what_fits_is_let_pass(tmp_path: Path) -> None:
    check_fits(Projection(8 * GIB, 4 * GIB, 20 * GIB, 0), tmp_path / "not" / "there", device_free=4 * GIB)
    check_fits(Projection(1, 99 * GIB, 1, 0), tmp_path, device_free=None)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("projection", "message"),
    [
        (Projection(9 * GIB, 0, 0, 0), r"need 9\.0 GiB of memory, 8\.0 GiB are free.*--slab.*--force"),
        (Projection(0, 5 * GIB, 0, 0), r"need 5\.0 GiB on the device, 4\.0 GiB are free.*--device.*--force"),
        (Projection(0, 0, 21 * GIB, 0), r"up to 21\.0 GiB, 20\.0 GiB are free at .*another disk.*--force"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers_and_remedy(
    projection: Projection, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DoesNotFitError, match=message):
        check_fits(projection, tmp_path / "run.zarr", device_free=4 * GIB)


@pytest.mark.usefixtures("machine")
def test_the_folder_that_is_looked_at_exists(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=f"free at {tmp_path}\\."):
        check_fits(Projection(0, 0, 21 * GIB, 0), tmp_path / "a" / "b" / "run.zarr")


@pytest.mark.parametrize("model", ["seeded-256", "demo-256"])
def test_a_run_takes_what_was_projected_whatever_the_depth(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Peaks of whole runs in processes of their own; in memory, as ETSAM does it, 56 slices more take 200 MB more."""
    if model == "demo-256":
        request.getfixturevalue("bundled_model")
    settings: dict[str, Any] = {"seeded-256": PROFILES["etsam-v1"], "demo-256": BUNDLED_SETTINGS}
    config = read_model_config(model)
    peaks, projected = [], []
    # Both hold as much as ever: slabs that are computed, stored and waiting, 16 slices each.
    for depth in (48, 104):
        shape = (depth, 256, 256)
        source = tmp_path / f"{depth}.mrc"
        rng = np.random.default_rng(depth)
        slices = (rng.normal(size=(1, 256, 256)).astype(np.float32) for _ in range(depth))
        write_mrc(source, MrcPlan(shape, np.dtype(np.float32), (10.0, 10.0, 10.0)), slices)
        peaks.append(peak_of("run", str(source), "--model", model, "--precision", "float32"))
        info = VolumeInfo(
            uri="x", name="x", format="mrc", shape=shape, dtype=np.dtype("float32"), chunks=shape, voxel_size=None
        )
        plan = plan_run(shape, settings[model], config, voxel_bytes=4)
        projected.append(project(plan, config, info, weights=23 * 2**20, on_host=True, half=False).host)
    assert peaks[1] < 1.15 * peaks[0]
    assert max(peaks) < 1.15 * max(projected)


def test_memory_of_tiles_follows_the_tile_and_disk_the_number_of_tiles() -> None:
    """Slices of 4096 x 4096 in 25 tiles; the model's part is that of one tile."""
    tile, huge = (_projection(500, "etsam-v2", slab=16, edge=edge) for edge in (1024, 4096))
    assert huge.host < 2.2 * tile.host
    assert huge.host < 3.5 * GIB
    assert huge.disk > 10 * tile.disk
    on_device = [_projection(500, "etsam-v1", on_host=False, edge=edge).device for edge in (1024, 4096)]
    assert on_device[0] == on_device[1]


@pytest.mark.parametrize("edge", [1100, pytest.param(4096, marks=pytest.mark.slow)])
def test_a_run_in_many_tiles_takes_what_was_projected(edge: int, tmp_path: Path) -> None:
    """Few slices, but large ones, made and read slice by slice: 25 and 361 tiles of the untrained model."""
    shape = (2, edge, edge)
    settings, config = PROFILES["etsam-v2"], read_model_config("seeded-256")
    rng = np.random.default_rng(0)
    slices = (rng.normal(size=(1, edge, edge)).astype(np.float32) for _ in range(shape[0]))
    write_mrc(tmp_path / "huge.mrc", MrcPlan(shape, np.dtype(np.float32), (10.0, 10.0, 10.0)), slices)
    command = ["run", str(tmp_path / "huge.mrc"), "--model", "seeded-256", "--profile", "etsam-v2"]
    peak = peak_of(*command, "--precision", "float32")
    info = VolumeInfo(
        uri="x", name="x", format="mrc", shape=shape, dtype=np.dtype("float32"), chunks=(1, edge, edge), voxel_size=None
    )
    plan = plan_run(shape, settings, config, voxel_bytes=4)
    projected = project(plan, config, info, weights=23 * 2**20, on_host=True, half=False).host
    assert peak < 1.15 * projected
    assert peak > 0.6 * projected, "a projection that refuses what would fit helps nobody"
