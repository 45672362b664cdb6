"""Labels one block of a mask and measures what it finds: the in-memory step of blockwise labelling."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from etsam_zarr.components.graph import faces_of, reach_of
from etsam_zarr.errors import RunStoreError, SettingsError
from etsam_zarr.geometry import Box, Shape3

Kernel = Literal["auto", "scipy", "cc3d", "dask-image"]
Mask = npt.NDArray[np.bool_]
LocalIds = npt.NDArray[np.uint32]
Ids = npt.NDArray[np.int64]

# Voxels measured at once: their indices take 8 bytes each, several times over.
VOXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Pieces:
    """Statistics of a block's provisional components, one row for each local id from 1."""

    voxels: Ids
    """Shape (pieces,)."""
    first: Ids
    """Raster index in the volume of the first voxel, shape (pieces,)."""
    lower: Ids
    """Bounding box, shape (pieces, 3)."""
    upper: Ids
    """Bounding box, exclusive, shape (pieces, 3)."""
    sums: Ids
    """Sums of indices along z, y, x, shape (pieces, 3)."""


def chosen_kernel(kernel: Kernel) -> Kernel:
    """Return the kernel to use: ``auto`` takes cc3d where it is installed, else scipy.

    Raises
    ------
    SettingsError
        cc3d is asked for and not installed.
    """
    if kernel not in ("auto", "cc3d"):
        return kernel
    try:
        import cc3d  # noqa: F401
    except ImportError as error:
        if kernel == "auto":
            return "scipy"
        raise SettingsError(
            "The cc3d kernel needs connected-components-3d, which is not installed. Install it "
            "(pip install 'etsam-zarr[fast]'), or take the scipy kernel."
        ) from error
    return "cc3d"


def label_block(mask: Mask, *, connectivity: int, kernel: Kernel = "scipy") -> tuple[LocalIds, int]:
    """Label the connected components of one block.

    Parameters
    ----------
    mask
        Shape (z, y, x).
    connectivity
        6, 18 or 26.
    kernel
        What does it. All give the same components; their order may differ.

    Returns
    -------
    labels of the mask's shape, 0 outside, ids from 1; and how many there are
    """
    reach = reach_of(connectivity)
    if not mask.any():
        return np.zeros(mask.shape, np.uint32), 0
    kernel = chosen_kernel(kernel)
    if kernel == "cc3d":
        import cc3d

        connected_components: Any = cc3d.connected_components
        labels, count = connected_components(
            np.ascontiguousarray(mask).view(np.uint8),
            connectivity=connectivity,
            return_N=True,
            out_dtype=np.uint32,
        )
        return labels, int(count)

    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, reach)
    if kernel == "dask-image":
        import dask.array
        import dask.base
        from dask_image import ndmeasure

        # One chunk: with many, dask-image recomputes every chunk for each of its faces.
        from_array: Any = dask.array.from_array
        compute: Any = dask.base.compute
        lazy, lazy_count = ndmeasure.label(from_array(mask, chunks=-1), structure=structure)
        labels, count = compute(lazy, lazy_count, scheduler="synchronous")
        return labels.astype(np.uint32, copy=False), int(count)
    labels = np.empty(mask.shape, np.uint32)
    count = ndimage.label(mask, structure=structure, output=labels)
    return labels, int(count)


def measure_pieces(labels: LocalIds, count: int, *, box: Box, shape: Shape3) -> Pieces:
    """Measure the provisional components of a block.

    Parameters
    ----------
    labels
        Local ids, shape (z, y, x) of the block.
    count
        How many ids there are.
    box
        Where the block lies in the volume.
    shape
        Of the volume.
    """
    rows = count + 1
    voxels = np.zeros(rows, np.int64)
    first = np.full(rows, np.iinfo(np.int64).max)
    lower = np.full((3, rows), np.iinfo(np.int64).max)
    upper = np.zeros((3, rows), np.int64)
    sums = np.zeros((3, rows), np.int64)
    planes = max(1, VOXELS_AT_ONCE // max(1, box[1].size * box[2].size))
    for start in range(0, labels.shape[0], planes):
        part = labels[start : start + planes]
        # Looking for true in booleans is much faster than for numbers that are not 0.
        flat = np.flatnonzero(part != 0)
        if not flat.size:
            continue
        ids = part.reshape(-1)[flat]
        line, x = np.divmod(flat, part.shape[2])
        z, y = np.divmod(line, part.shape[1])
        place = [z + (start + box[0].start), y + box[1].start, x + box[2].start]
        voxels += np.bincount(ids, minlength=rows)
        np.minimum.at(first, ids, (place[0] * shape[1] + place[1]) * shape[2] + place[2])
        for axis, index in enumerate(place):
            np.minimum.at(lower[axis], ids, index)
            np.maximum.at(upper[axis], ids, index + 1)
            # Floats hold these sums exactly: at most 2**20 indices of at most 2**31 at a time.
            sums[axis] += np.bincount(ids, weights=index, minlength=rows).astype(np.int64)
    return Pieces(voxels[1:], first[1:], lower[:, 1:].T, upper[:, 1:].T, sums[:, 1:].T)


def pack_record(pieces: Pieces, labels: LocalIds) -> bytes:
    """Return the statistics and the faces of a block as the bytes of an ``.npz`` file."""
    arrays: dict[str, npt.NDArray[Any]] = dict(vars(pieces))
    for axis, side, face in faces_of(labels) if pieces.voxels.size else ():
        arrays[f"face_{axis}_{side}"] = face
    data = io.BytesIO()
    save: Any = np.savez
    save(data, **arrays)
    return data.getvalue()


def unpack_pieces(path: str) -> Pieces:
    """Read the statistics back from a block's record."""
    try:
        with np.load(path, allow_pickle=False) as record:
            return Pieces(**{name: record[name] for name in Pieces.__dataclass_fields__})
    except (OSError, KeyError, ValueError) as error:
        raise RunStoreError(
            f"The labelling's record {path} cannot be read ({error}). Delete its folder and label again."
        ) from error


def unpack_face(path: str, axis: int, side: int) -> LocalIds | None:
    """Read one face back from a block's record; None where it is empty."""
    with np.load(path, allow_pickle=False) as record:
        name = f"face_{axis}_{side}"
        if name not in record:
            return None
        face: LocalIds = record[name]
        return face
