"""ETSAM's automatic prompts."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.config import PromptMethod
from etsam_zarr.prompts import fixed_prompt, prompted_slices


@given(
    st.sampled_from(["zero", "grid", "grid_zero", "stage1_partial"]),
    st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 60),
)
def test_prompts_are_those_of_etsam(method: PromptMethod, shape: tuple[int, int, int], interval: int) -> None:
    expected = reference.prompt_masks(method, shape, interval, np.zeros(shape, dtype=np.uint8))
    assert prompted_slices(method, shape[0], interval) == tuple(expected)
    if method != "stage1_partial":
        mask = fixed_prompt(method, shape[1], shape[2], interval)
        assert mask.dtype == np.bool_
        assert all(np.array_equal(mask, other) for other in expected.values())


def test_a_grid_has_a_point_at_the_corner_and_every_interval_from_there() -> None:
    rows, columns = np.nonzero(fixed_prompt("grid", 101, 60, 50))
    assert list(zip(rows, columns, strict=True)) == [(0, 0), (0, 50), (50, 0), (50, 50), (100, 0), (100, 50)]


def test_a_prompt_made_from_stage_1_is_no_fixed_one() -> None:
    with pytest.raises(ValueError, match="stage1_partial is made from the result of stage 1"):
        fixed_prompt("stage1_partial", 4, 4, 2)
