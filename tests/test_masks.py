"""Masks: what counts as binary, whoever reads, in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.masks import ArrayBox, BinaryMask, as_boxes, require_same_shape

ALL = Span(0, 2)


@pytest.mark.parametrize("value", [1, 255, 7])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "bool"])
def test_zero_and_one_other_value(value: int, dtype: str) -> None:
    voxels = np.zeros((2, 3, 4), dtype)
    voxels[1, 2] = np.array(value).astype(dtype)
    got = BinaryMask(voxels).read(ALL)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, voxels != 0)


@pytest.mark.parametrize("pair", [(1, 2), (-1, 1), (0.5, 1)])
def test_two_other_values_in_one_box(pair: tuple[float, float]) -> None:
    voxels = np.zeros((2, 3, 4), np.float32)
    voxels[0, 0, 0], voxels[1, 2, 3] = pair
    with pytest.raises(InputError, match=f"m.mrc is not a binary mask: it holds {pair[0]:g} and {pair[1]:g} beside 0"):
        BinaryMask(voxels, name="m.mrc").read(ALL)
    assert BinaryMask(voxels, any_label=True).read(ALL).sum() == 2


def test_two_other_values_in_different_boxes() -> None:
    voxels = np.zeros((2, 3, 4), np.uint8)
    voxels[0], voxels[1] = 1, 2
    mask = BinaryMask(voxels)
    mask.read(Span(0, 1))
    with pytest.raises(InputError, match="1 and 2"):
        mask.read(Span(1, 2))


def test_not_a_number_is_not_binary() -> None:
    voxels = np.full((2, 2, 2), np.nan, np.float32)
    with pytest.raises(InputError, match="not a binary mask"):
        BinaryMask(voxels).read(ALL)


@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_boxes_are_copies(kind: str) -> None:
    voxels: Any = np.arange(24).reshape(2, 3, 4)
    if kind == "zarr":
        stored = zarr.create_array({}, shape=voxels.shape, chunks=(1, 2, 2), dtype=voxels.dtype)
        stored[:] = voxels
        voxels = stored
    boxes = as_boxes(voxels)
    assert boxes.shape == (2, 3, 4)
    got = boxes.read(Span(1, 2), Span(0, 2), Span(1, 4))
    np.testing.assert_array_equal(got, np.arange(24).reshape(2, 3, 4)[1:2, 0:2, 1:4])
    got[:] = 0
    assert boxes.read(ALL).sum() == np.arange(24).sum()


def test_shapes() -> None:
    with pytest.raises(InputError, match="4 dimensions"):
        ArrayBox(np.zeros((1, 2, 3, 4)))
    a, b = ArrayBox(np.zeros((1, 2, 3))), ArrayBox(np.zeros((1, 2, 4)))
    with pytest.raises(InputError, match="a is 1 x 2 x 3 voxels, b is 1 x 2 x 4"):
        require_same_shape(a, b, first_name="a", second_name="b")
