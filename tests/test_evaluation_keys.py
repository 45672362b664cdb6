"""Keys of scores sort as the scores do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etsam_zarr.evaluation.keys import ordered_keys, value_of_key

Array = npt.NDArray[Any]


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_keys_sort_as_scores_do_and_lead_back(scores: Array) -> None:
    keys = ordered_keys(scores)
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.argsort(scores + 0, kind="stable"))
    assert [value_of_key(int(key), scores.dtype) for key in keys] == scores.tolist()
