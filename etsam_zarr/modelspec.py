"""Which model a run uses: its configuration, and where the weights of the two stages come from."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etsam_zarr.bundled import BUNDLED_SETTINGS, bundled_paths, find_bundled_weights
from etsam_zarr.config import Settings
from etsam_zarr.errors import ModelError
from etsam_zarr.model_config import BUNDLED_MODEL, ETSAM_MODEL, SEEDED_MODEL, ModelConfig, read_model_config
from etsam_zarr.weights import find_etsam_weights

if TYPE_CHECKING:
    import torch

    from etsam_zarr.sam.predictor import Predictor
    from etsam_zarr.stage_arrays import Stage

HOW_TO_GET_WEIGHTS = (
    "Get ETSAM's with 'etsam-zarr weights fetch' (2 x 320 MB from https://doi.org/10.5281/zenodo.17571925), give files "
    f"with --stage1-checkpoint and --stage2-checkpoint, or use the small bundled model: --model {BUNDLED_MODEL}"
)
_SEEDS: dict[Stage, int] = {1: 1, 2: 2}


@dataclass(frozen=True)
class ModelSpec:
    """A model for both stages; nothing is loaded yet."""

    config: ModelConfig
    checkpoints: tuple[Path, Path] | None
    """Weights of stage 1 and 2; None draws them from fixed seeds: an untrained model."""
    settings: Settings | None = None
    """Settings that belong to the model, where it brings some."""
    stands_in: bool = False
    """Whether it was chosen because ETSAM's weights, which nobody asked to replace, are not on this machine."""

    @property
    def bundled(self) -> bool:
        """Whether the weights are those that come with the package: a demonstration."""
        return self.checkpoints == bundled_paths()

    @property
    def untrained(self) -> bool:
        """Whether the weights are drawn from a seed, so that the result means nothing."""
        return self.checkpoints is None

    def digest(self, stage: Stage) -> str:
        """Return a text that tells the weights of a stage from all others."""
        from etsam_zarr.checkpoint import file_digest

        return f"seed {_SEEDS[stage]}" if self.checkpoints is None else file_digest(self.checkpoints[stage - 1])

    def weight_bytes(self) -> int:
        """Return what one stage's weights take in memory as float32.

        Raises
        ------
        ModelError
            A checkpoint cannot be read.
        """
        from etsam_zarr.checkpoint import read_checkpoint

        if self.checkpoints is None:
            states = [_seeded_weights(_SEEDS[1])]
        else:
            states = [read_checkpoint(path, glance=True) for path in self.checkpoints]
        return max(sum(4 * int(weight.numel()) for weight in state.values()) for state in states)

    def build(self, device: torch.device | str) -> Predictor:
        """Build the predictor, with the initial weights of stage 1's seed."""
        from etsam_zarr.sam.predictor import build_predictor

        return build_predictor(self.config, None, device=device, seed=_SEEDS[1])

    def load(self, predictor: Predictor, stage: Stage) -> None:
        """Put the weights of a stage into the predictor.

        Raises
        ------
        ModelError
            The checkpoint cannot be read or does not belong to the model.
        """
        from etsam_zarr.checkpoint import load_weights

        weights, origin = self._weights(stage)
        load_weights(predictor, weights, origin=origin)

    def check(self, predictor: Predictor, stage: Stage) -> None:
        """Look whether the weights of a stage fit the predictor, and leave it as it is.

        Raises
        ------
        ModelError
            The checkpoint cannot be read or does not belong to the model.
        """
        from etsam_zarr.checkpoint import check_weights

        weights, origin = self._weights(stage, glance=True)
        check_weights(predictor, weights, origin=origin)

    def _weights(self, stage: Stage, *, glance: bool = False) -> tuple[dict[str, torch.Tensor], str]:
        """Return the weights of a stage, and where they come from."""
        from etsam_zarr.checkpoint import read_checkpoint

        if self.checkpoints is None:
            return _seeded_weights(_SEEDS[stage]), SEEDED_MODEL
        path = self.checkpoints[stage - 1]
        return read_checkpoint(path, glance=glance), str(path)


def choose_model(
    model: str | None = None, *, stage1_checkpoint: Path | None = None, stage2_checkpoint: Path | None = None
) -> ModelSpec:
    """Decide on a model from what the user gave.

    1. Checkpoints that are given are used; where one is, the other stage takes the model's own weights.
    2. A model that is named has its own weights: ETSAM's fetched ones, the bundled ones, or those of a seed.
    3. Where nothing is given, ETSAM's weights are used if they are on this machine, else the bundled model.

    Raises
    ------
    ModelError
        There is no such model, or it has no weights of its own for a stage that was given none.
    """
    config = read_model_config(model or ETSAM_MODEL)
    settings = BUNDLED_SETTINGS if model == BUNDLED_MODEL else None
    if stage1_checkpoint is not None and stage2_checkpoint is not None:
        return ModelSpec(config, (stage1_checkpoint, stage2_checkpoint), settings)
    one_given = (stage1_checkpoint is None) != (stage2_checkpoint is None)
    if model == SEEDED_MODEL and not one_given:
        return ModelSpec(config, None)
    own: tuple[Path, Path] | None = None
    if model in (None, ETSAM_MODEL):
        own = find_etsam_weights()
    elif model == BUNDLED_MODEL:
        own = find_bundled_weights()
    if own is not None:
        return ModelSpec(config, (stage1_checkpoint or own[0], stage2_checkpoint or own[1]), settings)
    if one_given:
        missing = "--stage2-checkpoint" if stage2_checkpoint is None else "--stage1-checkpoint"
        raise ModelError(
            f"Only one checkpoint is given, and there are no weights for the other stage of the model {config.name}. "
            f"Give {missing} as well."
        )
    if model is None:
        bundled = read_model_config(BUNDLED_MODEL)
        return ModelSpec(bundled, find_bundled_weights(), BUNDLED_SETTINGS, stands_in=True)
    raise ModelError(f"There are no weights for the model {config.name}. {HOW_TO_GET_WEIGHTS}.")


@functools.cache
def _seeded_weights(seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights of the untrained model; kept, since one run asks for them several times."""
    from etsam_zarr.sam.predictor import build_predictor
    from etsam_zarr.seeded import make_sensitive

    predictor = build_predictor(read_model_config(SEEDED_MODEL), None, seed=seed)
    make_sensitive(predictor)
    weights: dict[str, torch.Tensor] = predictor.state_dict()
    return weights


def fingerprint_of(spec: ModelSpec) -> dict[str, str]:
    """Return what identifies a model in the fingerprint of a run."""
    return {
        "model": hashlib.sha256(spec.config.digest.encode()).hexdigest()[:16],
        "stage1_weights": spec.digest(1),
        "stage2_weights": spec.digest(2),
    }
