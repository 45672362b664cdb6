"""From stored logits to the membrane mask, an OME-Zarr label with pyramid, in one streamed pass."""

from __future__ import annotations

import shutil
import time

import numpy as np
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.events import Advanced, Finished, Notice, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.ledger import Ledger
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid, register_label
from etsam_zarr.ome.pyramid import build_pyramid
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import ScoreView

MEMBRANES = "membranes"
MEMBRANE_COLOUR = (255, 191, 0, 255)

_CHUNK_EDGE = 256
_CHUNK_DEPTHS = (64, 32, 16, 8)
# A layer of the mask (one chunk deep, whole slices) is held in memory.
_LAYER_BYTES = 128 * 2**20


def mask_chunks(shape: Shape3) -> Shape3:
    """Return the chunks of a mask: deep where slices are small, so that a layer of chunks fits 128 MiB."""
    depth, height, width = shape
    deepest = next((d for d in _CHUNK_DEPTHS if d * height * width <= _LAYER_BYTES), _CHUNK_DEPTHS[-1])
    return min(deepest, depth), min(_CHUNK_EDGE, height), min(_CHUNK_EDGE, width)


def write_mask(
    store: RunStore, scores: ScoreView, ledger: Ledger, *, threshold: float, on_event: OnEvent = ignore
) -> int:
    """Write ``labels/membranes``: 1 where the logit is above ``threshold``, else 0; return the voxels set.

    A mask that is there is replaced.

    Raises
    ------
    OutputError
        The store cannot be written.
    """
    begun = time.monotonic()
    version: OmeVersion = store.record["ome_zarr"]
    ledger.reopen("mask")
    labels = store.path / "labels"
    derived = sorted(path.name for path in labels.glob("*") if path.is_dir() and path.name != MEMBRANES)
    if derived:
        on_event(Notice(f"Labels made from an earlier mask are not made again: {', '.join(derived)}.", warning=True))
    with disk_errors("replacing the mask", store.path):
        shutil.rmtree(labels / MEMBRANES, ignore_errors=True)
    root = zarr.open_group(store.path, mode="r+")
    levels = create_pyramid(
        register_label(root, MEMBRANES, version=version),
        shape=store.shape, dtype=np.uint8, voxel_size=store.voxel_size, origin=store.origin,
        chunks=mask_chunks(store.shape), version=version, name=MEMBRANES, label_colours={1: MEMBRANE_COLOUR},
    )  # fmt: skip
    depth, height, width = store.shape
    on_event(Started("mask", total=depth))
    voxels = 0
    for layer in cut(Span(0, depth), levels[0].chunks[0]):
        mask = np.empty((layer.size, height, width), dtype=np.uint8)
        for plane, logits in zip(mask, scores.planes(layer), strict=True):
            plane[...] = logits > threshold
            on_event(Advanced("mask"))
        voxels += int(np.count_nonzero(mask))
        with disk_errors("writing the mask", store.path):
            levels[0][layer.as_slice()] = mask
    build_pyramid(levels, reduce="max", on_event=ignore)
    seconds = time.monotonic() - begun
    ledger.finish("mask", {"logit_threshold": threshold, "voxels": voxels, "seconds": seconds})
    on_event(Finished("mask", seconds))
    return voxels
