"""What the model is given for one stage of one tile: its input slices, and its prompts.

Made from the volume, and for stage 2 from what stage 1 has stored, in whatever process computes the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.config import Settings
from etsam_zarr.fuse import LogitBounds, fuse
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange, normalizer
from etsam_zarr.ledger import Ledger
from etsam_zarr.plan import RunPlan
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.runstore import RunStore
from etsam_zarr.sam.frames import ReadPlanes
from etsam_zarr.scores import stage_scores
from etsam_zarr.stage_arrays import Stage
from etsam_zarr.tiling import Tile, padded
from etsam_zarr.volume import Volume

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class StageInputs:
    """The input of one stage of one tile."""

    height: int
    """Rows of a slice as the model is given it."""
    width: int
    """Columns of a slice as the model is given it."""
    read_planes: ReadPlanes
    """Reads a run of slices and yields the model's input for them one by one, float32, shape (height, width)."""
    prompts: tuple[int, ...]
    """The slices to prompt, in order."""
    prompt_mask: Callable[[int], Mask]
    """Makes the prompt of a slice, shape (height, width)."""


def stage_inputs(
    stage: Stage, tile: int, *, volume: Volume, store: RunStore, ledger: Ledger, settings: Settings, plan: RunPlan,
    limits: IntensityRange, assumed: LogitBounds | None = None,
) -> StageInputs:  # fmt: skip
    """Make the input of a stage of a tile.

    Parameters
    ----------
    store, ledger
        For stage 2, which starts from stage 1's logits and their bounds: stage 1 must be finished, in all tiles.
    limits
        Of the intensities, over the whole volume.
    assumed
        Bounds of stage 1's logits to take for stage 2 instead of the known ones; then of stage 1 only those slices
        must be there that are read.

    Raises
    ------
    SettingsError
        The normalisation leaves nothing of a volume with these limits.
    """
    source = _Source(plan.tiles[tile], volume, store, settings, limits)
    planes: ReadPlanes = source.normalized_planes
    if stage == 2:
        planes = source.fused_planes(assumed or bounds_of_stage1(ledger, plan, tile))
    method, prompted = plan.stages[stage - 1].prompt, plan.stages[stage - 1].prompted
    prompt = source.stage1_prompt if method == "stage1_partial" else source.fixed_prompt(method)
    return StageInputs(plan.tiles[tile].height, plan.tiles[tile].width, planes, prompted, prompt)


def bounds_of_stage1(ledger: Ledger, plan: RunPlan, tile: int) -> LogitBounds:
    """Return the bounds of stage 1's logits that stage 2 of a tile is scaled with; stage 1 must be finished.

    They are those of all tiles over the whole volume (blending, an average, cannot leave them), so that the order of
    tiles does not matter and no further pass is needed; in quadrants they are the quadrant's own, as in ETSAM.
    """
    bounds, found = LogitBounds(), (ledger.finished("stage1") or {})["bounds"]
    for other in plan.tiles[tile : tile + 1] if plan.grid.independent else plan.tiles:
        bounds = bounds.union(LogitBounds(*found[other.index]))
    return bounds


class _Source:
    """A tile of the volume and of stage 1's blended scores, and what is made of them slice by slice."""

    def __init__(
        self, tile: Tile, volume: Volume, store: RunStore, settings: Settings, limits: IntensityRange
    ) -> None:  # fmt: skip
        self._tile, self._volume, self._store, self._settings = tile, volume, store, settings
        self._normalize = normalizer(settings.normalize_method, limits)

    def normalized_planes(self, span: Span) -> Iterator[Plane]:
        return (padded(plane, self._tile) for plane in self._normalized(span))

    def fused_planes(self, bounds: LogitBounds) -> ReadPlanes:
        scores, tile = stage_scores(self._store, 1), self._tile

        def planes(span: Span) -> Iterator[Plane]:
            for plane, logits in zip(self._normalized(span), scores.planes(span, tile.y, tile.x), strict=True):
                yield padded(fuse(plane, logits, bounds), tile)

        return planes

    def fixed_prompt(self, method: Any) -> Callable[[int], Mask]:  # noqa: ANN401 - a PromptMethod, planned as text
        mask = fixed_prompt(method, self._tile.height, self._tile.width, self._settings.grid_interval)
        return lambda z: mask

    def stage1_prompt(self, z: int) -> Mask:
        """Stage 1's mask of a slice, as ETSAM made it."""
        scores = stage_scores(self._store, 1).read(Span(z, z + 1), self._tile.y, self._tile.x)[0]
        return padded(scores > self._settings.stage1_logit_threshold, self._tile)

    def _normalized(self, span: Span) -> Iterator[Plane]:
        return (self._normalize(plane) for plane in self._volume.read(span, self._tile.y, self._tile.x))
