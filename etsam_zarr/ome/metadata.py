"""OME-Zarr metadata as stored: what a multiscale image says about its levels.

Reads 0.4 and 0.5, and 0.1 to 0.3 as far as they go (https://ngff.openmicroscopy.org). Two deviations of
stored tomograms are followed rather than refused, each with a warning: older stores of the CryoET Data
Portal list the axes as x, y, z although their arrays are z, y, x (scales are then taken in the order of the
array), and leave out the unit, which is angstrom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etsam_zarr.errors import InputError

Vector3 = tuple[float, float, float]

_ANGSTROM_PER_UNIT = {
    "angstrom": 1.0,
    "picometer": 0.01,
    "nanometer": 10.0,
    "micrometer": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
}
# Axes were not stored before 0.3: five dimensions in this order.
_IMPLIED_AXES = "tczyx"


@dataclass(frozen=True)
class Axis:
    """One dimension of a stored array."""

    name: str
    unit: str | None = None


@dataclass(frozen=True)
class Level:
    """One resolution, its transformations combined with those of the whole image."""

    path: str
    """Path of the array below the group."""
    scale: tuple[float, ...] | None
    """One factor per axis, in the axes' units; None where nothing is stored."""
    translation: tuple[float, ...] | None


@dataclass(frozen=True)
class Multiscale:
    """The first multiscale image of a group, finest level first."""

    version: str
    axes: tuple[Axis, ...]
    """Empty before 0.3."""
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Placement:
    """How the dimensions of one level become a volume in z, y, x."""

    spatial: tuple[int, int, int]
    """Which dimensions are z, y and x; all others have length 1."""
    voxel_size: Vector3 | None
    """Angstrom, z, y, x."""
    origin: Vector3
    """Angstrom, z, y, x."""
    warnings: tuple[str, ...]


def parse_multiscale(attributes: Mapping[str, Any], *, uri: str) -> Multiscale | None:
    """Read the attributes of a group; None if they hold no multiscale image.

    Raises
    ------
    InputError
        There is a multiscale image, but its metadata makes no sense.
    """
    ome = attributes.get("ome")
    source = ome if isinstance(ome, Mapping) else attributes
    images = source.get("multiscales")
    if not images:
        return None
    try:
        image = images[0]
        version = str(source.get("version") if source is ome else image.get("version", "0.1"))
        axes = tuple(_axis(axis) for axis in image.get("axes", ()))
        outer = image.get("coordinateTransformations", ())
        levels = tuple(_level(dataset, outer) for dataset in image["datasets"])
        if not levels:
            raise ValueError("the list of levels (datasets) is empty")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"The OME-Zarr metadata of {uri} cannot be understood ({type(error).__name__}: {error}). Check "
            "its 'multiscales' attribute with a validator, or give the path of one of its arrays instead."
        ) from error
    return Multiscale(version, axes, levels)


def _axis(stored: Any) -> Axis:  # noqa: ANN401 - JSON
    if isinstance(stored, str):
        return Axis(stored.lower())
    unit = stored.get("unit")
    return Axis(str(stored["name"]).lower(), None if unit is None else str(unit).lower())


def _level(dataset: Mapping[str, Any], outer: Sequence[Mapping[str, Any]]) -> Level:
    scale, translation = _transformation(dataset.get("coordinateTransformations", ()))
    outer_scale, outer_translation = _transformation(outer)
    # The image's own transformations apply after the level's.
    if outer_scale is not None:
        scale = _times(scale, outer_scale)
        translation = None if translation is None else _times(translation, outer_scale)
    if outer_translation is not None:
        translation = _plus(translation, outer_translation)
    return Level(str(dataset["path"]), scale, translation)


def _transformation(
    steps: Sequence[Mapping[str, Any]],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    scale: tuple[float, ...] | None = None
    translation: tuple[float, ...] | None = None
    for step in steps:
        kind = step["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in step:
            raise ValueError(f"a coordinate transformation of type {kind!r}, stored elsewhere or unknown")
        values = tuple(float(value) for value in step[kind])
        if kind == "scale":
            scale = _times(scale, values)
            translation = None if translation is None else _times(translation, values)
        else:
            translation = _plus(translation, values)
    return scale, translation


def _times(a: tuple[float, ...] | None, b: tuple[float, ...]) -> tuple[float, ...]:
    return b if a is None else tuple(p * q for p, q in zip(a, b, strict=True))


def _plus(a: tuple[float, ...] | None, b: tuple[float, ...]) -> tuple[float, ...]:
    return b if a is None else tuple(p + q for p, q in zip(a, b, strict=True))


def place(multiscale: Multiscale, level: Level, shape: Sequence[int], *, uri: str) -> Placement:
    """Find z, y and x among the dimensions of ``level``, and its voxel size and origin.

    Parameters
    ----------
    multiscale, level
        The image and one of its levels.
    shape
        Shape of the level's array.
    uri
        Where it lies, for messages.

    Raises
    ------
    InputError
        The array is no volume: fewer than three dimensions, a time series, several channels.
    """
    warnings: list[str] = []
    axes = multiscale.axes or tuple(Axis(name) for name in _IMPLIED_AXES[-len(shape) :])
    if len(axes) != len(shape):
        raise InputError(
            f"{uri} lists {len(axes)} axes ({', '.join(axis.name for axis in axes)}) for an array of "
            f"{len(shape)} dimensions. Correct the metadata, or give the path of the array itself."
        )
    spatial = spatial_dimensions(tuple(axis.name for axis in axes), shape, uri=uri, warnings=warnings)
    units = [axes[dimension].unit for dimension in spatial]
    voxel_size = _in_angstrom(level.scale, spatial, units, warnings)
    origin: Vector3 = (0.0, 0.0, 0.0)
    if voxel_size is not None and level.translation is not None:
        z, y, x = (
            level.translation[dimension] * _ANGSTROM_PER_UNIT.get(unit or "angstrom", 1.0)
            for dimension, unit in zip(spatial, units, strict=True)
        )
        origin = (z, y, x)
    return Placement(spatial, voxel_size, origin, tuple(warnings))


def spatial_dimensions(
    names: Sequence[str], shape: Sequence[int], *, uri: str, warnings: list[str]
) -> tuple[int, int, int]:
    """Return which dimensions are z, y and x; appends to ``warnings`` where the names had to be interpreted.

    Raises
    ------
    InputError
        There are no three such dimensions, or another one is longer than 1.
    """
    spatial = [dimension for dimension, name in enumerate(names) if name in "zyx"]
    described = ", ".join(f"{name} = {size}" for name, size in zip(names, shape, strict=True))
    if len(spatial) != 3:
        raise InputError(
            f"{uri} has the dimensions {described}; a volume in z, y, x is needed. An image or a stack of "
            "images cannot be segmented as a tomogram: give the reconstructed volume."
        )
    longer = [f"{names[d]} = {shape[d]}" for d in range(len(names)) if d not in spatial and shape[d] != 1]
    if longer:
        raise InputError(
            f"{uri} has the dimensions {described}; besides z, y, x only dimensions of length 1 can be "
            f"left out, and {' and '.join(longer)} is longer. Store the time point or channel you want as "
            "a volume of its own."
        )
    order = "".join(names[dimension] for dimension in spatial)
    if order == "xyz":
        warnings.append(
            "The axes are listed as x, y, z, as older stores of the CryoET Data Portal do although their "
            "arrays are z, y, x; the array is read as z, y, x."
        )
    elif order != "zyx":
        raise InputError(
            f"{uri} stores its axes in the order {', '.join(order)}; z, y, x is needed. Rewrite it in that order."
        )
    z, y, x = spatial
    return z, y, x


def _in_angstrom(
    scale: tuple[float, ...] | None,
    spatial: tuple[int, int, int],
    units: Sequence[str | None],
    warnings: list[str],
) -> Vector3 | None:
    if scale is None or any(scale[dimension] <= 0 for dimension in spatial):
        warnings.append("The metadata gives no voxel size; give it with --voxel-size.")
        return None
    unknown = sorted({unit for unit in units if unit is not None and unit not in _ANGSTROM_PER_UNIT})
    if unknown:
        warnings.append(
            f"The unit {', '.join(unknown)} of the voxel size is not known; give the size in angstrom with "
            "--voxel-size."
        )
        return None
    if None in units:
        if all(scale[dimension] == 1.0 for dimension in spatial):
            warnings.append(
                "The metadata gives a scale of 1 without a unit, so no voxel size; give it with --voxel-size."
            )
            return None
        warnings.append(
            "The metadata gives no unit for the voxel size: taken as angstrom; correct it with --voxel-size."
        )
    z, y, x = (
        scale[dimension] * _ANGSTROM_PER_UNIT[unit or "angstrom"]
        for dimension, unit in zip(spatial, units, strict=True)
    )
    return z, y, x
