"""Zarr arrays and levels of OME-Zarr images as volumes, whatever store they lie in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import lzma
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from etsam_zarr.bands import BandCache, band_of, chunk_groups, within_layers
from etsam_zarr.errors import InputError, NoZarrError, RemoteError
from etsam_zarr.geometry import Shape3, Span, aligned, box_within
from etsam_zarr.ome_metadata import Multiscale, Placement, parse_multiscale, place, spatial_dimensions
from etsam_zarr.remote.chunk_cache import ChunkStore
from etsam_zarr.remote.chunk_supply import Box, ChunkLayout, ChunkSupply
from etsam_zarr.volume import Array, Volume, VolumeInfo

DEFAULT_CACHE_BYTES = 1 << 30
_SAMPLES = 64
_SAMPLE_BYTES = 4096
# What stores and decoders raise on bytes they cannot read; zarr has no common error for it.
_DECODING_ERRORS = (RuntimeError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError)


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
            except _DECODING_ERRORS as error:
                raise InputError(self._damaged(part, error)) from error

    def _damaged(self, box: Box, error: Exception) -> str:
        """Say which stored chunk of a box cannot be decoded."""
        positions = self._layout.positions(box)
        damaged = positions[0]
        for position in positions:
            try:
                self._array[self._layout.region(position)]
            except _DECODING_ERRORS as own:
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


@dataclass(frozen=True)
class ZarrSource:
    """Where a Zarr volume lies and how it is to be understood."""

    store: Store
    uri: str
    """For messages and :attr:`VolumeInfo.uri`; no credentials."""
    name: str
    level: int = 0
    voxel_size: tuple[float, float, float] | None = None


def open_zarr_volume(source: ZarrSource, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> ZarrVolume:
    """Open an OME-Zarr level or a bare array in any Zarr store.

    Raises
    ------
    InputError
        There is no array to be had, or none that is a volume.
    """
    node = _open_node(source)
    if isinstance(node, zarr.Array):
        if source.level != 0:
            raise InputError(
                f"{source.uri} is a single Zarr array, so it has only level 0, not {source.level}. Leave "
                "out --level, or give the OME-Zarr group that holds the levels."
            )
        return _volume(node, source, _bare_placement(node, source), "zarr", cache_bytes)
    multiscale = parse_multiscale(node.attrs.asdict(), uri=source.uri)
    if multiscale is None:
        raise InputError(_no_image(node, source.uri))
    array = _level_array(node, multiscale, source)
    level = multiscale.levels[source.level]
    placement = place(multiscale, level, array.shape, uri=source.uri)
    return _volume(array, source, placement, f"ome-zarr {multiscale.version}", cache_bytes)


def _open_node(source: ZarrSource) -> zarr.Array[Any] | zarr.Group:
    try:
        return zarr.open(source.store, mode="r")
    except RemoteError:
        raise
    except FileNotFoundError as error:
        raise NoZarrError(
            f"{source.uri} is a folder but no Zarr: it holds no .zgroup, .zarray or zarr.json. Give the "
            "folder whose name usually ends in .zarr, or an MRC file."
        ) from error
    except (*_DECODING_ERRORS, KeyError, TypeError) as error:
        raise InputError(
            f"The Zarr metadata of {source.uri} cannot be read ({type(error).__name__}: {error}). Copy or "
            "download the store again."
        ) from error


def _level_array(group: zarr.Group, multiscale: Multiscale, source: ZarrSource) -> zarr.Array[Any]:
    count = len(multiscale.levels)
    if not 0 <= source.level < count:
        raise InputError(
            f"{source.uri} has {count} level(s), 0 to {count - 1}; there is no level {source.level}. "
            "Choose another --level."
        )
    path = multiscale.levels[source.level].path
    try:
        array = group[path]
    except RemoteError:
        raise
    except (*_DECODING_ERRORS, KeyError, TypeError) as error:
        raise InputError(
            f"{source.uri} names the array {path!r} for level {source.level}, but it is missing or cannot "
            f"be read ({type(error).__name__}: {error}). Copy or download the store again, or choose "
            "another --level."
        ) from error
    if not isinstance(array, zarr.Array):
        raise InputError(
            f"{source.uri} names {path!r} for level {source.level}, which is a group. Correct the metadata."
        )
    return array


def _bare_placement(array: zarr.Array[Any], source: ZarrSource) -> Placement:
    warnings: list[str] = []
    stored = getattr(array.metadata, "dimension_names", None)
    names = tuple(name.lower() for name in stored) if stored and all(stored) else ()
    spatial: tuple[int, int, int]
    if sorted(name for name in names if name in "zyx") == ["x", "y", "z"]:
        spatial = spatial_dimensions(names, array.shape, uri=source.uri, warnings=warnings)
    else:
        extra = array.ndim - 3
        if extra < 0 or any(size != 1 for size in array.shape[:extra]):
            shape = " x ".join(str(size) for size in array.shape)
            raise InputError(
                f"{source.uri} is an array of {array.ndim} dimensions ({shape}); a volume in z, y, x is "
                "needed, at most with leading dimensions of length 1. Store the volume as an array of its "
                "own."
            )
        spatial = (extra, extra + 1, extra + 2)
    warnings.append("A bare Zarr array gives no voxel size; give it with --voxel-size.")
    return Placement(spatial, None, (0.0, 0.0, 0.0), tuple(warnings))


def _volume(
    array: zarr.Array[Any], source: ZarrSource, placement: Placement, kind: str, cache_bytes: int
) -> ZarrVolume:
    _check_type(array.dtype, source.uri)
    shape = _pick(array.shape, placement.spatial)
    if min(shape) < 2:
        raise InputError(
            f"{source.uri} holds {shape[0]} x {shape[1]} x {shape[2]} voxels: an image, not a volume. At "
            "least 2 slices are needed; give the reconstructed tomogram, or a finer --level."
        )
    warnings = placement.warnings
    if source.voxel_size is not None:
        warnings = tuple(sentence for sentence in warnings if "--voxel-size" not in sentence)
    info = VolumeInfo(
        uri=source.uri,
        name=source.name,
        format=kind,
        shape=shape,
        dtype=array.dtype.newbyteorder("="),
        chunks=_pick(array.chunks, placement.spatial),
        voxel_size=source.voxel_size or placement.voxel_size,
        origin=placement.origin,
        warnings=warnings,
    )
    chunk_store = source.store if isinstance(source.store, ChunkStore) else None
    return ZarrVolume(array, info, spatial=placement.spatial, cache_bytes=cache_bytes, chunk_store=chunk_store)


def _check_type(dtype: np.dtype[Any], uri: str) -> None:
    if dtype.kind not in "iufb":
        raise InputError(
            f"{uri} holds values of type {dtype}; integers or floating-point numbers are needed. Convert "
            "the array first."
        )


def _pick(sizes: Sequence[int], dimensions: tuple[int, int, int]) -> Shape3:
    z, y, x = (sizes[dimension] for dimension in dimensions)
    return z, y, x


def _no_image(group: zarr.Group, uri: str) -> str:
    found = []
    try:
        with warnings.catch_warnings():
            # Files that are no Zarr are no news here.
            warnings.simplefilter("ignore")
            members = group.members(max_depth=2)
        for path, node in members:
            if isinstance(node, zarr.Array):
                found.append(f"{path} ({' x '.join(str(size) for size in node.shape)})")
            elif parse_multiscale(node.attrs.asdict(), uri=uri) is not None:
                found.append(f"{path} (an OME-Zarr image)")
    except (*_DECODING_ERRORS, KeyError, TypeError, NotImplementedError):
        found = []  # a store that cannot list its content
    if not found:
        return (
            f"{uri} is a Zarr group without OME-Zarr metadata ('multiscales') and without arrays that "
            "could be listed. Give an OME-Zarr image, or the path of one array."
        )
    return (
        f"{uri} is a Zarr group without OME-Zarr metadata ('multiscales'). It holds "
        f"{', '.join(found[:8])}: give the path of one of these instead, for example "
        f"{uri.rstrip('/')}/{found[0].split(' ')[0]}."
    )
