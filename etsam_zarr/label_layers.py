"""A label of a run, read layer of chunks by layer: no more than one layer of voxels is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr

from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Span, cut
from etsam_zarr.runstore import RunStore
from etsam_zarr.volume import Array


def open_label(store: RunStore, label: str) -> zarr.Array[Any]:
    """Return the finest level of a label of a run, (z, y, x).

    Raises
    ------
    RunStoreError
        Its metadata cannot be read.
    """
    try:
        return zarr.open_array(store.path / "labels" / label / "0", mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise RunStoreError(
            f"The label {label!r} of the run {store.path} is damaged: its metadata cannot be read ({error}). Make it "
            "again."
        ) from error


def label_slices(array: zarr.Array[Any], dtype: np.dtype[Any]) -> Iterator[Array]:
    """Yield slices, (1, y, x), of another type; a layer is let go of before the next one is read.

    Raises
    ------
    RunStoreError
        A chunk is damaged.
    """
    layers = _layers(array)
    while (layer := next(layers, None)) is not None:
        for z in range(len(layer)):
            yield layer[z : z + 1].astype(dtype)
        del layer


def largest_id(array: zarr.Array[Any]) -> int:
    """Return the largest id of a label; 0, unread, where its type has at most the 2 bytes that MRC stores.

    Raises
    ------
    RunStoreError
        A chunk is damaged.
    """
    if array.dtype.itemsize <= 2:
        return 0
    # Not in a loop of its own, whose variable would hold a layer while the next one is read.
    return max(map(_largest, _layers(array)), default=0)


def _layers(array: zarr.Array[Any]) -> Iterator[Array]:
    for span in cut(Span(0, array.shape[0]), array.chunks[0]):
        try:
            yield np.asarray(array[span.as_slice()])
        except (OSError, RuntimeError, ValueError) as error:
            raise RunStoreError(
                f"A chunk of {array.store_path} is damaged ({error}). Make this label again."
            ) from error


def _largest(layer: Array) -> int:
    return int(layer.max())
