"""Scores as unsigned integers that sort as the scores do, so that counts and buckets can be indexed by them."""

from __future__ import annotations

from typing import Any

import numpy as np

from etsam_zarr.volume import Array


def ordered_keys(scores: Array) -> Array:
    """Return unsigned integers, 16 or 32 bits wide, that sort as the scores do; -0 counts as 0.

    Parameters
    ----------
    scores
        Any shape, float32, or of a type of at most 16 bits; none of them NaN.

    Examples
    --------
    >>> ordered_keys(np.array([-1.5, -0.0, 0.0, 2], np.float32)).tolist()
    [1077936127, 2147483648, 2147483648, 3221225472]
    """
    if scores.dtype.kind in "iub":
        lowest = 0 if scores.dtype.kind in "ub" else int(np.iinfo(scores.dtype).min)
        return (scores.astype(np.int32) - lowest).astype(np.uint16)
    width = scores.dtype.itemsize * 8
    bits = (scores + scores.dtype.type(0)).view(f"u{scores.dtype.itemsize}")
    # Negative numbers are stored as sign and size: turning all bits makes larger sizes smaller.
    sign = bits.dtype.type(1 << (width - 1))
    keys: Array = np.where(bits & sign, ~bits, bits | sign)
    return keys


def value_of_key(key: int, dtype: np.dtype[Any]) -> float:
    """Return the score of a key, the inverse of :func:`ordered_keys`.

    Parameters
    ----------
    key
        Of one score.
    dtype
        Of the scores that :func:`ordered_keys` was given.
    """
    if dtype.kind in "iub":
        return float(key + (0 if dtype.kind in "ub" else int(np.iinfo(dtype).min)))
    width = dtype.itemsize * 8
    sign = 1 << (width - 1)
    bits = key ^ sign if key & sign else key ^ (2 * sign - 1)
    return float(np.array([bits], f"u{dtype.itemsize}").view(dtype)[0])


def just_below(value: float, dtype: np.dtype[Any]) -> float:
    """Return the next smaller value of a type, so that "above it" means "at least ``value``"."""
    if dtype.kind in "iub":
        return value - 1
    with np.errstate(over="ignore"):  # below the lowest number lies minus infinity, which is right
        return float(np.nextafter(dtype.type(value), dtype.type(-np.inf)))
