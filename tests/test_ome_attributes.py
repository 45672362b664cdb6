"""What is said of a level's voxels; that attributes are valid is tested with the images that carry them."""

from __future__ import annotations

from etsam_zarr.ome.attributes import ImageMetadata


def test_metadata_names_the_reduction() -> None:
    image = ImageMetadata("x", 2, (1.0, 1.0, 1.0), reduction="max")
    assert image.scale(1) == (2.0, 2.0, 2.0)
    assert image.translation(0) == (0.0, 0.0, 0.0)
    assert image.translation(1) == (0.5, 0.5, 0.5)
