"""Which slices are prompted, and with what: ETSAM's automatic prompts, one table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etsam_zarr.config import PromptMethod

Mask = npt.NDArray[np.bool_]

# method: (whether every interval-th slice is prompted or only slice 0)
_REPEATS: dict[PromptMethod, bool] = {"zero": False, "grid_zero": False, "grid": True, "stage1_partial": True}


def prompted_slices(method: PromptMethod, depth: int, interval: int) -> tuple[int, ...]:
    """Return the slices that get a prompt, in order.

    >>> prompted_slices("grid", 120, 50)
    (0, 50, 100)
    >>> prompted_slices("grid_zero", 120, 50)
    (0,)
    """
    return tuple(range(0, depth, interval)) if _REPEATS[method] else (0,)


def fixed_prompt(method: PromptMethod, height: int, width: int, interval: int) -> Mask:
    """Return the prompt mask, shape (height, width), of a method that needs no image.

    ``grid`` and ``grid_zero`` set single pixels every ``interval`` rows and columns, from the corner; ``zero`` none.
    """
    mask = np.zeros((height, width), dtype=np.bool_)
    if method in ("grid", "grid_zero"):
        mask[::interval, ::interval] = True
    elif method != "zero":
        raise ValueError(f"the prompt {method} is made from the result of stage 1")
    return mask
