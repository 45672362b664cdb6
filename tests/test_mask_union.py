"""Several masks as one."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import ArrayVolume

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.mask_union import UnionVolume


def masks(count: int, dtype: type = np.int8) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [(random.random((5, 6, 7)) > 0.7).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_is_membrane_where_any_part_is(count: int) -> None:
    parts = masks(count)
    with UnionVolume([ArrayVolume(part) for part in parts]) as union:
        np.testing.assert_array_equal(union.read(Span(0, 5)), np.any(parts, axis=0))
        box = (Span(1, 3), Span(2, 5), Span(0, 4))
        np.testing.assert_array_equal(union.read(*box), np.any(parts, axis=0)[1:3, 2:5, :4])
        assert union.read(*box).dtype == union.info.dtype == np.uint8


def test_other_values_than_one_count() -> None:
    one, two = masks(2)
    union = UnionVolume([ArrayVolume(one * np.int8(3)), ArrayVolume(two * np.int8(-1))])
    assert set(np.unique(union.read(Span(0, 5)))) == {0, 1}


def test_refuses_masks_of_different_grids() -> None:
    with pytest.raises(InputError, match=r"5 x 6 x 7.*4 x 6 x 7"):
        UnionVolume([ArrayVolume(masks(1)[0]), ArrayVolume(masks(1)[0][:4])])


def test_refuses_what_is_no_mask() -> None:
    labels = masks(1)[0]
    labels[0, 0, :3] = [1, 2, 3]
    with pytest.raises(InputError, match="not a binary mask"):
        UnionVolume([ArrayVolume(masks(1)[0]), ArrayVolume(labels)]).read(Span(0, 5))


def test_the_digest_knows_all_parts_and_no_order() -> None:
    one, two, three = (ArrayVolume(mask) for mask in masks(3))
    assert UnionVolume([one, two]).digest() == UnionVolume([two, one]).digest()
    assert UnionVolume([one, two]).digest() != UnionVolume([one, three]).digest()
