"""ETSAM's clean-up of a mask: drop blobs that span few slices, then cut rungs between parallel membranes.

Profile ``etsam-v1`` does the first step only, ``etsam-v2`` both. What they are is ETSAM's
(https://github.com/jianlin-cheng/ETSAM, ``postprocess.py``); here both stream over the stored mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from etsam_zarr.components.bridges import BridgeSettings, sever_bridges
from etsam_zarr.components.find import LabelSettings, find_components
from etsam_zarr.errors import SettingsError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.masks import BinaryMask
from etsam_zarr.ome.pyramid import write_unit

DEFAULT_MIN_SLICES = 10


@dataclass(frozen=True)
class PostprocessSettings:
    """What to clean away."""

    min_slices: int = DEFAULT_MIN_SLICES
    """Least number of slices that a 26-connected component spans, else it goes; 1 keeps all."""
    bridges: BridgeSettings | None = None
    """Lengths of what is cut; None cuts nothing."""

    def __post_init__(self) -> None:
        if self.min_slices < 1:
            raise SettingsError(f"--min-slices is {self.min_slices}; it takes 1 (keep all) or more slices.")


@dataclass(frozen=True)
class PostprocessReport:
    """What a clean-up did."""

    components: int
    """Components of the mask; 0 where step (a) was not asked for."""
    components_dropped: int
    """Those that span too few slices."""
    voxels_dropped: int
    """Voxels of these."""
    voxels_severed: int
    """Voxels of rungs."""


def postprocess_mask(
    mask: BinaryMask,
    destination: zarr.Array[Any],
    scratch: Path,
    *,
    source_id: str,
    settings: PostprocessSettings | None = None,
    labelling: LabelSettings | None = None,
    on_event: OnEvent = ignore,
) -> PostprocessReport:
    """Clean a mask and write the result; the mask itself is only read.

    (a) Drop components that span fewer than ``min_slices`` slices. (b) Cut rungs in what is left.

    Parameters
    ----------
    mask
        Shape (z, y, x).
    destination
        Integer array of the mask's shape, not the mask itself; receives 0 and 1.
    scratch
        Folder for intermediate results; gone at the end. After a kill, step (a) goes on where it was.
    source_id
        Anything that tells this mask's content from another's.
    settings
        What to clean away.
    labelling
        Block size and workers; its connectivity is not used, it is always 26.
    on_event
        Listener for progress.

    Raises
    ------
    InputError
        The mask is not binary or cannot be read.
    SettingsError
        A setting is out of range, or shapes or chunks do not fit.
    OutputError
        The destination cannot be written.
    """
    settings = settings or PostprocessSettings()
    labelling = labelling or LabelSettings()
    if tuple(destination.shape) != mask.shape:
        raise SettingsError(f"The destination has shape {tuple(destination.shape)}, the mask {mask.shape}.")
    components = components_dropped = voxels_dropped = voxels_severed = 0
    cleaned = mask
    if settings.min_slices > 1 or settings.bridges is None:
        found = find_components(
            mask,
            scratch,
            source_id=source_id,
            chunks=write_unit(destination),
            settings=LabelSettings(block=labelling.block, workers=labelling.workers, kernel=labelling.kernel),
            on_event=on_event,
        )
        keep = found.table.passing(min_slices=settings.min_slices)
        found.write(destination, keep, as_mask=True, on_event=on_event)
        found.discard()
        components, components_dropped = len(keep), int((~keep).sum())
        voxels_dropped = int(found.table.voxels[~keep].sum())
        cleaned = BinaryMask(destination)
    if settings.bridges is not None:
        voxels_severed = sever_bridges(
            cleaned, destination, settings=settings.bridges, workers=labelling.workers, on_event=on_event
        )
    return PostprocessReport(components, components_dropped, voxels_dropped, voxels_severed)
