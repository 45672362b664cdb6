"""Regions of volumes: what is read, where it lies, and what is no region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from portal_store import write_portal_store
from tiny import ArrayVolume, texture

from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.geometry import Span
from etsam_zarr.roi import RoiVolume, box_of_angstrom
from etsam_zarr.sources import open_volume

VOXELS = texture((9, 10, 11))
BOX = (Span(2, 8), Span(0, 7), Span(5, 11))


@given(st.data())
def test_any_box_of_a_region_is_that_of_the_volume(data: st.DataObject) -> None:
    def span(size: int, least: int) -> Span:
        start = data.draw(st.integers(0, size - least))
        return Span(start, data.draw(st.integers(start + least, size)))

    box = span(9, 2), span(10, 1), span(11, 1)
    region = RoiVolume(ArrayVolume(VOXELS), box)
    inside = [span(n, 0) for n in region.info.shape]
    whole = VOXELS[tuple(s.as_slice() for s in box)]
    np.testing.assert_array_equal(region.read(*inside), whole[tuple(s.as_slice() for s in inside)])
    np.testing.assert_array_equal(region.read(Span(0, box[0].size)), whole)


def test_a_region_knows_its_place() -> None:
    region = RoiVolume(ArrayVolume(VOXELS, voxel_size=(10.0, 5.0, 2.0)), BOX)
    assert region.info.shape == (6, 7, 6)
    assert region.info.origin == (20.0, 0.0, 10.0)
    assert region.info.roi == "2:8,0:7,5:11"
    with pytest.raises(IndexError, match="the volume at 6"):
        region.read(Span(0, 7))


def test_digests_tell_regions_apart_and_see_what_changes_within(tmp_path: Path) -> None:
    def digest(voxels: np.ndarray, box: tuple[Span, Span, Span], name: str) -> str:
        path = write_portal_store(tmp_path / name, voxels, chunks=(3, 5, 11), levels=1)
        with RoiVolume(open_volume(path), box) as region:
            return region.digest()

    first = digest(VOXELS, BOX, "a.zarr")
    assert digest(VOXELS, BOX, "b.zarr") == first
    assert digest(VOXELS, (Span(2, 7), *BOX[1:]), "a.zarr") != first
    changed = VOXELS.copy()
    changed[3, 3, 7] += 1
    assert digest(changed, BOX, "c.zarr") != first
    outside = VOXELS.copy()
    outside[0, 9, 0] += 1  # in a chunk that the region does not touch
    assert digest(outside, (Span(3, 8), Span(0, 5), Span(5, 11)), "d.zarr") == digest(
        VOXELS, (Span(3, 8), Span(0, 5), Span(5, 11)), "a.zarr"
    )


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((Span(0, 10), Span(0, 1), Span(0, 1)), r"goes to z = 10, and memory has only 9 voxels along it \(9 x 10 x 11"),
        ((Span(0, 9), Span(0, 1), Span(0, 12)), r"goes to x = 12"),
        ((Span(0, 1), Span(0, 9), Span(0, 9)), r"holds 1 x 9 x 9 voxels \(z y x\); at least 2"),
        ((Span(0, 9), Span(4, 4), Span(0, 9)), r"holds 9 x 0 x 9 voxels"),
    ],
)
def test_what_is_no_region(box: tuple[Span, Span, Span], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RoiVolume(ArrayVolume(VOXELS), box)


def test_regions_in_angstrom_hold_every_voxel_that_they_touch() -> None:
    info = ArrayVolume(VOXELS, voxel_size=(10.0, 0.1, 7.5)).info
    box = box_of_angstrom(info, ((15.0, 60.0), (0.3, 0.7), (7.5, 30.0)))
    assert [str(span) for span in box] == ["1:6", "3:7", "1:4"]
    with pytest.raises(InputError, match="Give it with --voxel-size"):
        box_of_angstrom(ArrayVolume(VOXELS, voxel_size=None).info, ((0, 9), (0, 9), (0, 9)))
