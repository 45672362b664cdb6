"""A Zarr array as a volume: boxes of it, what is kept of it decoded, and its digest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import lzma
import zlib
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from etsam_zarr.bands import BandCache, band_of, chunk_groups, within_layers
from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Box, Span, aligned, box_within
from etsam_zarr.remote.chunk_cache import ChunkStore
from etsam_zarr.remote.chunk_supply import ChunkLayout, ChunkSupply
from etsam_zarr.volume import Array, Volume, VolumeInfo

DEFAULT_CACHE_BYTES = 1 << 30
# What stores and decoders raise on bytes they cannot read; zarr has no common error for it.
DECODING_ERRORS = (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)
_SAMPLES = 64
_SAMPLE_BYTES = 4096


class ZarrVolume(Volume):
    """One Zarr array, version 2 or 3, seen as a volume in z, y, x.

    A slab cuts through chunks that are usually deeper than it, so the last layer of chunks that was read
    stays in memory, decoded, and the next slabs are served from it. Of a layer larger than ``cache_bytes``
    only a band of slices is kept: its chunks are then decoded anew for every band, a few at a time, which
    costs time instead of memory.

    Parameters
    ----------
    array
        The array; dimensions other than the three spatial ones have length 1.
    info
        Facts of the volume.
    spatial
        Which dimensions of the array are z, y and x.
    cache_bytes
        Most bytes of decoded chunks to keep.
    chunk_store
        The array's store, where it is a remote one.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        info: VolumeInfo,
        *,
        spatial: tuple[int, int, int],
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        chunk_store: ChunkStore | None = None,
    ) -> None:
        super().__init__(info)
        self._array = array
        self._spatial = spatial
        self._bands = BandCache(cache_bytes)
        self._layout = ChunkLayout(array, spatial)
        self._chunks = None if chunk_store is None else ChunkSupply(chunk_store, self._layout)

    @property
    def supply(self) -> ChunkSupply | None:
        """Where the chunks of a remote volume come from; None for a local one."""
        return self._chunks

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box; see :meth:`Volume.read`."""
        info = self.info
        box = box_within(info.shape, z, y, x)
        columns = aligned(box[1], info.chunks[1], info.shape[1]), aligned(box[2], info.chunks[2], info.shape[2])
        plane_bytes = columns[0].size * columns[1].size * info.dtype.itemsize
        depth = min(info.chunks[0], self._bands.most_bytes // plane_bytes) if plane_bytes else 0
        values = np.empty(tuple(span.size for span in box), info.dtype)
        in_order = self._chunks is not None and self._chunks.goes_on((z, *columns))
        for part in within_layers(z, info.chunks[0], depth):
            layer = aligned(part, info.chunks[0], info.shape[0])
            if self._chunks is not None:
                self._chunks.prepare((part, *columns), ahead=in_order or layer.stop < z.stop)
            target = slice(part.start - z.start, part.stop - z.start)
            band = band_of(part, layer, depth)
            if band is None or (band == part and columns == box[1:]):
                self._decode((part, box[1], box[2]), values[target])
                continue
            decoded = self._bands.get((band, columns[0], columns[1]), self._decoded)
            inside = zip((part, *box[1:]), (band, *columns), strict=True)
            values[target] = decoded[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in inside)]
        return values

    def expect(self, box: Box) -> None:
        """Say that nothing outside of a box will be read, so nothing there is fetched ahead."""
        if self._chunks is not None:
            self._chunks.region = box

    def _decoded(self, box: Box) -> Array:
        values = np.empty(tuple(span.size for span in box), self.info.dtype)
        self._decode(box, values)
        return values

    def _decode(self, box: Box, into: Array) -> None:
        """Decode a box, few chunks at a time: zarr holds all chunks of one call whole."""
        for part in chunk_groups(box, self.info.chunks, self.info.dtype.itemsize):
            index: list[int | slice] = [0] * self._array.ndim
            for dimension, span in zip(self._spatial, part, strict=True):
                index[dimension] = span.as_slice()
            target = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, box, strict=True))
            try:
                into[target] = np.asarray(self._array[tuple(index)])
            except InputError:
                raise
            except DECODING_ERRORS as error:
                raise InputError(self._damaged(part, error)) from error

    def _damaged(self, box: Box, error: Exception) -> str:
        """Say which stored chunk of a box cannot be decoded."""
        positions = self._layout.positions(box)
        damaged = positions[0]
        for position in positions:
            try:
                self._array[self._layout.region(position)]
            except DECODING_ERRORS as own:
                damaged, error = position, own
                break
        region = self._layout.region(damaged)
        spans = [region[dimension] for dimension in self._spatial]
        where = " x ".join(f"{axis} {span.start}:{span.stop}" for axis, span in zip("zyx", spans, strict=True))
        return (
            f"{self.info.uri}: chunk {self._layout.key(damaged)}, with the voxels at {where}, cannot be read, since "
            f"it is damaged or was cut short when it was stored ({type(error).__name__}: {error}). Copy or download "
            "the store again, then give the same command again."
        )

    def digest(self) -> str:
        """Return a SHA-256 over the array's metadata, its place in space and samples of 64 stored chunks."""
        return self.digest_of(None)

    def digest_of(self, box: Box | None) -> str:
        """Return the digest as :meth:`digest` has it, with samples only of chunks that touch a box."""
        described = self._array.metadata.to_dict()
        described.pop("attributes", None)
        facts = [described, self.info.shape, self._spatial]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for sample in sync(self._stored_samples(box)):
            # Length first, so that "no chunk" differs from an empty one and samples cannot run into each
            # other.
            digest.update(b"-" if sample is None else f"{len(sample)}:".encode() + sample)
        return digest.hexdigest()

    async def _stored_samples(self, box: Box | None) -> list[bytes | None]:
        """Read the first 4 KiB of stored chunks (or shards) spread evenly over the array, in order."""
        keys = self._layout.sampled_keys(_SAMPLES, box)
        store = self._array.store_path.store
        if isinstance(store, ChunkStore):
            return await store.samples(keys, _SAMPLE_BYTES)
        prototype = default_buffer_prototype()
        part = RangeByteRequest(0, _SAMPLE_BYTES)
        found = await asyncio.gather(*(store.get(key, prototype, part) for key in keys))
        return [None if sample is None else sample.to_bytes() for sample in found]

    def close(self) -> None:
        """Forget the decoded chunks, and close the connections of a remote store."""
        self._bands.clear()
        if self._chunks is not None:
            self._chunks.close()
