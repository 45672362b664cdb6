"""Writing MRC files as a stream: valid, exact, whole or not there."""

from __future__ import annotations

import doctest
import errno
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrc_files import voxels_of

from etsam_zarr.errors import InputError, OutputError, OutputExistsError, SettingsError
from etsam_zarr.events import Advanced, Event, Finished, Started
from etsam_zarr.geometry import Span, cut
from etsam_zarr.mrc import write
from etsam_zarr.mrc.write import MrcPlan, MrcWriter, slabs_of, write_mrc
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import Array

SHAPE = (6, 5, 4)
SIZE = (12.0, 10.0, 10.5)
ORIGIN = (-3.0, 2.0, 1.0)


def plan_for(voxels: Array, **given: object) -> MrcPlan:
    return MrcPlan(voxels.shape, voxels.dtype, SIZE, ORIGIN, **given)  # type: ignore[arg-type]


def pieces(voxels: Array, size: int) -> list[Array]:
    return [voxels[z.as_slice()] for z in cut(Span(0, voxels.shape[0]), size)]


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(write).failed == 0


@pytest.mark.parametrize(
    ("dtype", "stored", "mode", "more"),
    [
        ("int8", "int8", 0, {}),
        ("int16", "int16", 1, {}),
        ("float32", "float32", 2, {}),
        ("uint16", "uint16", 6, {}),
        ("uint8", "uint16", 6, {}),
        ("float16", "float32", 2, {}),
        ("float16", "float16", 12, {"keep_float16": True}),
        (">i2", "int16", 1, {}),
    ],
)
@pytest.mark.parametrize("slab", [1, 4, 6])
def test_values_size_and_place_come_back_and_the_file_is_valid(
    tmp_path: Path, dtype: str, stored: str, mode: int, more: dict, slab: int
) -> None:
    voxels = voxels_of(np.dtype(dtype).newbyteorder("=").name, SHAPE).astype(dtype)
    if np.dtype(dtype) == np.float16:
        voxels = (voxels / 100).astype(dtype)  # mrcfile sums squares in float16 when it validates
    path = write_mrc(tmp_path / "a.mrc", plan_for(voxels, **more), pieces(voxels, slab))
    report = io.StringIO()
    assert mrcfile.validate(path, print_file=report), report.getvalue()
    with mrcfile.open(path) as file:
        assert file.header.mode == mode
        assert file.is_volume()
    with open_volume(path) as volume:
        assert volume.info.dtype == np.dtype(stored)
        assert volume.info.voxel_size == pytest.approx(SIZE)
        assert volume.info.origin == ORIGIN
        assert volume.info.warnings == ()
        np.testing.assert_array_equal(volume.read(Span(0, 6)), voxels)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mrc"]


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_masks_are_mode_0(tmp_path: Path, dtype: str) -> None:
    mask = (voxels_of("float32", SHAPE) > 0).astype(dtype)
    path = write_mrc(tmp_path / "a.mrc", plan_for(mask, is_mask=True), [mask])
    assert mrcfile.validate(path, print_file=io.StringIO())
    with mrcfile.open(path) as file:
        assert file.header.mode == 0
        np.testing.assert_array_equal(file.data, mask)


def test_a_mask_with_other_values_is_refused(tmp_path: Path) -> None:
    labels = np.full(SHAPE, 2, np.uint8)
    with pytest.raises(SettingsError, match="value 2"):
        write_mrc(tmp_path / "a.mrc", plan_for(labels, is_mask=True), [labels])
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=30)
@given(slab=st.integers(1, 7), offset=st.sampled_from([0.0, 1e6]), seed=st.integers(0, 99))
def test_statistics_do_not_depend_on_the_slabs_and_survive_a_large_offset(
    tmp_path_factory: pytest.TempPathFactory, slab: int, offset: float, seed: int
) -> None:
    voxels = (np.random.default_rng(seed).standard_normal((7, 5, 4)) + offset).astype(np.float32)
    path = write_mrc(tmp_path_factory.mktemp("s") / "a.mrc", plan_for(voxels), pieces(voxels, slab))
    with mrcfile.open(path) as file:
        header = file.header
        wide = voxels.astype(np.float64)
        assert header.dmin == voxels.min()
        assert header.dmax == voxels.max()
        assert header.dmean == pytest.approx(wide.mean(), rel=1e-6)
        assert header.rms == pytest.approx(wide.std(), rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_make_the_statistics_undetermined(tmp_path: Path, value: float) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[1, 2, 3] = value
    path = write_mrc(tmp_path / "a.mrc", plan_for(voxels), [voxels])
    with mrcfile.open(path) as file:
        assert file.header.dmax < file.header.dmin
        assert file.header.rms < 0
    with open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 6)), voxels)


def test_an_existing_file_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(b"precious")
    voxels = voxels_of("int16", SHAPE)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_mrc(path, plan_for(voxels), [voxels])
    assert path.read_bytes() == b"precious"

    def breaking_off() -> Iterator[Array]:
        yield voxels[:2]
        raise InputError("the source broke off")

    with pytest.raises(InputError, match="broke off"):
        write_mrc(path, plan_for(voxels), breaking_off(), overwrite=True)
    assert path.read_bytes() == b"precious"
    write_mrc(path, plan_for(voxels), [voxels], overwrite=True)
    with open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 6)), voxels)
    with pytest.raises(OutputExistsError, match="folder"):
        write_mrc(tmp_path, plan_for(voxels), [voxels], overwrite=True)


def test_too_few_or_unfitting_slabs_leave_no_file(tmp_path: Path) -> None:
    voxels = voxels_of("int16", SHAPE)
    for slabs in ([voxels[:3]], [voxels, voxels[:1]], [voxels[:, :2]], [voxels.astype(np.int8)]):
        with pytest.raises(ValueError, match=r"planned|fit"):
            write_mrc(tmp_path / "a.mrc", plan_for(voxels), slabs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float64", "complex64"])
def test_types_without_a_mode_are_refused_before_anything_is_written(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(SettingsError, match=dtype):
        MrcWriter(tmp_path / "a.mrc", MrcPlan(SHAPE, np.dtype(dtype), SIZE))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_with_the_remedy_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    voxels = voxels_of("int16", SHAPE)
    with pytest.raises(OutputError, match="Free some space"):
        write_mrc(tmp_path / "a.mrc", plan_for(voxels), [voxels])
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="creating an MRC"):
        MrcWriter(tmp_path / "file" / "a.mrc", MrcPlan(SHAPE, np.dtype("i2"), SIZE))


def test_events_count_slices(tmp_path: Path) -> None:
    voxels = voxels_of("int16", SHAPE)
    events: list[Event] = []
    write_mrc(tmp_path / "a.mrc", plan_for(voxels), pieces(voxels, 4), on_event=events.append)
    assert events[0] == Started("writing a.mrc", total=6)
    assert [event.count for event in events if isinstance(event, Advanced)] == [4, 2]
    assert isinstance(events[-1], Finished)


def test_slabs_of_a_volume_cover_it_in_order(tmp_path: Path) -> None:
    voxels = voxels_of("int16", SHAPE)
    path = write_mrc(tmp_path / "a.mrc", plan_for(voxels), [voxels])
    with open_volume(path) as volume:
        for slab_bytes in (1, 100, 10**9):
            slabs = list(slabs_of(volume, slab_bytes=slab_bytes))
            assert all(slab.nbytes <= max(slab_bytes, 40) for slab in slabs)
            np.testing.assert_array_equal(np.concatenate(slabs), voxels)


@pytest.mark.slow
def test_files_beyond_2_gigabytes(tmp_path: Path) -> None:
    shape = (520, 1024, 2048)
    slab = np.arange(1024 * 2048, dtype=np.int16).reshape(1, 1024, 2048)
    path = write_mrc(
        tmp_path / "a.mrc", MrcPlan(shape, slab.dtype, SIZE), (slab + np.int16(z) for z in range(shape[0]))
    )
    assert path.stat().st_size == 1024 + 2 * 520 * 1024 * 2048 > 2**31
    with warnings.catch_warnings(), open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(Span(519, 520)), slab + np.int16(519))
