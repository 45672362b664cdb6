"""What a viewer shows of a run: tomogram, scores and labels, lazily, each with its place in angstrom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from etsam_zarr.errors import InputError, RunStoreError
from etsam_zarr.events import Notice, OnEvent, ignore
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.ledger import Ledger
from etsam_zarr.maskpass import MEMBRANES
from etsam_zarr.masks import BoxSource, VolumeBox
from etsam_zarr.overview import overview_factor
from etsam_zarr.results import COMPONENTS, PROCESSED, Source
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores
from etsam_zarr.sources import open_volume
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH
from etsam_zarr.status import stage_status
from etsam_zarr.volume import Array, Volume

Vector3 = tuple[float, float, float]
Kind = Literal["image", "labels"]

_CONTRAST_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class ViewLayer:
    """One layer of a viewer."""

    name: str
    kind: Kind
    data: tuple[Any, ...]
    """Dask arrays (z, y, x), finest level first; nothing of them is read yet."""
    scale: Vector3
    """Edge lengths of a voxel of the finest level, z, y, x: angstrom, or voxels where the size is not known."""
    translate: Vector3
    """Where the centre of its first voxel lies, in the same unit."""
    visible: bool = True
    contrast: tuple[float, float] | None = None
    """Values shown as black and white, of an image."""


def view_layers(store: RunStore, *, on_event: OnEvent = ignore) -> list[ViewLayer]:
    """List the layers of a run, bottom first; of an unfinished run, those that are there.

    The tomogram is the file that the run was made from if it is still there, with the run's reduced copy as its
    coarser levels, else that copy. Scores are stage 2's native logits, stretched over the slices: far fewer values than
    at full resolution, and the same picture. Of the labels the one made last is visible. A processed mask that was made
    from an earlier mask is left out.

    Parameters
    ----------
    store
        The run; it must stay where it is while the layers are used.
    on_event
        Told what is left out and why.

    Raises
    ------
    RunStoreError
        There is nothing to be shown yet, or an array's metadata are damaged.
    """
    labels = _labels(store, on_event)
    layers = [*_tomogram(store, on_event), *_scores(store), *labels]
    if not layers:
        raise RunStoreError(f"The run {store.path} holds nothing to be shown yet. Give its run command again.")
    return layers


def current_labels(store: RunStore) -> list[str]:
    """Return the labels that viewers show, the one made last at the end.

    ``membranes_processed`` is among them if it was made from the present mask.
    """
    made = [MEMBRANES] if Ledger(store.path / "ledger").finished("mask") is not None else []
    if made and Source(store.path, store).latest_label() == PROCESSED:
        made.append(PROCESSED)
    return made + [COMPONENTS] * (store.path / "labels" / COMPONENTS).is_dir()


def spacing(store: RunStore) -> tuple[Vector3, Vector3]:
    """Return voxel size and origin of the volume in angstrom, z, y, x; 1 and 0 where the size is not known."""
    return (store.voxel_size, store.origin) if store.voxel_size else ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def contrast_of(store: RunStore) -> tuple[float, float] | None:
    """Return the grey values to be shown as black and white, from the coarsest level of the overview.

    None if there is no overview, or nothing in it differs.
    """
    levels = _levels(store.path)
    values = np.asarray(levels[-1]).ravel() if levels else np.zeros(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = (float(value) for value in np.percentile(values, _CONTRAST_PERCENTILES))
    return (low, high) if low < high else None


def _tomogram(store: RunStore, on_event: OnEvent) -> list[ViewLayer]:
    overview = [_lazy(array, array.chunks) for array in _levels(store.path)]
    contrast = contrast_of(store)
    source = _source(store)
    if source is not None:
        size, origin = spacing(store)
        finest = _lazy(_Boxes(VolumeBox(source), source.info.dtype), _shown_at_once(source))
        coarser = [level for level in overview if level.shape[2] < store.shape[2]]
        return [ViewLayer("tomogram", "image", (finest, *coarser), size, origin, contrast=contrast)]
    if not overview:
        return []
    on_event(
        Notice(f"The tomogram {store.record['source']} is not there any more, or changed; its reduced copy is shown.")
    )
    size, origin = _overview_place(store)
    return [ViewLayer("tomogram", "image", tuple(overview), size, origin, contrast=contrast)]


def _scores(store: RunStore) -> list[ViewLayer]:
    if not stage_status(store, 2).slices:
        return []
    scores = final_scores(store)
    size, origin = spacing(store)
    if scores.tiled:
        # Blended slice by slice as they are shown: the model made nothing smaller that covers a slice.
        data = _lazy(_Boxes(scores, np.dtype(np.float32)), (1, *scores.shape[1:]))
        return [ViewLayer("scores", "image", (data,), size, origin, visible=False, contrast=(-10.0, 10.0))]
    native = scores.native()
    stretch = [whole / stored for whole, stored in zip(store.shape, native.shape, strict=True)]
    z, y, x = (step * factor for step, factor in zip(size, stretch, strict=True))
    # The bilinear upsampling aligns the edges of the images, not the centres of their corner pixels.
    z0, y0, x0 = (start + (factor - 1) / 2 * step for start, step, factor in zip(origin, size, stretch, strict=True))
    _, height, width = native.shape
    data = _lazy(_Boxes(native, np.dtype(np.float32)), (LOGIT_CHUNK_DEPTH, height, width))
    return [ViewLayer("scores", "image", (data,), (z, y, x), (z0, y0, x0), visible=False, contrast=(-10.0, 10.0))]


def _labels(store: RunStore, on_event: OnEvent) -> list[ViewLayer]:
    names = current_labels(store)
    if PROCESSED not in names and (store.path / "labels" / PROCESSED).is_dir():
        on_event(Notice(f"The label {PROCESSED} was made from an earlier mask and is left out."))
    size, origin = spacing(store)
    layers = []
    for name in names:
        levels = tuple(_lazy(array, array.chunks) for array in _levels(store.path / "labels" / name))
        if not levels:
            raise RunStoreError(
                f"The label {name!r} of the run {store.path} is damaged: it has no arrays. Make it again."
            )
        layers.append(ViewLayer(name, "labels", levels, size, origin, visible=name == names[-1]))
    return layers


def _source(store: RunStore) -> Volume | None:
    """Open the tomogram that the run was made from; None if it is gone, cannot be read or is another one."""
    known = store.record["fingerprint"]
    given = Path(store.record["source"])
    # A relative path was relative to another folder; usually the run lies beside its tomogram.
    for path in dict.fromkeys((given, store.path.parent / given.name)):
        try:
            volume = open_volume(path, level=known.get("level", 0))
        except InputError:
            continue
        if volume.info.shape == store.shape and volume.digest() == known.get("volume"):
            return volume
        volume.close()
    return None


def _overview_place(store: RunStore) -> tuple[Vector3, Vector3]:
    if store.voxel_size is None:
        factor = float(overview_factor(store.shape))
        start = (factor - 1) / 2
        return (factor, factor, factor), (start, start, start)
    with open_volume(store.path) as volume:
        return volume.info.voxel_size or (1.0, 1.0, 1.0), volume.info.origin


def _levels(image: Path) -> list[zarr.Array[Any]]:
    """Return the arrays of an OME-Zarr image, finest first; none where there is no image."""
    places = (image / str(level) for level in range(32))
    found = []
    for place in places:
        if not place.is_dir():
            break
        try:
            found.append(zarr.open_array(place, mode="r"))
        except (OSError, ValueError, KeyError) as error:
            raise RunStoreError(
                f"The run store is damaged: the metadata of {place} cannot be read ({error}). Run again with "
                "--overwrite."
            ) from error
    return found


class _Boxes:
    """What is read box by box, as an array that dask can take pieces of."""

    ndim = 3

    def __init__(self, source: BoxSource, dtype: np.dtype[Any]) -> None:
        self._source = source
        self.shape = source.shape
        self.dtype = dtype

    def __getitem__(self, box: tuple[slice, slice, slice]) -> Array:
        z, y, x = (Span(*s.indices(size)[:2]) for s, size in zip(box, self.shape, strict=True))
        return self._source.read(z, y, x)


def _shown_at_once(volume: Volume) -> Shape3:
    """Return chunks of whole slices: what a viewer shows of a file without chunks, and as deep as the chunks are."""
    _, height, width = volume.info.shape
    return (volume.info.chunks[0], height, width) if volume.info.format == "mrc" else volume.info.chunks


def _lazy(array: object, chunks: Sequence[int]) -> Any:  # noqa: ANN401 - dask gives no types
    import dask.array

    from_array: Any = dask.array.from_array
    # With a name of its own making dask would first hash the array, which may be as large as the tomogram.
    return from_array(array, chunks=tuple(chunks), name=False)
