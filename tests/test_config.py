"""Settings, profiles, and which of several sources of a setting counts."""

from __future__ import annotations

from typing import Any

import pytest

from etsam_zarr.config import PROFILES, Settings, resolve_settings
from etsam_zarr.errors import SettingsError


def test_profiles_are_those_of_the_two_published_versions() -> None:
    # The table in docs/design.md; a change here changes results of everybody's runs.
    common = {
        "normalize_method": "min_max_positive_values",
        "stage1_prompt": "grid_zero",
        "grid_interval": 50,
        "prompted_slices": "etsam",
        "tiling": "auto",
        "overlap": 0.125,
    }
    v1 = Settings(
        **common, stage2_prompt="stage1_partial", stage1_logit_threshold=0.0, logit_threshold=-0.5, sever_bridges=False
    )
    v2 = Settings(
        **common, stage2_prompt="zero", stage1_logit_threshold=-0.25, logit_threshold=-0.25, sever_bridges=True
    )
    assert {"etsam-v1": v1, "etsam-v2": v2} == PROFILES
    assert resolve_settings() == v1


def test_flags_count_before_the_profile_before_the_model_before_etsam_v1() -> None:
    own = Settings(normalize_method="percentile", logit_threshold=0.25, stage2_prompt="zero")
    assert resolve_settings(model_settings=own) == own
    assert resolve_settings("etsam-v2", model_settings=own) == PROFILES["etsam-v2"]
    combined = resolve_settings("etsam-v2", model_settings=own, logit_threshold=0.0, grid_interval=None)
    assert combined.logit_threshold == 0.0, "a flag of 0 is given, not absent"
    assert (combined.stage2_prompt, combined.grid_interval) == ("zero", 50)
    assert resolve_settings(model_settings=own, logit_threshold=-1.0).normalize_method == "percentile"


def test_etsams_own_name_of_a_prompt_is_understood() -> None:
    assert resolve_settings("etsam-v2", stage2_prompt="etsam_stage1_partial").stage2_prompt == "stage1_partial"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profile": "etsam-v9"}, "no profile 'etsam-v9'.*etsam-v1, etsam-v2"),
        ({"stage1_prompt": "stage1_partial"}, "cannot prompt stage 1 itself.*--stage1-prompt zero, grid or grid_zero"),
        ({"stage1_prompt": "etsam_stage1_partial"}, "cannot prompt stage 1 itself"),
        ({"stage2_prompt": "dots"}, "--stage2-prompt is 'dots'.*zero, grid, grid_zero, stage1_partial"),
        ({"normalize_method": "max"}, "--normalize-method is 'max'"),
        ({"prompted_slices": "both"}, "--prompted-slices is 'both'.*etsam, predict"),
        ({"tiling": "mosaic"}, "--tiling is 'mosaic'.*auto, whole, tiles, quadrants"),
        ({"overlap": -0.1}, "--overlap is -0.1.*at least 0"),
        ({"overlap": float("nan")}, "--overlap is nan"),
        ({"grid_interval": 0}, "interval is 0.*at least 1.*--grid-interval"),
    ],
)
def test_impossible_settings_are_refused_with_the_choices(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_settings(**given)


def test_stored_logits_depend_on_neither_final_threshold_nor_post_processing() -> None:
    v1 = Settings()
    changed = Settings(logit_threshold=3.0, sever_bridges=True)
    assert v1.of_logits() == changed.of_logits()
    assert v1.of_logits() != Settings(grid_interval=10).of_logits()


def test_quadrants_have_the_fine_grid_of_etsams_split_processing_unless_another_is_given() -> None:
    assert resolve_settings(tiling="quadrants").grid_interval == 10
    assert resolve_settings("etsam-v2", tiling="quadrants", grid_interval=50).grid_interval == 50
    assert resolve_settings(tiling="tiles").grid_interval == 50


def test_the_overlap_matters_only_where_tiles_overlap() -> None:
    assert Settings(tiling="tiles", overlap=0.25).of_logits() != Settings(tiling="tiles").of_logits()
    for tiling in ("whole", "quadrants"):
        one, other = Settings(tiling=tiling), Settings(tiling=tiling, overlap=0.25)  # type: ignore[arg-type]
        assert one.of_logits() == other.of_logits()


def test_the_threshold_of_stage_1_matters_only_where_its_mask_prompts_stage_2() -> None:
    assert Settings(stage1_logit_threshold=1.0).of_logits() != Settings().of_logits()
    zero = Settings(stage2_prompt="zero")
    assert Settings(stage2_prompt="zero", stage1_logit_threshold=1.0).of_logits() == zero.of_logits()
