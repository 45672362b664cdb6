"""Recipes are read, changed and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from etsam_zarr.errors import InputNotFoundError, SettingsError
from etsam_zarr.training.settings import RECIPES, load_recipe


def test_built_in_recipes() -> None:
    etsam = load_recipe("etsam").stages[1]
    assert (etsam.clip_slices, etsam.learning_rate, etsam.vision_learning_rate) == (22, 5e-6, 3e-6)
    assert (etsam.focal_weight, etsam.dice_weight, etsam.iou_weight, etsam.object_score_weight) == (20, 1, 1, 1)
    assert etsam.model == "sam2.1_hiera_b+"
    assert load_recipe("inference").stages[2].recipe == "inference"


def test_a_file_changes_both_stages_and_one(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "settings: {epochs: 3, augmentation: {zoom: [0.5, 2.0]}}\n"
        "stage2: {epochs: 2}\n"
        "phantoms:\n  stage1: {count: 4, seed: 1, shape: [8, 32, 32]}\n  validation: {count: 1, seed: 2}\n"
    )
    recipe = load_recipe(str(path))
    assert [recipe.stages[stage].epochs for stage in (1, 2)] == [3, 2]
    assert recipe.stages[1].augmentation.zoom == (0.5, 2.0)
    assert recipe.stages[1].augmentation.flip_y == RECIPES["inference"].augmentation.flip_y
    assert recipe.phantoms[1].shape == (8, 32, 32)
    assert 2 not in recipe.phantoms
    assert recipe.validation is not None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("settings: {epoch: 3}", "epoch, which TrainSettings does not have"),
        ("settings: {augmentation: {turn: 3}}", "turn, which Augmentation"),
        ("phantoms: {stage1: {count: 1, seed: 1, snrs: 2}}", "snrs, which PhantomSet"),
        ("stage3: {}", "entry stage3"),
        ("base: other", "base: other"),
        ("- a list", "is empty|YAML"),
        ("{", "cannot be read as YAML"),
        ("settings: {epochs: 0}", "epochs is 0"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=says):
        load_recipe(str(path))


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(InputNotFoundError, match="etsam, inference"):
        load_recipe("none-such")


@pytest.mark.parametrize(
    "change",
    [{"clip_slices": 1}, {"learning_rate": 0.0}, {"precision": "16"}, {"recipe": "other"}, {"accumulate": 0}],
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        dataclasses.replace(RECIPES["inference"], **change)  # type: ignore[arg-type]
