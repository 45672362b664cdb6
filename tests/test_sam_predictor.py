"""Building the predictor: from the seed alone, and what cannot be built is named.

That sam2 is left as it was when it had been fed is shown in ``test_sam_propagation.py``.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from etsam_zarr.errors import ModelError
from etsam_zarr.model_config import read_model_config
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.sam.predictor import build_predictor


def test_building_draws_weights_from_the_seed_alone(seeded_spec: ModelSpec) -> None:
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    one = build_predictor(seeded_spec.config, None, seed=5)
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers were disturbed"
    other = build_predictor(seeded_spec.config, None, seed=5)
    third = build_predictor(seeded_spec.config, None, seed=6)
    assert not one.training
    assert torch.equal(one.no_mem_embed, other.no_mem_embed)
    assert not torch.equal(one.no_mem_embed, third.no_mem_embed)


def test_a_config_that_cannot_be_built_is_named() -> None:
    config = read_model_config("seeded-256")
    odd = dataclasses.replace(config, tree={**config.tree, "number_of_heads": 3})
    with pytest.raises(ModelError, match=r"seeded-256 cannot be built.*number_of_heads"):
        build_predictor(odd, None)
