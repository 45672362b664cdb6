"""The untrained model is worth comparing with: its logits cross zero and follow its memory.

Without this, equality of the streamed and the plain propagation would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sam2.modeling.sam2_base as sam2_base
import torch
from sam_walks import RepeatedFrames, encoding_once, logits_of, prompted_walk, walked

from etsam_zarr.geometry import Span
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.sam.propagation import SliceOutput

DEPTH = 10
# Slices 2 and on see both kinds of memory.
FROM = 2
FAR_MORE_THAN_ANY_TOLERANCE = 0.05


@pytest.fixture(scope="module", params=[(0,), (0, 5)], ids=["one prompt", "two prompts"])
def prompts(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[1, 2])
def predictor(request: pytest.FixtureRequest, seeded_spec: ModelSpec) -> Iterator[Any]:
    predictor = seeded_spec.build("cpu")
    seeded_spec.load(predictor, request.param)
    with encoding_once(predictor):
        yield predictor


@pytest.fixture(scope="module")
def frames() -> RepeatedFrames:
    return RepeatedFrames(DEPTH, period=DEPTH)


@pytest.fixture(scope="module")
def undisturbed(predictor: Any, frames: RepeatedFrames, prompts: tuple[int, ...]) -> list[SliceOutput]:
    return walked(prompted_walk(predictor, frames, prompts), Span(0, DEPTH))


def _predicted(outputs: list[SliceOutput], prompts: tuple[int, ...]) -> torch.Tensor:
    return logits_of([output for output in outputs if output.z >= FROM and output.z not in prompts])


def test_logits_cross_every_threshold_in_both_directions(
    undisturbed: list[SliceOutput], prompts: tuple[int, ...]
) -> None:
    logits = _predicted(undisturbed, prompts)
    for threshold in (0.0, -0.25, -0.5):
        assert 0.05 < float((logits > threshold).float().mean()) < 0.95
    # Far from the thresholds too, and not the same in every slice.
    assert float(logits.std()) > 0.5
    assert float((logits[1:] - logits[:-1]).abs().mean()) > FAR_MORE_THAN_ANY_TOLERANCE


def test_the_gate_that_replaces_masks_by_no_object_is_open(undisturbed: list[SliceOutput]) -> None:
    assert all(output.object_score > 0 for output in undisturbed)


def test_cutting_the_recent_memory_changes_the_logits(
    undisturbed: list[SliceOutput], predictor: Any, frames: RepeatedFrames, prompts: tuple[int, ...]
) -> None:
    walk = prompted_walk(predictor, frames, prompts)
    outputs: list[SliceOutput] = []

    def take_and_cut(output: SliceOutput) -> None:
        outputs.append(output)
        walk._outputs["non_cond_frame_outputs"].clear()

    walk.walk(Span(0, DEPTH), take_and_cut)
    change = (_predicted(outputs, prompts) - _predicted(undisturbed, prompts)).abs()
    assert float(change.mean()) > FAR_MORE_THAN_ANY_TOLERANCE


def test_cutting_the_conditioning_memory_changes_the_logits(
    undisturbed: list[SliceOutput],
    predictor: Any,
    frames: RepeatedFrames,
    prompts: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    select = sam2_base.select_closest_cond_frames

    def none_of_them(z: int, outputs: Any, most: int) -> Any:
        # Slice 1 has no other memory, and sam2 needs some.
        return select(z, outputs, most) if z < FROM else ({}, {})

    monkeypatch.setattr(sam2_base, "select_closest_cond_frames", none_of_them)
    outputs = walked(prompted_walk(predictor, frames, prompts), Span(0, DEPTH))
    change = (_predicted(outputs, prompts) - _predicted(undisturbed, prompts)).abs()
    assert float(change.mean()) > FAR_MORE_THAN_ANY_TOLERANCE
