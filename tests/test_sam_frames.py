"""Slices prepared ahead by a thread, or when asked for: order, errors, and that the thread ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import reference
import torch
from tiny import texture

from etsam_zarr.geometry import Span
from etsam_zarr.sam.frames import FRAMES_AHEAD, Plane, StreamedFrames, to_frame

DEPTH, SIZE = 40, 32
VOLUME = texture((DEPTH, 9, 11))


class _Reader:
    """Reads slices of VOLUME, noting which; fails at a slice if told to."""

    def __init__(self, broken: int | None = None) -> None:
        self.spans: list[Span] = []
        self.delivered: list[int] = []
        self._broken = broken

    def __call__(self, span: Span) -> Iterator[Plane]:
        self.spans.append(span)
        for z in range(span.start, span.stop):
            if z == self._broken:
                raise OSError(f"slice {z} cannot be read")
            self.delivered.append(z)
            yield VOLUME[z]


def _frames(reader: _Reader, slab: int = 7) -> StreamedFrames:
    return StreamedFrames(reader, depth=DEPTH, image_size=SIZE, slab=slab)


def _no_thread_is_left() -> bool:
    return all(thread.name != "prepare-slices" for thread in threading.enumerate())


@pytest.mark.parametrize("shape", [(9, 11), (SIZE, SIZE), (SIZE, 40), (40, 40)])
def test_a_frame_is_what_etsam_makes_of_a_slice(shape: tuple[int, int]) -> None:
    """Smaller, larger, and (as tiles are) of exactly the model's size."""
    volume = texture((3, *shape))
    before, expected = volume.copy(), reference.to_video(volume, SIZE)
    for z in range(3):
        assert torch.equal(to_frame(volume[z], SIZE), expected[z])
    np.testing.assert_array_equal(volume, before)
    assert len(_frames(_Reader())) == DEPTH


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("slab", [1, 7, 100])
def test_frames_come_in_order_each_read_once(slab: int, beside: bool) -> None:
    reader = _Reader()
    frames = _frames(reader, slab)
    with frames.in_order(Span(5, DEPTH), beside=beside):
        for z in range(5, DEPTH):
            assert torch.equal(frames[z], to_frame(VOLUME[z], SIZE))
    assert reader.delivered == list(range(5, DEPTH))
    assert max(span.size for span in reader.spans) <= slab
    assert _no_thread_is_left()


@pytest.mark.parametrize("beside", [True, False])
def test_skipped_slices_are_not_prepared_and_can_still_be_asked_for(beside: bool) -> None:
    reader = _Reader()
    frames = _frames(reader)
    with frames.in_order(Span(0, 8), skipping=frozenset({0, 5}), beside=beside):
        for z in (1, 2, 3, 4, 5, 6, 7):
            assert torch.equal(frames[z], to_frame(VOLUME[z], SIZE))
    assert Span(5, 6) in reader.spans, "a skipped slice is read when it is asked for"


def test_outside_of_the_context_any_frame_is_made_when_asked_for() -> None:
    frames = _frames(_Reader())
    for z in (30, 2, 30):
        assert torch.equal(frames[z], to_frame(VOLUME[z], SIZE))


@pytest.mark.parametrize("beside", [True, False])
def test_an_error_of_the_reader_reaches_the_taker_in_its_place(beside: bool) -> None:
    frames = _frames(_Reader(broken=9))
    taken = []
    with (  # noqa: PT012
        pytest.raises(OSError, match="slice 9 cannot be read"),
        frames.in_order(Span(0, DEPTH), beside=beside),
    ):
        for z in range(DEPTH):
            assert frames[z].shape == (3, SIZE, SIZE)
            taken.append(z)
    assert taken == list(range(9))
    assert _no_thread_is_left()


def test_the_thread_ends_when_the_taker_stops_early_and_never_runs_far_ahead() -> None:
    reader = _Reader()
    frames = _frames(reader, slab=1)
    with pytest.raises(KeyboardInterrupt), frames.in_order(Span(0, DEPTH)):  # noqa: PT012
        assert frames[0] is not None
        raise KeyboardInterrupt
    assert _no_thread_is_left()
    # One taken, those that wait, one in the thread's hands, and one read while the other was put.
    assert len(reader.delivered) <= FRAMES_AHEAD + 3
    assert torch.equal(frames[20], to_frame(VOLUME[20], SIZE))


@pytest.mark.parametrize("beside", [True, False])
def test_a_slice_out_of_order_is_a_mistake_that_is_noticed(beside: bool) -> None:
    frames = _frames(_Reader())
    with (
        pytest.raises(RuntimeError, match="slice 3 was asked for where 0 comes next"),
        frames.in_order(Span(0, DEPTH), beside=beside),
    ):
        frames[3]
    assert _no_thread_is_left()


def test_without_a_thread_nothing_is_prepared_before_it_is_asked_for() -> None:
    reader = _Reader()
    frames = _frames(reader)
    with frames.in_order(Span(0, 9), beside=False):
        assert reader.delivered == []
        assert _no_thread_is_left()
        for z in range(3):
            assert frames[z] is not None
        assert reader.delivered == [0, 1, 2]


@pytest.mark.parametrize("beside", [True, False])
def test_no_more_slices_than_there_are_can_be_taken(beside: bool) -> None:
    frames = _frames(_Reader())
    with frames.in_order(Span(0, 1), beside=beside):
        assert frames[0] is not None
        with pytest.raises(RuntimeError, match="slice 1 was asked for where None comes next"):
            frames[1]
