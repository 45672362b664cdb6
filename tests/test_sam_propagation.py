"""The walk through a volume: bounded, undisturbed by looking back, and continued from saved state.

That its logits are those of SAM 2's own predictor is shown in ``test_equality.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sam2.sam2_video_predictor as sam2_video
import torch
from sam_walks import HEIGHT, WIDTH, RepeatedFrames, blob, encoding_once, logits_of, prompted_walk, walked

from etsam_zarr.geometry import Span
from etsam_zarr.sam.propagation import Propagation, SliceOutput

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
