"""Reading boxes of Zarr arrays, whatever their chunks, and their digest."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from mrc_files import voxels_of
from zarr.storage import LocalStore
from zarr_stores import bare, source

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.sources import open_volume
from etsam_zarr.zarr_source import open_zarr_volume
from etsam_zarr.zarr_volume import ZarrVolume

SHAPE = (20, 18, 22)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_box_equals_the_same_box_of_the_array_with_and_without_cache(data: st.DataObject) -> None:
    voxels = voxels_of("int16", SHAPE)
    chunks = data.draw(st.tuples(*[st.integers(4, 24)] * 3))
    cache_bytes = data.draw(st.sampled_from([0, 3000, 1 << 30]))
    with open_zarr_volume(source(bare(voxels, chunks=chunks)), cache_bytes=cache_bytes) as volume:
        for _ in range(3):
            spans = []
            for size in SHAPE:
                start = data.draw(st.integers(0, size))
                spans.append(Span(start, data.draw(st.integers(start, size))))
            read = volume.read(*spans)
            np.testing.assert_array_equal(read, voxels[tuple(span.as_slice() for span in spans)])
            read[...] = 0  # the caller may change it, the cache does not


@pytest.mark.parametrize("dtype", ["uint8", "int8", ">i2", "uint16", "int32", "float16", ">f4", "float64", "bool"])
@pytest.mark.parametrize("version", [2, 3])
def test_types_come_out_in_native_byte_order(dtype: str, version: int) -> None:
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    with open_zarr_volume(source(bare(voxels, chunks=(1, 3, 4), version=version))) as volume:
        read = volume.read(Span(0, 2))
        assert read.dtype == volume.info.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, voxels)


class CountingStore(LocalStore):
    """Counts how often chunks are read."""

    reads = 0

    async def get(self, key: str, *args: Any, **more: Any) -> Any:
        if key[-1].isdigit():
            CountingStore.reads += 1
        return await super().get(key, *args, **more)


@pytest.fixture
def deep(tmp_path: Path) -> CountingStore:
    """A store of 2 x 3 x 3 chunks, 8 slices deep."""
    array = zarr.create_array(
        tmp_path / "a", shape=(16, 12, 12), chunks=(8, 4, 4), dtype="u2", zarr_format=2, compressors=None
    )
    array[...] = voxels_of("uint16", (16, 12, 12))
    CountingStore.reads = 0
    return CountingStore(tmp_path / "a", read_only=True)


def test_slabs_thinner_than_chunks_read_each_chunk_once(deep: CountingStore) -> None:
    with open_zarr_volume(source(deep)) as volume:
        for z in range(0, 16, 2):
            volume.read(Span(z, z + 2))
    assert CountingStore.reads == 18


def test_tile_columns_are_kept_apart(deep: CountingStore) -> None:
    with open_zarr_volume(source(deep)) as volume:
        for z in range(0, 16, 2):
            for y in (0, 6):
                volume.read(Span(z, z + 2), Span(y, y + 6))
    # Each half of 6 rows touches 2 of 3 rows of chunks: 2 x 2 x 3 chunks a layer, 2 layers.
    assert CountingStore.reads == 24


def test_a_layer_beyond_the_cache_is_not_kept(deep: CountingStore) -> None:
    layer = 8 * 12 * 12 * 2
    with open_zarr_volume(source(deep), cache_bytes=layer - 1) as volume:
        for z in range(0, 16, 4):
            volume.read(Span(z, z + 4))
    assert CountingStore.reads == 36


def test_threads_that_want_the_same_layer_decode_it_once(deep: CountingStore) -> None:
    voxels = voxels_of("uint16", (16, 12, 12))
    failures: list[int] = []
    with open_zarr_volume(source(deep)) as volume:

        def check(z: int) -> None:
            if not np.array_equal(volume.read(Span(z, z + 1)), voxels[z : z + 1]):
                failures.append(z)

        threads = [threading.Thread(target=check, args=(z,)) for z in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert CountingStore.reads == 9


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", [b"", b"\x02\x01" * 20, None])
def test_a_damaged_chunk_is_an_error_that_names_the_chunk(tmp_path: Path, version: int, damage: bytes | None) -> None:
    array = zarr.create_array(tmp_path, shape=(4, 8, 8), chunks=(2, 8, 8), dtype="f4", zarr_format=version)
    array[...] = voxels_of("float32", (4, 8, 8))
    chunk = tmp_path / array.metadata.encode_chunk_key((1, 0, 0))
    chunk.write_bytes(chunk.read_bytes()[:-7] if damage is None else damage)
    with open_volume(tmp_path) as volume:
        volume.read(Span(0, 2))
        with pytest.raises(InputError, match=r"chunk .*1.0.0, with .* z 2:4 x y 0:8 x x 0:8, cannot be read"):
            volume.read(Span(2, 3))


def test_digest_follows_the_stored_bytes_not_the_place(tmp_path: Path) -> None:
    voxels = voxels_of("uint16", SHAPE)

    def stored(name: str) -> ZarrVolume:
        array = zarr.create_array(tmp_path / name, shape=SHAPE, chunks=(5, 9, 11), dtype="u2", zarr_format=2)
        array[...] = voxels
        volume = open_volume(tmp_path / name)
        assert isinstance(volume, ZarrVolume)
        return volume

    first, same = stored("a").digest(), stored("b").digest()
    voxels[7, 8, 9] ^= 1
    assert first == same
    assert stored("c").digest() != first
    voxels[...] = 0
    assert stored("d").digest() != first


@pytest.mark.parametrize("shards", [None, (8, 8, 8)])
def test_digest_works_on_shards(shards: tuple[int, int, int] | None) -> None:
    voxels = voxels_of("uint16", (16, 8, 8))
    store = bare(voxels, chunks=(4, 4, 4), version=3, shards=shards)
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.chunks == (4, 4, 4)
        assert volume.digest() == volume.digest()
        np.testing.assert_array_equal(volume.read(Span(3, 9)), voxels[3:9])
