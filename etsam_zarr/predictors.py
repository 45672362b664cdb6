"""The models that this process has built: each once, whatever number of blocks it computes."""

from __future__ import annotations

from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.sam.predictor import Predictor
from etsam_zarr.stage_arrays import Stage


class Predictors:
    """Builds a predictor when it is first asked for, and keeps it with the weights last asked for.

    One model on one device is kept at a time: a process computes one block at a time, and going from stage 1 to
    stage 2 only loads other weights.
    """

    def __init__(self) -> None:
        self._predictor: Predictor | None = None
        self._built: object = None
        self._loaded: object = None

    def get(self, model: ModelSpec, stage: Stage, device: str) -> Predictor:
        """Return the predictor with the weights of a stage.

        Raises
        ------
        ModelError
            The model cannot be built, or its weights cannot be read or do not belong to it.
        """
        built = (model.config.digest, device)
        if self._predictor is None or built != self._built:
            self._predictor = self._loaded = None  # before the next one takes its memory
            self._predictor, self._built = model.build(device), built
        loaded = (stage, _identity(model, stage))
        if loaded != self._loaded:
            self._loaded = None  # what a failure leaves is of neither stage
            model.load(self._predictor, stage)
            self._loaded = loaded
        return self._predictor


def _identity(model: ModelSpec, stage: Stage) -> object:
    """Return what tells a stage's weights from others; the file's facts stand for its content."""
    if model.checkpoints is None:
        return model.config.name
    path = model.checkpoints[stage - 1]
    facts = path.stat() if path.exists() else None
    return path, facts and (facts.st_mtime_ns, facts.st_size)


OF_PROCESS = Predictors()
"""What blocks use that are computed in a process of their own."""
