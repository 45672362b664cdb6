"""Integer geometry: spans, how they are cut and aligned, and the shapes of pyramid levels.

Nothing here knows a store, a model or a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shape3 = tuple[int, int, int]
"""A shape or index in z, y, x order."""


@dataclass(frozen=True, order=True)
class Span:
    """A half-open run of indices ``start <= i < stop`` along one axis.

    >>> Span(3, 7).size
    4
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a span needs 0 <= start <= stop, got {self.start}..{self.stop}")

    @property
    def size(self) -> int:
        """Number of indices in the span."""
        return self.stop - self.start

    def as_slice(self) -> slice:
        """Return the span as a ``slice`` for indexing."""
        return slice(self.start, self.stop)

    def common(self, other: Span) -> Span:
        """Return what the span has in common with another one that it meets.

        >>> str(Span(2, 9).common(Span(5, 20)))
        '5:9'
        """
        return Span(max(self.start, other.start), min(self.stop, other.stop))

    def within(self, outer: Span) -> Span:
        """Return the same indices counted from the start of a span that holds them.

        >>> str(Span(5, 9).within(Span(2, 20)))
        '3:7'
        """
        return Span(self.start - outer.start, self.stop - outer.start)

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


Box = tuple[Span, Span, Span]
"""A box of voxels: spans along z, y, x."""


def box_within(shape: Shape3, z: Span, y: Span | None, x: Span | None) -> tuple[Span, Span, Span]:
    """Return the spans of a box in z, y, x, with None meaning the whole axis.

    Raises
    ------
    IndexError
        The box ends outside ``shape``.

    >>> [str(s) for s in box_within((9, 8, 7), Span(2, 4), None, Span(1, 7))]
    ['2:4', '0:8', '1:7']
    """
    box = (z, Span(0, shape[1]) if y is None else y, Span(0, shape[2]) if x is None else x)
    for axis, span, size in zip("zyx", box, shape, strict=True):
        if span.stop > size:
            raise IndexError(f"the box ends at {axis} = {span.stop}, the volume at {size}")
    return box


def aligned(span: Span, size: int, end: int) -> Span:
    """Return ``span`` grown outwards to multiples of ``size``, but not past ``end``.

    >>> str(aligned(Span(5, 17), 8, 20)), str(aligned(Span(5, 17), 8, 100))
    ('0:20', '0:24')
    """
    return Span(span.start // size * size, min(end, ceil_div(span.stop, size) * size))


def ceil_div(a: int, b: int) -> int:
    """Return ``a / b`` rounded up, for ``b > 0``.

    >>> ceil_div(7, 3), ceil_div(6, 3), ceil_div(0, 3)
    (3, 2, 0)
    """
    return -(-a // b)


def cut(span: Span, size: int) -> tuple[Span, ...]:
    """Cut ``span`` into runs that end on multiples of ``size`` (counted from 0), in order.

    Runs in the middle hold exactly ``size`` indices; the first and last may hold fewer.

    >>> [str(s) for s in cut(Span(5, 20), 8)]
    ['5:8', '8:16', '16:20']
    """
    if size < 1:
        raise ValueError(f"the size of a run must be at least 1, got {size}")

    def runs() -> Iterator[Span]:
        start = span.start
        while start < span.stop:
            stop = min(span.stop, (start // size + 1) * size)
            yield Span(start, stop)
            start = stop

    return tuple(runs())


def halved(shape: Shape3) -> Shape3:
    """Return the shape of the next coarser pyramid level: every axis halved, rounded up, at least 1.

    >>> halved((5, 8, 1))
    (3, 4, 1)
    """
    z, y, x = (ceil_div(n, 2) for n in shape)
    return z, y, x


def pyramid_shapes(shape: Shape3, *, smallest: int = 64, most: int = 6) -> tuple[Shape3, ...]:
    """Return the shapes of a pyramid, finest first, halving until the largest axis is at most ``smallest``.

    >>> pyramid_shapes((100, 200, 300), smallest=64)
    ((100, 200, 300), (50, 100, 150), (25, 50, 75), (13, 25, 38))
    """
    shapes = [shape]
    while max(shapes[-1]) > smallest and len(shapes) < most:
        shapes.append(halved(shapes[-1]))
    return tuple(shapes)
