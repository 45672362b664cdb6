"""What the model is given for one stage of one tile: its input slices, and its prompts.

Made from the volume, and for stage 2 from what stage 1 has stored, in whatever process computes the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from etsam_zarr.config import Settings
from etsam_zarr.frames import ReadPlanes
from etsam_zarr.fuse import LogitBounds, fuse
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange, normalizer
from etsam_zarr.ledger import Ledger
from etsam_zarr.plan import RunPlan
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.runstore import RunStore, Stage
from etsam_zarr.scores import ScoreView
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
    limits: IntensityRange,
) -> StageInputs:  # fmt: skip
    """Make the input of a stage of a tile.

    Parameters
    ----------
    store, ledger
        For stage 2, which starts from stage 1's logits and their bounds: stage 1 must be finished, in all tiles.
    limits
        Of the intensities, over the whole volume.

    Raises
    ------
    SettingsError
        The normalisation leaves nothing of a volume with these limits.
    """
    source = _Source(volume, store, settings, limits)
    planes = source.normalized_planes if stage == 1 else source.fused_planes(bounds_of_stage1(ledger, plan))
    method, prompted = plan.stages[stage - 1].prompt, plan.stages[stage - 1].prompted
    prompt = source.stage1_prompt if method == "stage1_partial" else source.fixed_prompt(method)
    _, height, width = store.shape
    return StageInputs(height, width, planes, prompted, prompt)


def bounds_of_stage1(ledger: Ledger, plan: RunPlan) -> LogitBounds:
    """Return the bounds of stage 1's logits over the whole volume; stage 1 must be finished."""
    bounds = LogitBounds()
    for tile in plan.tiles:
        for slab in ledger.slabs(1, tile.index):
            bounds = bounds.union(LogitBounds(slab.minimum, slab.maximum))
    return bounds


class _Source:
    """Volume and stage 1's scores, and what is made of them slice by slice."""

    def __init__(self, volume: Volume, store: RunStore, settings: Settings, limits: IntensityRange) -> None:
        self._volume, self._store, self._settings = volume, store, settings
        self._normalize = normalizer(settings.normalize_method, limits)

    def normalized_planes(self, span: Span) -> Iterable[Plane]:
        return (self._normalize(plane) for plane in self._volume.read(span))

    def fused_planes(self, bounds: LogitBounds) -> ReadPlanes:
        scores = self._stage1_scores()

        def planes(span: Span) -> Iterator[Plane]:
            for plane, logits in zip(self.normalized_planes(span), scores.planes(span), strict=True):
                yield fuse(plane, logits, bounds)

        return planes

    def fixed_prompt(self, method: Any) -> Callable[[int], Mask]:  # noqa: ANN401 - a PromptMethod, planned as text
        _, height, width = self._store.shape
        mask = fixed_prompt(method, height, width, self._settings.grid_interval)
        return lambda z: mask

    def stage1_prompt(self, z: int) -> Mask:
        """Stage 1's mask of a slice, as ETSAM made it."""
        scores = self._stage1_scores().read(Span(z, z + 1))[0]
        mask: Mask = scores > self._settings.stage1_logit_threshold
        return mask

    def _stage1_scores(self) -> ScoreView:
        return ScoreView(self._store.stage(1), self._store.shape)
