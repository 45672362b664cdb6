"""The random numbers of a phantom, which depend on its seed and a place only.

They come from a counter-based generator (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011, https://doi.org/10.1145/2063384.2063405): whoever asks for a place, in any order, draws the same.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from etsam_zarr.geometry import Shape3
from etsam_zarr.phantom.shapes import Point, as_point


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of one place of the scene; the same key gives the same numbers anywhere.

    Parameters
    ----------
    seed
        Of the phantom, 0 or more.
    key
        What is drawn, and for which cell; cells may be negative.
    """
    # SeedSequence takes no negative words: cells left of the origin are shifted into the positive range.
    words = [seed, *(k + 2**31 for k in key)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def draw_centre(rng: np.random.Generator, cell: Shape3, edge: float, radius: float) -> Point:
    """Draw a centre such that a sphere of ``radius`` around it stays in the cell as far as it fits.

    Parameters
    ----------
    rng
        Of the cell.
    cell
        Index of the cell.
    edge
        Of the lattice's cells, in angstrom.
    radius
        In angstrom.
    """
    room = max(edge / 2 - radius, 0.0)
    return as_point((np.asarray(cell) + 0.5) * edge + rng.uniform(-room, room, size=3))


def draw_direction(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a unit vector uniformly, shape (3,)."""
    vector = rng.standard_normal(3)
    return cast("npt.NDArray[np.float64]", vector / np.linalg.norm(vector))


def draw_rotation(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw a rotation matrix uniformly, shape (3, 3), from a normalised quaternion."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
