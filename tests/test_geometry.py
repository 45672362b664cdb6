"""Spans and pyramid shapes, for any numbers."""

from __future__ import annotations

import doctest
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etsam_zarr import geometry
from etsam_zarr.geometry import Span, aligned, box_within, ceil_div, cut, halved, pyramid_shapes

SIZES = st.integers(1, 5000)
SHAPES = st.tuples(SIZES, SIZES, SIZES)


@st.composite
def spans(draw: st.DrawFn, most: int = 5000) -> Span:
    start = draw(st.integers(0, most))
    return Span(start, draw(st.integers(start, most)))


def test_the_examples_of_the_docstrings_hold() -> None:
    results = doctest.testmod(geometry)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3)])
def test_impossible_spans_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"{start}..{stop}"):
        Span(start, stop)


@settings(deadline=None)
@given(span=spans(), size=st.integers(1, 300))
def test_cut_covers_the_span_once_in_order_and_ends_on_multiples(span: Span, size: int) -> None:
    pieces = cut(span, size)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(span.start, span.stop))
    assert all(0 < piece.size <= size for piece in pieces)
    assert all(piece.stop % size == 0 for piece in pieces[:-1])


def test_cut_refuses_empty_runs() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cut(Span(0, 4), 0)


@settings(deadline=None)
@given(a=st.integers(0, 10**12), b=st.integers(1, 10**6))
def test_ceil_div_is_the_smallest_number_that_is_enough(a: int, b: int) -> None:
    assert (ceil_div(a, b) - 1) * b < a <= ceil_div(a, b) * b


@settings(deadline=None)
@given(shape=SHAPES, smallest=st.integers(1, 300), most=st.integers(1, 8))
def test_pyramids_halve_every_axis_until_small_enough(shape: tuple[int, int, int], smallest: int, most: int) -> None:
    shapes = pyramid_shapes(shape, smallest=smallest, most=most)
    assert shapes[0] == shape
    assert 1 <= len(shapes) <= most
    assert all(coarser == halved(finer) for finer, coarser in pairwise(shapes))
    assert all(max(finer) > smallest for finer in shapes[:-1])
    assert len(shapes) == most or max(shapes[-1]) <= smallest
    # Every coarser voxel is made of at least one finer voxel, and every finer one is used.
    for finer, coarser in pairwise(shapes):
        assert all(2 * c - 1 <= f <= 2 * c for f, c in zip(finer, coarser, strict=True))


@settings(deadline=None)
@given(span=spans(), size=st.integers(1, 300), more=st.integers(0, 300))
def test_aligned_spans_hold_the_span_and_grow_by_less_than_the_size(span: Span, size: int, more: int) -> None:
    end = span.stop + more
    grown = aligned(span, size, end)
    assert grown.start <= span.start < grown.start + size
    assert span.stop <= grown.stop <= min(end, span.stop + size - 1)
    assert grown.start % size == 0
    assert grown.stop % size == 0 or grown.stop == end


@settings(deadline=None)
@given(shape=SHAPES)
def test_none_means_the_whole_axis(shape: tuple[int, int, int]) -> None:
    z, y, x = box_within(shape, Span(0, shape[0]), None, None)
    assert (z.size, y.size, x.size) == shape
    with pytest.raises(IndexError, match="y ="):
        box_within(shape, z, Span(0, shape[1] + 1), None)
