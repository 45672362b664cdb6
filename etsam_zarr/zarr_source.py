"""Where a Zarr volume lies, whatever the store, and opening it: a level of an OME-Zarr image, or a bare array."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from etsam_zarr.errors import InputError, NoZarrError, RemoteError
from etsam_zarr.geometry import Shape3
from etsam_zarr.ome.metadata import Multiscale, Placement, parse_multiscale, place, spatial_dimensions
from etsam_zarr.remote.chunk_cache import ChunkStore
from etsam_zarr.volume import VolumeInfo
from etsam_zarr.zarr_volume import DECODING_ERRORS, DEFAULT_CACHE_BYTES, ZarrVolume


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
                f"{source.uri} is a single Zarr array, so it has only level 0, not {source.level}. Leave out --level, "
                "or give the OME-Zarr group that holds the levels."
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
            f"{source.uri} is a folder but no Zarr: it holds no .zgroup, .zarray or zarr.json. Give the folder whose "
            "name usually ends in .zarr, or an MRC file."
        ) from error
    except (*DECODING_ERRORS, KeyError, TypeError) as error:
        raise InputError(
            f"The Zarr metadata of {source.uri} cannot be read ({type(error).__name__}: {error}). Copy or download the "
            "store again."
        ) from error


def _level_array(group: zarr.Group, multiscale: Multiscale, source: ZarrSource) -> zarr.Array[Any]:
    count = len(multiscale.levels)
    if not 0 <= source.level < count:
        raise InputError(
            f"{source.uri} has {count} level(s), 0 to {count - 1}; there is no level {source.level}. Choose another "
            "--level."
        )
    path = multiscale.levels[source.level].path
    try:
        array = group[path]
    except RemoteError:
        raise
    except (*DECODING_ERRORS, KeyError, TypeError) as error:
        raise InputError(
            f"{source.uri} names the array {path!r} for level {source.level}, but it is missing or cannot be read "
            f"({type(error).__name__}: {error}). Copy or download the store again, or choose another --level."
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
                f"{source.uri} is an array of {array.ndim} dimensions ({shape}); a volume in z, y, x is needed, at "
                "most with leading dimensions of length 1. Store the volume as an array of its own."
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
            f"{source.uri} holds {shape[0]} x {shape[1]} x {shape[2]} voxels: an image, not a volume. At least 2 "
            "slices are needed; give the reconstructed tomogram, or a finer --level."
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
            f"{uri} holds values of type {dtype}; integers or floating-point numbers are needed. Convert the array "
            "first."
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
    except (*DECODING_ERRORS, KeyError, TypeError, NotImplementedError):
        found = []  # a store that cannot list its content
    if not found:
        return (
            f"{uri} is a Zarr group without OME-Zarr metadata ('multiscales') and without arrays that could be listed. "
            "Give an OME-Zarr image, or the path of one array."
        )
    return (
        f"{uri} is a Zarr group without OME-Zarr metadata ('multiscales'). It holds {', '.join(found[:8])}: give the "
        f"path of one of these instead, for example {uri.rstrip('/')}/{found[0].split(' ')[0]}."
    )
