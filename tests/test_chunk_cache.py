"""Chunks are fetched once, kept where they were asked to be kept, and trusted only if they are whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from http_server import WebServer, serving
from portal_store import write_portal_store

from etsam_zarr.errors import InputError, RemoteError
from etsam_zarr.geometry import Span
from etsam_zarr.remote.address import RemoteAddress
from etsam_zarr.remote.chunk_shelf import DiskShelf
from etsam_zarr.remote.store import RetryPolicy
from etsam_zarr.remote.volumes import RemoteOptions, keep_chunks, open_remote, supply_of
from etsam_zarr.roi import RoiVolume
from etsam_zarr.sources import open_volume
from etsam_zarr.zarr_volume import ZarrVolume

SHAPE = (40, 32, 48)
CHUNKS = (8, 16, 16)
LAYERS, COLUMNS = 5, 6
FAST = RetryPolicy(retries=2, first_wait=0.01)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def web(tmp_path: Path, voxels: np.ndarray) -> Iterator[WebServer]:
    write_portal_store(tmp_path / "web" / "tomo.zarr", voxels, chunks=CHUNKS)
    with serving(tmp_path / "web") as server:
        yield server


def opened(web: WebServer, cache: Path | str = "none", name: str = "tomo.zarr", **more: object) -> ZarrVolume:
    options = RemoteOptions(cache=cache, retry=FAST, **more)
    volume = open_volume(f"{web.url}/{name}", remote=options)
    assert isinstance(volume, ZarrVolume)
    return volume


def walk(volume: ZarrVolume | RoiVolume, slab: int = 3) -> np.ndarray:
    """Read all slices in order, as a pass does."""
    depth = volume.info.shape[0]
    return np.concatenate([volume.read(Span(z, min(depth, z + slab))) for z in range(0, depth, slab)])


def fetched(web: WebServer) -> Counter[str]:
    return Counter(request.key for request in web.chunk_requests())


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_three_passes_and_prompted_slices_fetch_each_chunk_once(
    cache: str, web: WebServer, voxels: np.ndarray, tmp_path: Path
) -> None:
    with opened(web, tmp_path / "cache" if cache == "disk" else cache) as volume:
        for _ in range(3):
            np.testing.assert_array_equal(walk(volume), voxels)
            for z in range(0, SHAPE[0], 7):
                np.testing.assert_array_equal(volume.read(Span(z, z + 1))[0], voxels[z])
    found = fetched(web)
    assert len(found) == LAYERS * COLUMNS
    assert set(found.values()) == {1}


def test_without_cache_each_pass_fetches_each_chunk_once(web: WebServer, voxels: np.ndarray) -> None:
    with opened(web, "none") as volume:
        for _ in range(2):
            np.testing.assert_array_equal(walk(volume), voxels)
        supply = supply_of(volume)
        assert supply is not None
    assert set(fetched(web).values()) == {2}


def test_without_cache_at_most_two_layers_are_kept(web: WebServer) -> None:
    with opened(web, "none") as volume:
        supply = supply_of(volume)
        assert supply is not None
        for z in range(0, SHAPE[0], 2):
            volume.read(Span(z, z + 2))
            assert len(supply.store.shelf._kept) <= 2 * COLUMNS  # type: ignore[attr-defined]


def test_slabs_of_a_band_decode_from_kept_chunks(web: WebServer, voxels: np.ndarray, tmp_path: Path) -> None:
    """Where a layer is too large to stay decoded, bands of it are decoded from the same stored chunks."""
    options = RemoteOptions(cache=tmp_path / "cache", retry=FAST)
    address = RemoteAddress.parse(f"{web.url}/tomo.zarr")
    with open_remote(address, "tomo", options=options) as volume:
        assert isinstance(volume, ZarrVolume)
        volume._bands.most_bytes = 3 * SHAPE[1] * SHAPE[2] * 4  # 3 of 8 slices
        np.testing.assert_array_equal(walk(volume, slab=4), voxels)
    assert set(fetched(web).values()) == {1}


def test_next_layer_comes_ahead_but_nothing_outside_the_region(web: WebServer, voxels: np.ndarray) -> None:
    box = (Span(10, 30), Span(0, 16), Span(20, 48))
    with RoiVolume(opened(web), box) as volume:
        volume.read(Span(0, 2))
        assert {key.split("/")[2] for key in fetched(web)} == {"1"}
        volume.read(Span(2, 4))
        supply = supply_of(volume)
        assert supply is not None
        assert supply._under_way is not None
        supply._under_way.result()
        assert {key.split("/")[2] for key in fetched(web)} == {"1", "2"}
        volume.digest()
        np.testing.assert_array_equal(walk(volume), voxels[10:30, 0:16, 20:48])
    asked = {tuple(int(n) for n in r.key.split("/")[2:]) for r in web.requests if r.key[-1].isdigit()}
    assert asked == {(z, 0, x) for z in (1, 2, 3) for x in (1, 2)}


def test_reading_here_and_there_fetches_nothing_ahead(web: WebServer) -> None:
    with opened(web) as volume:
        for z in (5, 20, 12):
            volume.read(Span(z, z + 1))
    assert {key.split("/")[2] for key in fetched(web)} == {"0", "2", "1"}


def test_chunks_on_disk_serve_the_next_process(web: WebServer, voxels: np.ndarray, tmp_path: Path) -> None:
    with opened(web, tmp_path / "cache") as volume:
        volume.read(Span(0, 16))
    web.forget()
    with opened(web, tmp_path / "cache") as volume:
        np.testing.assert_array_equal(walk(volume), voxels)
    assert len(fetched(web)) == (LAYERS - 2) * COLUMNS


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "left over"])
def test_damaged_cached_chunks_are_fetched_again(
    damage: str, web: WebServer, voxels: np.ndarray, tmp_path: Path
) -> None:
    with opened(web, tmp_path / "cache") as volume:
        walk(volume)
    file = sorted((tmp_path / "cache").rglob("*.chunk"))[3]
    content = file.read_bytes()
    if damage == "left over":
        file.rename(file.with_name(f"{file.name}.77.partial"))
    else:
        flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
        file.write_bytes({"short": content[:-9], "flipped": flipped, "empty": b""}[damage])
    web.forget()
    with opened(web, tmp_path / "cache") as volume:
        np.testing.assert_array_equal(walk(volume), voxels)
    assert sum(fetched(web).values()) == 1
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_what_changed_on_the_server_is_not_taken_from_the_cache(
    web: WebServer, voxels: np.ndarray, tmp_path: Path
) -> None:
    with opened(web, tmp_path / "cache") as volume:
        before = volume.digest()
        walk(volume)
    write_portal_store(web.folder / "tomo.zarr", voxels + 1, chunks=CHUNKS)
    with opened(web, tmp_path / "cache") as volume:
        assert volume.digest() != before
        np.testing.assert_array_equal(walk(volume), voxels + 1)


def test_levels_and_volumes_share_a_folder_without_mixing(web: WebServer, voxels: np.ndarray, tmp_path: Path) -> None:
    write_portal_store(web.folder / "other.zarr", -voxels, chunks=CHUNKS)
    for name, wanted in (("tomo.zarr", voxels), ("other.zarr", -voxels), ("tomo.zarr", voxels)):
        with opened(web, tmp_path / "cache", name) as volume:
            np.testing.assert_array_equal(walk(volume), wanted)
    options = RemoteOptions(cache=tmp_path / "cache", retry=FAST)
    with open_volume(f"{web.url}/tomo.zarr", level=1, remote=options) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 20)), voxels[::2, ::2, ::2])
    assert set(fetched(web).values()) == {1}


def test_missing_chunks_are_filled_and_counted_or_an_error(web: WebServer, voxels: np.ndarray) -> None:
    (web.folder / "tomo.zarr" / "0" / "1" / "0" / "2").unlink()
    wanted = voxels.copy()
    wanted[8:16, 0:16, 32:48] = 0
    with opened(web) as volume:
        np.testing.assert_array_equal(walk(volume), wanted)
        supply = supply_of(volume)
        assert supply is not None
        assert supply.store.missing == {"0/1/0/2"}
    with opened(web, missing_chunks="error") as volume, pytest.raises(RemoteError, match="chunk 0/1/0/2 is not there"):
        walk(volume)


def test_a_chunk_that_was_stored_short_is_an_error_that_names_it(web: WebServer) -> None:
    chunk = web.folder / "tomo.zarr" / "0" / "2" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with opened(web) as volume, pytest.raises(InputError, match=r"chunk 0/2/1/0, with the voxels at z 16:24"):
        walk(volume)


def test_sharded_stores_are_read_by_parts_each_once(tmp_path: Path, voxels: np.ndarray) -> None:
    array = zarr.create_array(
        tmp_path / "web" / "a.zarr", shape=SHAPE, chunks=(8, 16, 16), shards=(16, 32, 48), dtype="f4", zarr_format=3
    )
    array[...] = voxels
    with serving(tmp_path / "web") as web, opened(web, tmp_path / "cache", "a.zarr") as volume:
        for _ in range(2):
            np.testing.assert_array_equal(walk(volume), voxels)
        stored = sum(file.stat().st_size for file in (tmp_path / "web" / "a.zarr" / "c").rglob("*") if file.is_file())
        assert web.bytes_sent < stored * 1.02 + 4000


def test_needs_are_told_from_sizes_on_the_server(web: WebServer) -> None:
    with opened(web) as volume:
        supply = supply_of(volume)
        assert supply is not None
        need = supply.need((Span(0, 9), Span(0, 32), Span(0, 16)))
        files = [web.folder / "tomo.zarr" / "0" / str(z) / str(y) / "0" for z in (0, 1) for y in (0, 1)]
        assert (need.chunks, need.exact) == (4, True)
        assert need.known_bytes == sum(file.stat().st_size for file in files)
        assert need.most_bytes == 4 * 8 * 16 * 16 * 4
        assert not web.chunk_requests() or all(r.method == "HEAD" for r in web.chunk_requests())


def test_removing_leaves_nothing_behind(web: WebServer, tmp_path: Path) -> None:
    with opened(web, tmp_path / "cache") as volume:
        walk(volume)
        supply = supply_of(volume)
        assert supply is not None
        shelf = supply.store.shelf
        assert isinstance(shelf, DiskShelf)
        assert shelf.size() > 0
        shelf.remove()
    assert not (tmp_path / "cache").exists()


def test_a_folder_may_forget_what_was_passed(web: WebServer, voxels: np.ndarray, tmp_path: Path) -> None:
    with opened(web) as volume:
        keep_chunks(volume, tmp_path / "cache", lasting=False)
        np.testing.assert_array_equal(walk(volume), voxels)
    assert len(list((tmp_path / "cache").rglob("*.chunk"))) <= 2 * COLUMNS
    assert set(fetched(web).values()) == {1}
