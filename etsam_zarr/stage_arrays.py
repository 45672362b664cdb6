"""The arrays in which a run store keeps what the model said in a stage.

Their first axis is the tile, the second the slice. Chunks hold one tile, and a fixed number of slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

from etsam_zarr.errors import RunStoreError

Stage = Literal[1, 2]
STAGES: tuple[Stage, ...] = (1, 2)

LOGIT_CHUNK_DEPTH = 16
"""Slices per stored chunk of logits; fixed, so that the store does not depend on the slab. Windows begin with one."""


@dataclass(frozen=True)
class StageArrays:
    """The arrays of one stage."""

    logits: zarr.Array[Any]
    """Native logits, float32, (tile, z, native, native)."""
    object_score: zarr.Array[Any]
    """Float32, (tile, z)."""
    object_pointer: zarr.Array[Any]
    """Float32, (tile, z, hidden dim)."""
    backwards: zarr.Array[Any]
    """Native logits predicted backwards for prompted slices, float32, (tile, prompted slice, native, native)."""


@dataclass(frozen=True)
class StageSizes:
    """What the shapes of a stage's arrays are made of."""

    tiles: int
    depth: int
    """Slices."""
    native_size: int
    """Edge of the native logits."""
    hidden_dim: int
    """Length of an object pointer."""
    backwards: int
    """Prompted slices that are predicted backwards; 0 where that is not asked for."""


def create_stage_arrays(group: zarr.Group, sizes: StageSizes) -> None:
    """Create the arrays of a stage, empty, in a group."""
    images, edge = (sizes.tiles, sizes.depth), (sizes.native_size, sizes.native_size)
    pointers = (sizes.hidden_dim,)
    _add(group, "logits", (*images, *edge), (1, LOGIT_CHUNK_DEPTH, *edge))
    _add(group, "object_score", images, (1, LOGIT_CHUNK_DEPTH))
    _add(group, "object_pointer", (*images, *pointers), (1, LOGIT_CHUNK_DEPTH, *pointers))
    _add(group, "backwards", (sizes.tiles, sizes.backwards, *edge), (1, 1, *edge))


def open_stage_arrays(folder: Path) -> StageArrays:
    """Open the arrays of a stage for reading and writing.

    Raises
    ------
    RunStoreError
        They are not there, or their metadata are damaged.
    """
    try:
        group = zarr.open_group(folder, mode="r+")
        arrays = {name: group[name] for name in ("logits", "object_score", "object_pointer", "backwards")}
    except (OSError, ValueError, KeyError) as error:
        raise RunStoreError(
            f"The run store is damaged: the metadata in {folder} cannot be read ({error}). Run again with --overwrite."
        ) from error
    return StageArrays(**arrays)  # type: ignore[arg-type] # zarr says "array or group"


def read_stored(array: zarr.Array[Any], *selection: int | slice) -> npt.NDArray[np.float32]:
    """Read from an array of a stage.

    Raises
    ------
    RunStoreError
        A chunk is damaged.
    """
    try:
        return np.ascontiguousarray(array[selection], dtype=np.float32)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunStoreError(
            f"A chunk of {array.store_path} in the run store is damaged ({error}). Run again with --overwrite."
        ) from error


def _add(group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    """Create a float32 array with shuffled, Zstandard-compressed chunks."""
    version = group.metadata.zarr_format
    compressor: Any
    if version == 2:
        import numcodecs

        compressor = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
    else:
        compressor = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=4)
    group.create_array(
        name, shape=shape, chunks=chunks, dtype=np.dtype("float32"), compressors=compressor, fill_value=0.0,
        chunk_key_encoding={"name": "v2", "separator": "/"} if version == 2 else None,
    )  # fmt: skip
