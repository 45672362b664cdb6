"""Blocks cover the volume once, and touching pairs are found once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.components.grid import BlockGrid, block_near, covering, forward_offsets
from etsam_zarr.errors import SettingsError

shapes = st.tuples(*[st.integers(1, 12)] * 3)


@given(shape=shapes, block=shapes)
def test_blocks_cover_the_volume_once(shape: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    grid = BlockGrid(shape, block)
    seen = np.zeros(shape, int)
    for number in range(len(grid)):
        seen[tuple(span.as_slice() for span in grid.box(number))] += 1
        assert grid.number(grid.index(number)) == number
    assert (seen == 1).all()


@given(shape=shapes, block=shapes)
def test_each_touching_pair_is_found_once(shape: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    grid = BlockGrid(shape, block)
    numbers = range(len(grid))
    found = [(a, b) for a in numbers for o in forward_offsets(3) if (b := grid.neighbour(a, o)) is not None]
    touching = {
        (a, b)
        for a, b in itertools.combinations(numbers, 2)
        if max(abs(i - j) for i, j in zip(grid.index(a), grid.index(b), strict=True)) == 1
    }
    assert sorted(found) == sorted(touching)


def test_number_of_neighbours() -> None:
    assert [2 * len(forward_offsets(reach)) for reach in (1, 2, 3)] == [6, 18, 26]


@given(target=shapes, chunk=shapes, shape=shapes)
def test_chosen_blocks_are_whole_chunks(
    target: tuple[int, int, int], chunk: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    for block in (block_near(target, multiple_of=chunk, shape=shape), covering(shape, chunk)):
        assert all(b >= c and b % c == 0 for b, c in zip(block, chunk, strict=True))
        assert all(b < n + c for b, c, n in zip(block, chunk, shape, strict=True))
    assert len(BlockGrid(shape, covering(shape, chunk))) == 1


def test_blocks_without_voxels_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 1 voxel"):
        BlockGrid((4, 4, 4), (2, 0, 2))
