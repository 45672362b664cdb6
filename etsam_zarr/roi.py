"""A region of a volume as a volume of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import math

from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.geometry import Box, Span, box_within
from etsam_zarr.volume import Array, Volume, VolumeInfo
from etsam_zarr.zarr_volume import ZarrVolume


class RoiVolume(Volume):
    """A box of another volume: its first voxel is (0, 0, 0), its origin is shifted; closing it closes the other.

    Nothing outside of the box is read, not even ahead or to tell volumes apart.

    Parameters
    ----------
    whole
        The volume.
    box
        In its voxels.

    Raises
    ------
    SettingsError
        The box ends outside of the volume, or is no volume.
    """

    def __init__(self, whole: Volume, box: Box) -> None:
        info = whole.info
        for axis, span, size in zip("zyx", box, info.shape, strict=True):
            if span.stop > size:
                raise SettingsError(
                    f"The region (--roi) goes to {axis} = {span.stop}, and {info.uri} has only {size} voxels along it "
                    f"({' x '.join(map(str, info.shape))}, z y x). Give a region within it, stop exclusive."
                )
        if box[0].size < 2 or not box[1].size or not box[2].size:
            raise SettingsError(
                f"The region (--roi) holds {' x '.join(str(span.size) for span in box)} voxels (z y x); at least 2 "
                "slices and no empty side are needed. Give a larger one."
            )
        origin = info.origin
        if info.voxel_size is not None:
            z, y, x = (o + span.start * size for o, span, size in zip(origin, box, info.voxel_size, strict=True))
            origin = (z, y, x)
        super().__init__(
            dataclasses.replace(
                info, shape=(box[0].size, box[1].size, box[2].size), origin=origin, roi=",".join(map(str, box))
            )
        )
        self.whole = whole
        self.box = box
        if isinstance(whole, ZarrVolume):
            whole.expect(box)

    def read(self, z: Span, y: Span | None = None, x: Span | None = None) -> Array:
        """Return the voxels of a box of the region; see :meth:`Volume.read`."""
        inside = box_within(self.info.shape, z, y, x)
        shifted = [Span(a.start + b.start, a.stop + b.start) for a, b in zip(inside, self.box, strict=True)]
        return self.whole.read(*shifted)

    def digest(self) -> str:
        """Return a digest of the region's place and content; for Zarr, content is sampled within the region only."""
        whole = self.whole
        content = whole.digest_of(self.box) if isinstance(whole, ZarrVolume) else whole.digest()
        return hashlib.sha256(f"{content} {self.info.roi}".encode()).hexdigest()

    def close(self) -> None:
        """Close the volume that this is a region of."""
        self.whole.close()


def box_of_angstrom(info: VolumeInfo, ranges: tuple[tuple[float, float], ...]) -> Box:
    """Return the voxels that lie, also in part, in a region given in angstrom.

    Parameters
    ----------
    info
        Of the volume.
    ranges
        Start and stop along z, y, x in angstrom, counted from the outer face of the first voxel (an origin that the
        file gives is not added).

    Raises
    ------
    InputError
        The voxel size is not known.
    """
    if info.voxel_size is None:
        raise InputError(
            f"A region in angstrom (--roi-angstrom) needs the voxel size, and {info.uri} gives none. Give it with "
            "--voxel-size, or the region in voxels with --roi."
        )
    # A hair of tolerance: 300 / 0.1 shall be 3000, not a bit less or more.
    spans = [
        Span(math.floor(start / size + 1e-6), math.ceil(stop / size - 1e-6))
        for (start, stop), size in zip(ranges, info.voxel_size, strict=True)
    ]
    return spans[0], spans[1], spans[2]
