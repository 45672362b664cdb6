"""Runs a model over training volumes: to score it, and to give stage 2 what stage 1 finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.config import PromptMethod
from etsam_zarr.fuse import LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.prompts import fixed_prompt, prompted_slices
from etsam_zarr.sam.frames import StreamedFrames
from etsam_zarr.sam.predictor import build_predictor
from etsam_zarr.sam.propagation import Propagation, SliceOutput
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.settings import TrainSettings

_SLAB = 16


@dataclass(frozen=True)
class Score:
    """How well logits above a threshold agree with the truth, over whole volumes."""

    dice: float
    precision: float
    recall: float


def evaluate(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    volumes: Sequence[TrainingVolume],
    settings: TrainSettings,
    *,
    stage: int,
    device: torch.device | str = "cpu",
    threshold: float = 0.0,
) -> Score:
    """Walk whole volumes as a run does and compare with their truth.

    Prompted slices do not count: a run shows the prompt there, not a prediction.

    Returns
    -------
    Score
        The mean over the volumes.
    """
    predictor = build_predictor(config, weights, device=device, origin="the model in training")
    scores = []
    for volume in volumes:
        both = predicted = true = 0

        def count(output: SliceOutput, volume: TrainingVolume = volume) -> None:
            nonlocal both, predicted, true
            mask = output.full.numpy() > threshold
            (truth,) = volume.planes(Span(output.z, output.z + 1))[1]
            both += int(np.count_nonzero(mask & truth))
            predicted += int(np.count_nonzero(mask))
            true += int(np.count_nonzero(truth))

        _walk(predictor, config, volume, settings, stage=stage, on_slice=count)
        scores.append((2 * both / max(predicted + true, 1), both / max(predicted, 1), both / max(true, 1)))
    dice, precision, recall = (float(v) for v in np.mean(scores, axis=0))
    return Score(dice, precision, recall)


def compute_stage1(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    volume: TrainingVolume,
    settings: TrainSettings,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Path, LogitBounds]:
    """Store stage 1's native logits of a volume, and their bounds at full resolution; done once.

    Parameters
    ----------
    folder
        Where they go; the name is made from the volume's content and the weights, so that another stage 1 does not
        find the output of the one before it.

    Returns
    -------
    pathlib.Path, LogitBounds
        A Zarr array (z, native, native) of float16, and the bounds.
    """
    path = folder / f"{volume.digest[:16]}-{_digest(weights)[:16]}.zarr"
    record = path / "bounds.json"
    if record.is_file():
        return path, LogitBounds(**json.loads(record.read_text()))
    predictor = build_predictor(config, weights, device=device, origin="stage 1's model")
    native = config.native_size
    bounds = LogitBounds()
    with disk_errors("storing stage 1's output for stage 2", path):
        folder.mkdir(parents=True, exist_ok=True)
        logits = zarr.create_array(
            path,
            shape=(volume.shape[0], native, native),
            chunks=(1, native, native),
            dtype="float16",
            overwrite=True,
        )

        def keep(output: SliceOutput) -> None:
            nonlocal bounds
            logits[output.z] = output.native.numpy().clip(-100, 100).astype(np.float16)
            bounds = bounds.including(output.full.numpy())

        _walk(predictor, config, volume, settings, stage=1, on_slice=keep, prompted_too=True)
    write_atomically(record, json.dumps({"minimum": bounds.minimum, "maximum": bounds.maximum}).encode())
    return path, bounds


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _walk(
    predictor: Any,  # noqa: ANN401 - sam2 has no type information
    config: ModelConfig,
    volume: TrainingVolume,
    settings: TrainSettings,
    *,
    stage: int,
    on_slice: Any,  # noqa: ANN401
    prompted_too: bool = False,
) -> None:
    depth, height, width = volume.shape
    method: PromptMethod = "grid_zero" if stage == 1 else "stage1_partial"
    frames = StreamedFrames(volume.input_planes, depth=depth, image_size=config.image_size, slab=_SLAB)
    walk = Propagation(predictor, frames, height=height, width=width)
    prompted = prompted_slices(method, depth, settings.grid_interval)
    for z in prompted:
        if method == "stage1_partial":
            walk.prompt(z, volume.stage1_logits(Span(z, z + 1))[0] > 0)
        else:
            walk.prompt(z, fixed_prompt(method, height, width, settings.grid_interval))

    def hand_on(output: SliceOutput) -> None:
        if prompted_too or output.z not in prompted:
            on_slice(output)

    walk.walk(Span(0, depth), hand_on)
