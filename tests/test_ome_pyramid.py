"""Coarser levels equal what one gets from the whole array in memory."""

from __future__ import annotations

import doctest
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from mrc_files import voxels_of
from zarr.storage import MemoryStore

from etsam_zarr.events import Advanced, Event, Finished, Started
from etsam_zarr.geometry import pyramid_shapes
from etsam_zarr.ome import pyramid
from etsam_zarr.ome.groups import create_pyramid
from etsam_zarr.ome.pyramid import Reduction, build_pyramid, halve, pyramid_layers


def one_by_one(voxels: np.ndarray, reduce: Reduction) -> np.ndarray:
    """The same as ``halve``, written as the definition says it, voxel by voxel."""
    coarse = np.zeros([-(-n // 2) for n in voxels.shape], voxels.dtype)
    for index in np.ndindex(*coarse.shape):
        values = voxels[tuple(slice(2 * i, 2 * i + 2) for i in index)].ravel().tolist()
        if reduce == "max":
            coarse[index] = max(values)
        elif reduce == "mean":
            mean = sum(values) / len(values)
            coarse[index] = np.floor(mean + 0.5) if voxels.dtype.kind in "iu" else mean
        else:
            counts = Counter(value for value in values if value)
            coarse[index] = max(counts, key=lambda value: (counts[value], value)) if counts else 0
    return coarse


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(pyramid).failed == 0


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "uint32", "int64"]),
    reduce=st.sampled_from(["mean", "max", "mode"]),
)
def test_integers_are_reduced_as_defined(shape: tuple[int, int, int], dtype: str, reduce: Reduction) -> None:
    # Within +-4 or 0..4 every value repeats often enough for the mode to have ties.
    voxels = (voxels_of(dtype, shape).astype(np.int64) % 5 - (0 if dtype[0] == "u" else 2)).astype(dtype)
    coarse = halve(voxels, reduce=reduce)
    assert coarse.dtype == voxels.dtype
    np.testing.assert_array_equal(coarse, one_by_one(voxels, reduce))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32"])
def test_extreme_values_do_not_overflow(dtype: str) -> None:
    for value in (np.iinfo(dtype).min, np.iinfo(dtype).max):
        voxels = np.full((3, 4, 5), value, dtype)
        np.testing.assert_array_equal(halve(voxels, reduce="mean"), np.full((2, 2, 3), value, dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_point_means_are_means(dtype: str) -> None:
    voxels = voxels_of(dtype, (5, 6, 7))
    coarse = halve(voxels, reduce="mean")
    assert coarse.dtype == voxels.dtype
    np.testing.assert_allclose(
        coarse.astype(np.float64),
        one_by_one(voxels.astype(np.float64), "mean"),
        rtol=4 * np.finfo(dtype).eps, atol=2000 * np.finfo(dtype).eps,
    )  # fmt: skip


def test_a_one_voxel_membrane_survives_max() -> None:
    membrane = np.zeros((8, 8, 8), np.uint8)
    membrane[:, 3, :] = 1
    assert halve(membrane, reduce="max").sum() == 16


def store(version: str, shape: tuple[int, int, int], **more: Any) -> list[zarr.Array]:
    group = zarr.open_group(MemoryStore(), mode="w", zarr_format=2 if version == "0.4" else 3)
    return create_pyramid(
        group, shape=shape, dtype="uint16", voxel_size=None, origin=(0, 0, 0), version=version, name="x", **more
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("0.4", {"chunks": (8, 16, 32)}),
        ("0.5", {"chunks": (8, 16, 16)}),
        ("0.5", {"chunks": (8, 8, 16), "shards": (16, 32, 32)}),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
def test_levels_on_disk_equal_the_whole_array_reduced(
    monkeypatch: pytest.MonkeyPatch, version: str, more: dict, block_bytes: int
) -> None:
    monkeypatch.setattr(pyramid, "_BLOCK_BYTES", block_bytes)
    shape = (35, 71, 131)
    arrays = store(version, shape, **more)
    expected = voxels_of("uint16", shape)
    arrays[0][...] = expected
    events: list[Event] = []
    build_pyramid(arrays, reduce="mean", on_event=events.append)
    assert tuple(array.shape for array in arrays) == pyramid_shapes(shape)
    assert len(arrays) == 3
    for array in arrays[1:]:
        expected = halve(expected, reduce="mean")
        np.testing.assert_array_equal(array[...], expected)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Advanced) for event in events) == events[0].total == pyramid_layers(arrays)


def test_each_stored_chunk_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_BLOCK_BYTES", 20_000)
    arrays = store("0.4", (40, 70, 130), chunks=(8, 16, 32))
    arrays[0][...] = 1
    written: Counter[tuple[str, ...]] = Counter()
    original = MemoryStore.set

    async def count(self: MemoryStore, key: str, *args: Any, **more: Any) -> None:
        written[key] += 1
        await original(self, key, *args, **more)

    monkeypatch.setattr(MemoryStore, "set", count)
    build_pyramid(arrays, reduce="max")
    chunks = {
        f"{level}/{'/'.join(map(str, index))}"
        for level, array in enumerate(arrays[1:], start=1)
        for index in product(*(range(n) for n in array.cdata_shape))
    }
    assert set(written) == chunks
    assert set(written.values()) == {1}


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_goes_on_after_the_layers_that_were_done(stop: int) -> None:
    arrays = store("0.4", (35, 71, 131), chunks=(8, 32, 32))
    arrays[0][...] = voxels_of("uint16", (35, 71, 131))
    finished: list[int] = []

    class Killed(Exception):
        pass

    def die(count: int) -> None:
        finished.append(count)
        if count == stop:
            raise Killed

    with pytest.raises(Killed):
        build_pyramid(arrays, reduce="mean", after_layer=die)
    build_pyramid(arrays, reduce="mean", done=stop, after_layer=finished.append)
    assert finished == list(range(1, pyramid_layers(arrays) + 1))
    np.testing.assert_array_equal(arrays[2][...], halve(halve(arrays[0][...], reduce="mean"), reduce="mean"))
