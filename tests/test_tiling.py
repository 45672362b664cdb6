"""The geometry of tiles, and the weights that blend them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Span
from etsam_zarr.tiling import Tile, TileGrid, axis_weights, lay_tiles, padded, recorded_grid, resolve_tiling

SIDES = st.integers(1, 700)
EDGES = st.sampled_from([32, 64, 100])


@st.composite
def grids(draw: st.DrawFn) -> tuple[TileGrid, int, int]:
    edge = draw(EDGES)
    height, width = draw(SIDES), draw(SIDES)
    overlap = draw(st.integers(0, edge // 2))
    return lay_tiles("tiles", height, width, image_size=edge, overlap=overlap), height, width


@given(grids())
def test_tiles_are_given_to_the_model_as_exactly_the_image(drawn: tuple[TileGrid, int, int]) -> None:
    grid, height, width = drawn
    for tile in grid.tiles:
        assert tile.height == tile.width == grid.edge
        # A tile is smaller than the image only where the slice is.
        assert tile.y.size == min(height, tile.height)
        assert tile.x.size == min(width, tile.width)
    assert [tile.index for tile in grid.tiles] == list(range(len(grid.tiles)))


@given(grids())
def test_tiles_cover_every_voxel_and_none_outside(drawn: tuple[TileGrid, int, int]) -> None:
    grid, height, width = drawn
    covered = np.zeros((height, width), dtype=int)
    for tile in grid.tiles:
        assert tile.y.stop <= height
        assert tile.x.stop <= width
        covered[tile.y.as_slice(), tile.x.as_slice()] += 1
    assert covered.all()
    if len(grid.tiles) == 1:
        assert covered.max() == 1


@given(grids())
def test_neighbours_overlap_by_what_was_asked_for_and_no_tile_could_be_left_out(
    drawn: tuple[TileGrid, int, int],
) -> None:
    grid, height, width = drawn
    assert grid.edge is not None
    for runs, size in ((grid.rows, height), (grid.columns, width)):
        overlaps = [before.stop - after.start for before, after in itertools.pairwise(runs)]
        assert all(overlap >= grid.overlap for overlap in overlaps)
        assert max(overlaps, default=0) - min(overlaps, default=0) <= 1, "spread evenly"
        fewer = len(runs) - 1
        assert not fewer or fewer * grid.edge - (fewer - 1) * grid.overlap < size


@given(grids())
def test_weights_sum_to_one_in_every_voxel(drawn: tuple[TileGrid, int, int]) -> None:
    grid, height, width = drawn
    total = np.zeros((height, width))
    for tile in grid.tiles:
        rows, columns = grid.weights(tile)
        assert rows.dtype == columns.dtype == np.float32
        assert rows.min() > 0
        assert columns.min() > 0
        total[tile.y.as_slice(), tile.x.as_slice()] += np.outer(rows.astype(float), columns)
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(grids())
def test_weights_are_smooth_and_symmetric(drawn: tuple[TileGrid, int, int]) -> None:
    """No step in a run's weights, also where it begins and ends, is larger than a cosine's over the overlap."""
    for runs in (drawn[0].rows, drawn[0].columns):
        weights = axis_weights(runs)
        overlap = min((before.stop - after.start for before, after in itertools.pairwise(runs)), default=0)
        if len(runs) > 2 and overlap > drawn[0].edge // 2:  # type: ignore[operator]
            continue  # three runs meet, and share the weight
        for number, own in enumerate(weights):
            ends = [*([0.0] if number else []), *own, *([0.0] if number + 1 < len(runs) else [])]
            steepest = np.pi / 2 / overlap if overlap else 1.0
            assert np.abs(np.diff(ends)).max(initial=0) <= steepest * 1.001 + 1e-6
        if len({after.start - before.start for before, after in itertools.pairwise(runs)}) > 1:
            continue  # not evenly spread, by a voxel
        for one, other in zip(weights, reversed(weights), strict=True):
            np.testing.assert_allclose(one, other[::-1], atol=1e-6)


@given(grids(), st.data())
def test_the_tiles_that_touch_a_box_are_those_that_share_voxels_with_it(
    drawn: tuple[TileGrid, int, int], data: st.DataObject
) -> None:
    grid, height, width = drawn
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    y = Span(y0, data.draw(st.integers(y0 + 1, height)))
    x = Span(x0, data.draw(st.integers(x0 + 1, width)))
    owned = np.zeros((height, width), dtype=bool)
    owned[y.as_slice(), x.as_slice()] = True
    expected = [tile for tile in grid.tiles if owned[tile.y.as_slice(), tile.x.as_slice()].any()]
    assert list(grid.touching(y, x)) == expected


@given(SIDES, SIDES)
def test_whole_is_one_tile_and_quadrants_are_four_without_overlap(height: int, width: int) -> None:
    (tile,) = lay_tiles("whole", height, width, image_size=64, overlap=0.1).tiles
    assert tile == Tile(0, Span(0, height), Span(0, width), height, width)
    if min(height, width) < 2:
        with pytest.raises(SettingsError, match=f"{height} x {width} voxels have no quadrants"):
            lay_tiles("quadrants", height, width, image_size=64, overlap=0.1)
        return
    quadrants = lay_tiles("quadrants", height, width, image_size=64, overlap=0.1)
    half, middle = height // 2, width // 2
    assert [(tile.y, tile.x) for tile in quadrants.tiles] == [
        (Span(0, half), Span(0, middle)), (Span(0, half), Span(middle, width)),
        (Span(half, height), Span(0, middle)), (Span(half, height), Span(middle, width)),
    ]  # fmt: skip
    for tile in quadrants.tiles:
        assert (tile.height, tile.width) == (tile.y.size, tile.x.size)
        for weights in quadrants.weights(tile):
            assert (weights == 1).all()


def test_auto_squeezes_nothing() -> None:
    assert resolve_tiling("auto", 1024, 1024, 1024) == "whole"
    assert resolve_tiling("auto", 1025, 10, 1024) == resolve_tiling("auto", 10, 1025, 1024) == "tiles"
    assert resolve_tiling("whole", 5000, 5000, 1024) == "whole"


def test_an_overlap_is_a_fraction_or_voxels() -> None:
    fraction, voxels = (lay_tiles("tiles", 300, 300, image_size=128, overlap=o) for o in (0.25, 32))
    assert fraction == voxels
    assert fraction.overlap == 32


@pytest.mark.parametrize("overlap", [0.51, 65, 1000])
def test_an_overlap_of_more_than_half_a_tile_is_refused(overlap: float) -> None:
    with pytest.raises(SettingsError, match=rf"--overlap is {overlap:g}.*tiles of 128.*64 voxels"):
        lay_tiles("tiles", 300, 300, image_size=128, overlap=overlap)


def test_a_huge_slice() -> None:
    grid = lay_tiles("tiles", 4096, 4096, image_size=1024, overlap=0.125)
    assert len(grid.tiles) == 25
    assert (grid.rows[1].start, grid.rows[-1]) == (768, Span(3072, 4096))


def test_a_tile_that_is_larger_than_the_slice_goes_on_with_its_mirror_image() -> None:
    tile = lay_tiles("tiles", 2, 5, image_size=5, overlap=0).tiles[0]
    plane = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]], dtype=np.float32)
    np.testing.assert_array_equal(padded(plane, tile), plane[[0, 1, 1, 0, 0]])
    whole = lay_tiles("whole", 2, 5, image_size=5, overlap=0).tiles[0]
    assert padded(plane, whole) is plane


def test_the_grid_of_a_run_is_found_again_from_its_record() -> None:
    record = {"shape": [3, 300, 200], "image_size": 128, "settings": {"tiling": "tiles", "overlap": 16}}
    assert recorded_grid(record) == lay_tiles("tiles", 300, 200, image_size=128, overlap=16)
    # Stores of earlier versions say "whole", and nothing of an overlap.
    assert len(recorded_grid({**record, "settings": {"tiling": "whole"}}).tiles) == 1
