"""A stage's scores at full resolution as an OME-Zarr image with a pyramid, made in layers of chunks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from etsam_zarr.atomic import disk_errors
from etsam_zarr.events import Advanced, Finished, OnEvent, Started
from etsam_zarr.geometry import Span, cut
from etsam_zarr.label_output import LabelOutput, OutputFacts
from etsam_zarr.maskpass import mask_chunks
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores
from etsam_zarr.stage_arrays import Stage
from etsam_zarr.volume import Array

ScoreType = Literal["uint8", "float16", "float32"]
SCORE_TYPES: tuple[ScoreType, ...] = get_args(ScoreType)


def write_score_image(
    store: RunStore, path: Path, *, dtype: ScoreType, stage: Stage, overwrite: bool, on_event: OnEvent
) -> None:
    """Fill the finest level in layers as deep as its chunks, then the coarser ones from it.

    Parameters
    ----------
    store
        The run; the stage is finished.
    path
        Folder that becomes the image.
    dtype
        ``"uint8"``: probabilities, ``sigmoid(logit) * 255`` rounded. ``"float16"`` and ``"float32"``: logits.
    stage
        Whose scores.
    overwrite
        Replace what is at ``path``, once the new image is complete.
    on_event
        Told about each layer.

    Raises
    ------
    OutputExistsError
        Something is at ``path`` and ``overwrite`` is false.
    OutputError
        The image cannot be written.
    """
    begun = time.monotonic()
    facts = OutputFacts(store.shape, store.voxel_size, store.origin, mask_chunks(store.shape), store.record["ome_zarr"])
    output = LabelOutput(path, facts, overwrite=overwrite)
    finest = output.array(np.dtype(dtype), reduction="mean")
    scores = final_scores(store, stage)
    depth, height, width = store.shape
    on_event(Started("scores", total=depth))
    for span in cut(Span(0, depth), finest.chunks[0]):
        layer = np.empty((span.size, height, width), dtype=dtype)
        for plane, logits in zip(layer, scores.planes(span), strict=True):
            plane[...] = _as_stored(logits, dtype)
        with disk_errors("writing scores", path):
            finest[span.as_slice()] = layer
        on_event(Advanced("scores", span.size))
    on_event(Finished("scores", time.monotonic() - begun))
    output.finish(is_mask=False, on_event=on_event)


def _as_stored(logits: npt.NDArray[np.float32], dtype: ScoreType) -> Array:
    if dtype == "uint8":
        return cast(Array, np.rint(expit(logits) * np.float32(255)))
    return logits
