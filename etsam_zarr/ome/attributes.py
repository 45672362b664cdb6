"""What is written about OME-Zarr images and labels: sizes, places and colours, as the attributes of a version.

They follow https://ngff.openmicroscopy.org/0.4/ and /0.5/ and are checked in the tests with yaozarrs and
ome-zarr-models. Reading them, and those of other programs, is for :mod:`etsam_zarr.ome.metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

OmeVersion = Literal["0.4", "0.5"]
Vector3 = tuple[float, float, float]
Rgba = tuple[int, int, int, int]


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
