"""Scores count voxels, and stage 2 gets what a walk of stage 1 makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_tiny as tiny
import zarr

from etsam_zarr.geometry import Span
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.sam.frames import StreamedFrames
from etsam_zarr.sam.predictor import build_predictor
from etsam_zarr.sam.propagation import Propagation
from etsam_zarr.seeded import make_sensitive
from etsam_zarr.training import predict
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.predict import compute_stage1, evaluate

Weights = dict[str, torch.Tensor]


@pytest.fixture
def volume(tmp_path: Path) -> TrainingVolume:
    return tiny.opened(tiny.write_pair(tmp_path), tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> tuple[ModelConfig, Weights]:
    """An untrained model whose logits are neither all above nor all below zero."""
    config = tiny.config(tmp_path)
    predictor = build_predictor(config, None, seed=3)
    make_sensitive(predictor)
    return config, predictor.state_dict()


def walked(config: ModelConfig, weights: Weights, volume: TrainingVolume, interval: int) -> list[Any]:
    """Walk a volume directly."""
    frames = StreamedFrames(volume.input_planes, depth=10, image_size=64, slab=3)
    walk = Propagation(build_predictor(config, weights), frames, height=64, width=64)
    walk.prompt(0, fixed_prompt("grid_zero", 64, 64, interval))
    outputs: list[Any] = []
    walk.walk(Span(0, 10), outputs.append)
    return outputs


def test_scores_count_all_voxels_but_those_of_prompted_slices(
    model: tuple[ModelConfig, Weights], volume: TrainingVolume
) -> None:
    settings = tiny.settings()
    outputs = walked(*model, volume, settings.grid_interval)
    found = np.stack([output.full.numpy() for output in outputs])[1:] > 0
    truth = np.stack(volume.planes(Span(1, 10))[1])
    assert 0.02 < found.mean() < 0.98
    score = evaluate(*model, [volume], settings, stage=1)
    assert score.dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert score.precision == pytest.approx((found & truth).sum() / found.sum())
    assert score.recall == pytest.approx((found & truth).sum() / truth.sum())


def test_stage_1_is_stored_once_as_it_was_walked(
    model: tuple[ModelConfig, Weights], volume: TrainingVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings()
    path, bounds = compute_stage1(*model, volume, settings, tmp_path / "stage1")
    outputs = walked(*model, volume, settings.grid_interval)
    expected = np.stack([output.native.numpy() for output in outputs])
    stored: Any = zarr.open_array(path, mode="r")[:]
    assert np.allclose(stored, expected, rtol=1e-3, atol=1e-3)
    full = np.stack([output.full.numpy() for output in outputs]).clip(-5, 5)
    assert (bounds.minimum, bounds.maximum) == (full.min(), full.max())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(predict, "build_predictor", refuse)
    assert compute_stage1(*model, volume, settings, tmp_path / "stage1") == (path, bounds)
    config, weights = model
    others = {name: value + 1 for name, value in weights.items()}
    with pytest.raises(AssertionError, match="computed again"):
        compute_stage1(config, others, volume, settings, tmp_path / "stage1")
