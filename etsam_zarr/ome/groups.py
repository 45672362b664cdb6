"""Writes OME-Zarr images and labels: groups and empty arrays, to be filled later.

Images and labels of 0.4 are Zarr 2 with "/" between chunk indices, those of 0.5 Zarr 3; both carry the
levels "0", "1", ... .
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
import zarr.codecs
from zarr.core.chunk_key_encodings import V2ChunkKeyEncoding

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Shape3, pyramid_shapes
from etsam_zarr.ome.attributes import (
    ImageMetadata,
    LabelMetadata,
    OmeVersion,
    Rgba,
    Vector3,
    image_attributes,
    labels_attributes,
)

ZarrFormat = Literal[2, 3]

# zstd behind a byte shuffle. Level 5 made a smoothed float32 volume 5 % smaller than level 1 and its
# conversion 40 % slower (256 x 512 x 512, 2 cores).
_COMPRESSOR: Literal["zstd"] = "zstd"
_COMPRESSION_LEVEL = 1


def zarr_format(version: OmeVersion) -> ZarrFormat:
    """Return the Zarr format that an OME-Zarr version prescribes.

    Raises
    ------
    SettingsError
        The version is neither 0.4 nor 0.5.
    """
    formats: dict[str, ZarrFormat] = {"0.4": 2, "0.5": 3}
    if version not in formats:
        raise SettingsError(f"OME-Zarr {version} cannot be written; choose 0.4 (Zarr 2) or 0.5 (Zarr 3).")
    return formats[version]


def create_pyramid(
    where: zarr.Group | Path | str,
    *,
    shape: Shape3,
    dtype: npt.DTypeLike,
    voxel_size: Vector3 | None,
    origin: Vector3,
    chunks: Shape3,
    version: OmeVersion,
    name: str,
    label_colours: Mapping[int, Rgba] | None = None,
    reduction: str | None = None,
    shards: Shape3 | None = None,
) -> list[zarr.Array[Any]]:
    """Create the arrays of an image with all its levels, and its metadata, but no data.

    Parameters
    ----------
    where
        The group that becomes the image, or the path of one (created where it is missing).
    shape
        Shape of the finest level, z, y, x; the others follow from :func:`pyramid_shapes`.
    dtype
        Type of the voxels.
    voxel_size, origin
        Angstrom, z, y, x; see :class:`ImageMetadata`.
    chunks
        Largest chunk, z, y, x; levels smaller than it get smaller chunks.
    version
        OME-Zarr version, which decides the Zarr format.
    name
        Name of the image.
    label_colours
        Makes this a label image and gives the colour of each value; None for an image.
    reduction
        Written to the metadata; by default ``"mean"`` for an image and ``"max"`` for a label image.
    shards
        Write unit of 0.5, a multiple of ``chunks``; None writes every chunk as a file of its own.

    Returns
    -------
    list of zarr.Array
        Finest level first.

    Raises
    ------
    SettingsError
        Version, chunks or shards are impossible.
    OutputError
        The destination cannot be written.
    """
    _check_chunks(chunks, shards, version)
    shapes = pyramid_shapes(shape)
    image = ImageMetadata(
        name,
        len(shapes),
        voxel_size,
        origin,
        reduction or ("mean" if label_colours is None else "max"),
    )
    label = None if label_colours is None else LabelMetadata(label_colours)
    with disk_errors("creating an OME-Zarr image", where.name if isinstance(where, zarr.Group) else where):
        group = (
            where
            if isinstance(where, zarr.Group)
            else zarr.open_group(where, mode="a", zarr_format=zarr_format(version))
        )
        arrays = [
            _create_level(group, str(level), level_shape, np.dtype(dtype), chunks, shards)
            for level, level_shape in enumerate(shapes)
        ]
        group.attrs.update(image_attributes(image, version=version, label=label))
    return arrays


def register_label(image: zarr.Group, name: str, *, version: OmeVersion) -> zarr.Group:
    """Create the group ``labels/<name>`` in an image, list it, and return it for :func:`create_pyramid`.

    Raises
    ------
    OutputError
        The destination cannot be written.
    """
    with disk_errors("creating a label image", image.name):
        labels = image.require_group("labels")
        stored = labels.attrs.asdict()
        listing = stored.get("ome", stored)
        known = listing.get("labels") if isinstance(listing, Mapping) else None
        names = [str(entry) for entry in known] if isinstance(known, list) else []
        if name not in names:
            names.append(name)
        labels.attrs.update(labels_attributes(names, version=version))
        return labels.create_group(name)


def _check_chunks(chunks: Shape3, shards: Shape3 | None, version: OmeVersion) -> None:
    zarr_format(version)
    if min(chunks) < 1:
        raise SettingsError(f"Chunks of {chunks} are impossible: each edge must be at least 1.")
    if shards is None:
        return
    if version == "0.4":
        raise SettingsError("Shards exist only in OME-Zarr 0.5; leave them out, or write version 0.5.")
    if any(shard < 1 or shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        raise SettingsError(f"Shards of {shards} are impossible: each edge must be a multiple of the chunks' {chunks}.")


def _create_level(
    group: zarr.Group,
    path: str,
    shape: Shape3,
    dtype: np.dtype[Any],
    chunks: Shape3,
    shards: Shape3 | None,
) -> zarr.Array[Any]:
    if group.metadata.zarr_format == 2:
        return group.create_array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=_at_most(chunks, shape),
            compressors=numcodecs.Blosc(cname=_COMPRESSOR, clevel=_COMPRESSION_LEVEL, shuffle=numcodecs.Blosc.SHUFFLE),
            chunk_key_encoding=V2ChunkKeyEncoding(separator="/"),
            fill_value=0,
        )
    if shards is None:
        chunks = _at_most(chunks, shape)
    return group.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=zarr.codecs.BloscCodec(cname=_COMPRESSOR, clevel=_COMPRESSION_LEVEL, shuffle="shuffle"),
        dimension_names=("z", "y", "x"),
        fill_value=0,
    )


def _at_most(chunks: Shape3, shape: Shape3) -> Shape3:
    z, y, x = (min(chunk, size) for chunk, size in zip(chunks, shape, strict=True))
    return z, y, x
