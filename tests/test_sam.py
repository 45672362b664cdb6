"""The walk through a volume: bounded, undisturbed by looking back, and continued from saved state.

That its logits are those of SAM 2's own predictor is shown in ``test_equality.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import sam2.sam2_video_predictor as sam2_video
import torch
from sam_walks import HEIGHT, WIDTH, RepeatedFrames, blob, encoding_once, logits_of, prompted_walk, walked

from etsam_zarr.errors import ModelError
from etsam_zarr.geometry import Span
from etsam_zarr.model_config import read_model_config
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.sam import Propagation, SliceOutput, build_predictor

DEPTH = 12
PROMPTS = (0, 6)


@pytest.fixture(scope="module")
def predictor(seeded_predictor: Any) -> Iterator[Any]:
    with encoding_once(seeded_predictor):
        yield seeded_predictor


@pytest.fixture(scope="module")
def frames() -> RepeatedFrames:
    return RepeatedFrames(DEPTH, period=4)


@pytest.fixture(scope="module")
def undisturbed(predictor: Any, frames: RepeatedFrames) -> list[SliceOutput]:
    return walked(prompted_walk(predictor, frames, PROMPTS), Span(0, DEPTH))


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """All tensors within a walk's state, the frames apart."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, dict):
        for key, value in held.items():
            if key != "images":
                yield from _tensors(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from _tensors(value)


def _entries(held: Any) -> int:
    """How many entries all containers of a walk's state hold in all."""
    if isinstance(held, dict):
        return len(held) + sum(_entries(value) for key, value in held.items() if key != "images")
    if isinstance(held, (list, tuple, set)):
        return len(held) + sum(_entries(value) for value in held)
    return 0


def test_outputs_say_what_they_promise(undisturbed: list[SliceOutput]) -> None:
    assert [output.z for output in undisturbed] == list(range(DEPTH))
    for output in undisturbed:
        assert (output.native.shape, output.full.shape) == ((64, 64), (HEIGHT, WIDTH))
        assert output.object_pointer.shape == (128,)
        assert {output.native.dtype, output.full.dtype, output.object_pointer.dtype} == {torch.float32}


def test_nothing_grows_on_a_long_walk(predictor: Any) -> None:
    depth = 48
    walk = prompted_walk(predictor, RepeatedFrames(depth, period=4), (0,))
    sizes = {}
    for stop in range(6, depth + 1, 6):
        walk.walk(Span(stop - 6, stop), lambda output: None)
        recent = walk._outputs["non_cond_frame_outputs"]
        assert len(recent) <= 15
        assert sum(output["maskmem_features"] is not None for output in recent.values()) <= 6
        assert all(output["pred_masks"] is None for output in recent.values())
        numbers = sum(tensor.numel() for tensor in _tensors(walk._state))
        sizes[stop] = (numbers, _entries(walk._state), len(walk.recent_state()))
    # Full from the 16th slice on.
    assert len({size for stop, size in sizes.items() if stop >= 18}) == 1, sizes


def test_prompting_one_by_one_equals_prompting_all_at_once(predictor: Any, frames: RepeatedFrames) -> None:
    mine = prompted_walk(predictor, frames, PROMPTS)
    assert mine.prompted == PROMPTS

    plain = Propagation(predictor, frames, height=HEIGHT, width=WIDTH)
    with torch.inference_mode():
        for z in PROMPTS:
            predictor.add_new_mask(plain._state, frame_idx=z, obj_id=1, mask=torch.from_numpy(blob(z)))
        predictor.propagate_in_video_preflight(plain._state)
    expected = plain.conditioning_state()
    state = mine.conditioning_state()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_looking_back_at_a_prompted_slice_changes_nothing_in_the_walk(
    undisturbed: list[SliceOutput], predictor: Any, frames: RepeatedFrames
) -> None:
    walk = prompted_walk(predictor, frames, PROMPTS)
    outputs: list[SliceOutput] = []
    predictions: dict[int, torch.Tensor] = {}

    def take(output: SliceOutput) -> None:
        outputs.append(output)
        for z in PROMPTS:
            if output.z == min(z + walk.reach, DEPTH - 1):
                predictions[z] = walk.predict_backwards(z)
                assert torch.equal(walk.predict_backwards(z), predictions[z])

    walk.walk(Span(0, DEPTH), take)
    assert torch.equal(logits_of(outputs), logits_of(undisturbed))
    for z in PROMPTS:
        prompt, predicted = undisturbed[z].native, predictions[z]
        # What goes in is what comes out of a prompted slice: -10 and 10, softened by resizing.
        assert set(prompt.round().unique().tolist()) >= {-10.0, 10.0}
        assert predicted.shape == prompt.shape
        assert float((predicted - prompt).abs().mean()) > 1


def test_a_prediction_depends_on_the_slices_after_it(predictor: Any, frames: RepeatedFrames) -> None:
    walk = prompted_walk(predictor, frames, (0,))
    walk.walk(Span(0, 3), lambda output: None)
    early = walk.predict_backwards(0)
    walk.walk(Span(3, 7), lambda output: None)
    assert float((walk.predict_backwards(0) - early).abs().mean()) > 0.01


@pytest.mark.parametrize("stop", [1, 6, 7, 9])
def test_a_walk_goes_on_from_saved_state_to_the_last_bit(
    stop: int, undisturbed: list[SliceOutput], predictor: Any, frames: RepeatedFrames
) -> None:
    first = prompted_walk(predictor, frames, PROMPTS)
    walked(first, Span(0, stop))
    again = Propagation(predictor, frames, height=HEIGHT, width=WIDTH)
    again.restore(
        conditioning={name: tensor.clone() for name, tensor in first.conditioning_state().items()},
        recent={name: tensor.clone() for name, tensor in first.recent_state().items()},
    )
    assert again.prompted == PROMPTS
    assert torch.equal(logits_of(walked(again, Span(stop, DEPTH))), logits_of(undisturbed[stop:]))


def test_walks_with_one_predictor_do_not_see_each_other(
    undisturbed: list[SliceOutput], predictor: Any, frames: RepeatedFrames
) -> None:
    one, other = prompted_walk(predictor, frames, PROMPTS), prompted_walk(predictor, frames, (0, 3))
    outputs: list[SliceOutput] = []
    for z in range(DEPTH):
        outputs += walked(one, Span(z, z + 1))
        walked(other, Span(z, z + 1))
    assert torch.equal(logits_of(outputs), logits_of(undisturbed))


def test_sam2_is_left_as_it_was(predictor: Any, frames: RepeatedFrames, capfd: pytest.CaptureFixture[str]) -> None:
    before = sam2_video.load_video_frames, sam2_video.tqdm
    walked(prompted_walk(predictor, frames, (0,)), Span(0, 2))
    with pytest.raises(ZeroDivisionError):
        prompted_walk(predictor, frames, (0,)).walk(Span(0, 1), lambda output: 1 / 0)
    assert (sam2_video.load_video_frames, sam2_video.tqdm) == before
    assert capfd.readouterr().err == "", "sam2's own progress bars are silent"


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
