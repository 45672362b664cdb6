"""What is remembered of one slice for the next is what sam2 would compute anew, and goes with the weights."""

from __future__ import annotations

import torch

from etsam_zarr.model_config import read_model_config
from etsam_zarr.sam.predictor import build_predictor


def test_position_embedding_is_kept_until_the_weights_change() -> None:
    config = read_model_config("seeded-256")
    predictor, other = build_predictor(config, None, seed=1), build_predictor(config, None, seed=2)
    trunk, size = predictor.image_encoder.trunk, (64, 64)
    with torch.no_grad():
        other.image_encoder.trunk.pos_embed.normal_()
    with torch.inference_mode():
        first = trunk._get_pos_embed(size)
        assert trunk._get_pos_embed(size) is first
    predictor.load_state_dict(other.state_dict())
    fresh = build_predictor(config, other.state_dict())
    with torch.inference_mode():
        again = trunk._get_pos_embed(size)
        torch.testing.assert_close(again, fresh.image_encoder.trunk._get_pos_embed(size), rtol=0, atol=0)
    assert not torch.equal(again, first)
    assert trunk._get_pos_embed(size).requires_grad


def test_that_there_is_no_prompt_is_embedded_once_until_the_weights_change() -> None:
    config = read_model_config("seeded-256")
    predictor, other = build_predictor(config, None, seed=1), build_predictor(config, None, seed=2)
    encoder = predictor.sam_prompt_encoder
    nothing = torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)
    somewhere = torch.full((1, 1, 2), 9.0), torch.ones(1, 1, dtype=torch.int32)
    with torch.inference_mode():
        point, places = encoder._embed_points(*nothing, pad=True), encoder.get_dense_pe()
        assert encoder._embed_points(*nothing, pad=True) is point
        assert encoder.get_dense_pe() is places
        prompted = encoder._embed_points(*somewhere, pad=True)
        assert not torch.equal(prompted, point)
        moved = encoder._embed_points(somewhere[0] + 50, somewhere[1], pad=True)
        assert not torch.equal(moved, prompted), "what depends on the place is not kept"
    predictor.load_state_dict(other.state_dict())
    with torch.inference_mode():
        again, new_places = encoder._embed_points(*nothing, pad=True), encoder.get_dense_pe()
        expected = other.sam_prompt_encoder
        torch.testing.assert_close(again, expected._embed_points(*nothing, pad=True), rtol=0, atol=0)
        torch.testing.assert_close(new_places, expected.get_dense_pe(), rtol=0, atol=0)
    assert not torch.equal(again, point)
    assert not torch.equal(new_places, places)
    assert encoder._embed_points(*nothing, pad=True).requires_grad
