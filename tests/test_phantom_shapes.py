"""Surfaces are where their sizes say."""

from __future__ import annotations

import numpy as np
import pytest

from etsam_zarr.phantom.shapes import Body, Outline, Point


@pytest.mark.parametrize(
    ("outline", "size", "on_surface"),
    [
        (Outline.CAPSULE, (200.0, 80.0, 0.0), [(280.0, 0.0, 0.0), (0.0, 80.0, 0.0), (-100.0, 0.0, 80.0)]),
        (Outline.DISC, (60.0, 300.0, 0.0), [(60.0, 0.0, 0.0), (0.0, 360.0, 0.0), (-60.0, 100.0, 100.0)]),
        (Outline.ELLIPSOID, (100.0, 200.0, 300.0), [(100.0, 0.0, 0.0), (0.0, -200.0, 0.0), (0.0, 0.0, 300.0)]),
    ],
)
def test_outlines_are_where_they_should_be(
    outline: Outline, size: Point, on_surface: list[tuple[float, float, float]]
) -> None:
    body = Body(outline, (0.0, 0.0, 0.0), np.eye(3), size)
    z, y, x = (np.array(axis) for axis in zip(*on_surface, strict=True))
    assert body.distance(z, y, x) == pytest.approx([0, 0, 0], abs=1e-9)
    assert (body.distance(z * 0.9, y * 0.9, x * 0.9) < 0).all()
    assert (body.distance(z * 1.1, y * 1.1, x * 1.1) > 0).all()
    assert body.reach >= np.sqrt(z**2 + y**2 + x**2).max()
