"""Writes OME-Zarr images and labels: metadata and empty arrays, to be filled later.

Images and labels of 0.4 are Zarr 2 with "/" between chunk indices, those of 0.5 Zarr 3; both carry the
levels "0", "1", ... . The metadata follows https://ngff.openmicroscopy.org/0.4/ and /0.5/ and is checked in
the tests with yaozarrs and ome-zarr-models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

OmeVersion = Literal["0.4", "0.5"]
ZarrFormat = Literal[2, 3]
Vector3 = tuple[float, float, float]
Rgba = tuple[int, int, int, int]

# zstd behind a byte shuffle. Level 5 made a smoothed float32 volume 5 % smaller than level 1 and its
# conversion 40 % slower (256 x 512 x 512, 2 cores).
_COMPRESSOR: Literal["zstd"] = "zstd"
_COMPRESSION_LEVEL = 1


@dataclass(frozen=True)
class ImageMetadata:
    """What is written about a multiscale image, whatever the version."""

    name: str
    levels: int
    """How many levels there are, each half as fine as the one before in z, y and x."""
    voxel_size: Vector3 | None
    """Of the finest level, angstrom, z, y, x; None writes a scale of 1 without a unit."""
    origin: Vector3 = (0.0, 0.0, 0.0)
    """Centre of the finest level's first voxel, angstrom, z, y, x."""
    reduction: str = "mean"
    """How a voxel is made from the finer level's eight: ``"mean"``, ``"max"`` or ``"mode"``."""

    def scale(self, level: int) -> Vector3:
        """Return the voxel size at ``level``."""
        z, y, x = self.voxel_size or (1.0, 1.0, 1.0)
        return z * 2**level, y * 2**level, x * 2**level

    def translation(self, level: int) -> Vector3:
        """Return where the centre of the first voxel of ``level`` lies.

        A voxel of level k covers 2^k of the finest along each axis, so that its centre lies (2^k - 1) / 2 of
        them further in.
        """
        shift = (2**level - 1) / 2
        z, y, x = (
            start + shift * size for start, size in zip(self.origin, self.voxel_size or (1.0, 1.0, 1.0), strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class LabelMetadata:
    """What a label image says beyond being an image."""

    colours: Mapping[int, Rgba]
    """Red, green, blue and opacity, 0 to 255, of each value that is to be shown."""
    source: str = "../../"
    """Path of the image it belongs to, seen from the label's group."""


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


def image_attributes(
    image: ImageMetadata, *, version: OmeVersion, label: LabelMetadata | None = None
) -> dict[str, Any]:
    """Return the attributes of the group of an image, or of a label image."""
    axes: list[dict[str, str]] = [{"name": axis, "type": "space"} for axis in "zyx"]
    if image.voxel_size is not None:
        for axis in axes:
            axis["unit"] = "angstrom"
    multiscale: dict[str, Any] = {
        "name": image.name,
        "axes": axes,
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(image.scale(level))},
                    {"type": "translation", "translation": list(image.translation(level))},
                ],
            }
            for level in range(image.levels)
        ],
        "type": image.reduction,
    }
    attributes: dict[str, Any] = {"multiscales": [multiscale]}
    if label is not None:
        attributes["image-label"] = {
            "colors": [{"label-value": value, "rgba": list(rgba)} for value, rgba in sorted(label.colours.items())],
            "source": {"image": label.source},
        }
    if version == "0.5":
        return {"ome": {"version": version, **attributes}}
    multiscale["version"] = version
    if label is not None:
        attributes["image-label"]["version"] = version
    return attributes


def labels_attributes(names: Sequence[str], *, version: OmeVersion) -> dict[str, Any]:
    """Return the attributes of the group ``labels`` that lists an image's labels."""
    listed: dict[str, Any] = {"labels": list(names)}
    return {"ome": {"version": version, **listed}} if version == "0.5" else listed


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
