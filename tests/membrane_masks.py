"""Masks that look like membranes, or like nothing, and ETSAM's rule for rungs read plainly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import skeletonize

Array = npt.NDArray[Any]
Pixel = tuple[int, int]


def around(pixel: Pixel) -> set[Pixel]:
    y, x = pixel
    return {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} - {pixel}


def parts(pixels: set[Pixel]) -> list[set[Pixel]]:
    """Split pixels into 8-connected parts by flooding."""
    left, found = set(pixels), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = {near for pixel in edge for near in around(pixel) if near in left}
            left -= edge
        found.append(part)
    return found


def severed_by_the_rule(plane: Array, max_bridge: int, max_spur: int) -> Array:
    """The rule in words turned into sets of pixels, without any array trick."""
    skeleton = skeletonize(plane)
    bones = {(int(y), int(x)) for y, x in zip(*np.nonzero(skeleton), strict=True)}
    degree = {pixel: len(around(pixel) & bones) for pixel in bones}
    junctions = {pixel for pixel in bones if degree[pixel] >= 3}
    clusters = parts(junctions)
    doomed: set[Pixel] = set()
    for segment in parts(bones - junctions):
        reach = segment.union(*(around(pixel) for pixel in segment))
        met = sum(bool(cluster & reach) for cluster in clusters)
        has_end = any(degree[pixel] == 1 for pixel in reach & bones)
        if (len(segment) <= max_bridge and met >= 2) or (len(segment) <= max_spur and met == 1 and has_end):
            doomed |= segment
    result = plane.copy()
    if not doomed:
        return result
    rows, columns = ndimage.distance_transform_edt(~skeleton, return_distances=False, return_indices=True)
    for y, x in zip(*np.nonzero(plane), strict=True):
        if (int(rows[y, x]), int(columns[y, x])) in doomed:
            result[y, x] = False
    return result


def noise(seed: int, shape: tuple[int, ...], density: float) -> Array:
    return np.random.default_rng(seed).random(shape) < density


def sheets(seed: int, shape: tuple[int, ...]) -> Array:
    """Curved bands of two to four pixels with rungs between them, as touching membranes look."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), [2.5] * len(shape))
    return np.abs(field) < 0.35 * field.std()
