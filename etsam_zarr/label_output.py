"""Where a mask or instance labels are written: a label of an OME-Zarr image, an OME-Zarr image of its own, or an MRC.

Whatever it is, it is written beside its place first and put there once it is complete, so that a killed process leaves
neither half a label nor the loss of the one before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import OutputExistsError, SettingsError
from etsam_zarr.events import OnEvent, ignore
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.mrc.write import MrcPlan, write_mrc
from etsam_zarr.ome.attributes import OmeVersion, Rgba
from etsam_zarr.ome.groups import create_pyramid, register_label
from etsam_zarr.ome.pyramid import Reduction, build_pyramid
from etsam_zarr.volume import Array

MRC_SUFFIXES = (".mrc", ".map", ".rec")
LARGEST_MRC_ID = 65535
"""MRC's unsigned mode 6 has 16 bits."""


@dataclass(frozen=True)
class OutputFacts:
    """What the result inherits from the volume it belongs to."""

    shape: Shape3
    voxel_size: tuple[float, float, float] | None
    """Angstrom, z, y, x."""
    origin: tuple[float, float, float]
    """Angstrom, z, y, x."""
    chunks: Shape3
    version: OmeVersion = "0.4"


class LabelOutput:
    """One result on its way to its place.

    Parameters
    ----------
    place
        Final path: an ``.mrc`` file, or a folder that becomes an OME-Zarr image.
    facts
        Shape, voxel size, chunks.
    image
        Group of the OME-Zarr image whose label this becomes, ``place`` being ``image / "labels" / name``; None for a
        result of its own.
    colours
        Of each value, for a label.
    overwrite
        Replace what is at ``place``.

    Raises
    ------
    OutputExistsError
        Something is there and ``overwrite`` is false.
    """

    def __init__(
        self,
        place: Path,
        facts: OutputFacts,
        *,
        image: Path | None = None,
        colours: Mapping[int, Rgba] | None = None,
        overwrite: bool = False,
    ) -> None:
        if place.exists() and not overwrite:
            raise OutputExistsError(f"There is something at {place} already. Give --overwrite to replace it.")
        self.place = place
        self.is_mrc = place.suffix.lower() in MRC_SUFFIXES
        self._facts = facts
        self._image = image
        self.colours = colours
        """May be set until :meth:`array` is called."""
        self._staging = place.with_name(f".{place.name}.partial")
        self._levels: list[zarr.Array[Any]] = []

    @property
    def chunks(self) -> Shape3:
        """Chunks of the array that :meth:`array` will return."""
        z, y, x = (min(chunk, n) for chunk, n in zip(self._facts.chunks, self._facts.shape, strict=True))
        return z, y, x

    @property
    def scratch(self) -> Path:
        """A folder for what the work needs in between, on the same disk."""
        return self.place.with_name(f".{self.place.name}.scratch")

    def array(self, dtype: np.dtype[Any], *, reduction: Reduction) -> zarr.Array[Any]:
        """Return the array to fill; one that an earlier process left unfinished, if it is of the same kind.

        Raises
        ------
        OutputError
            It cannot be made.
        """
        self._reduction: Reduction = reduction
        facts = self._facts
        with disk_errors("creating the result", self.place):
            found = self._unfinished(dtype)
            if found:
                self._levels = found
                return found[0]
            shutil.rmtree(self._staging, ignore_errors=True)
            self._levels = create_pyramid(
                self._staging,
                shape=facts.shape,
                dtype=dtype,
                voxel_size=facts.voxel_size,
                origin=facts.origin,
                chunks=facts.chunks,
                version=facts.version,
                name=self.place.name.removesuffix(".zarr").removesuffix(".ome"),
                label_colours=None if self._image is None else (self.colours or {}),
                reduction=reduction,
            )
        return self._levels[0]

    def finish(self, *, is_mask: bool, on_event: OnEvent = ignore) -> None:
        """Build the pyramid, or write the MRC, and put the result in its place.

        Raises
        ------
        SettingsError
            MRC cannot store the ids.
        OutputError
            The disk is full.
        """
        if self.is_mrc:
            self._write_mrc(is_mask=is_mask, on_event=on_event)
        else:
            build_pyramid(self._levels, reduce=self._reduction, on_event=on_event)
            with disk_errors("putting the result in place", self.place):
                shutil.rmtree(self.place, ignore_errors=True)
                if self._image is not None:
                    root = zarr.open_group(self._image, mode="r+")
                    # It lists the label and makes an empty group, which gives way to the finished one.
                    register_label(root, self.place.name, version=self._facts.version)
                    shutil.rmtree(self.place)
                self._staging.rename(self.place)
        shutil.rmtree(self._staging, ignore_errors=True)

    def _unfinished(self, dtype: np.dtype[Any]) -> list[zarr.Array[Any]]:
        if not self._staging.is_dir():
            return []
        try:
            group = zarr.open_group(self._staging, mode="r+")
        except (FileNotFoundError, ValueError):
            return []
        levels = [array for _, array in sorted(group.arrays(), key=lambda named: int(named[0]))]
        kind = (self._facts.shape, dtype)
        return levels if levels and (tuple(levels[0].shape), levels[0].dtype) == kind else []

    def _write_mrc(self, *, is_mask: bool, on_event: OnEvent) -> None:
        array = self._levels[0]
        dtype = np.dtype(np.uint8 if is_mask else np.uint16)
        if not is_mask and array.dtype.itemsize > 2:
            raise SettingsError(f"MRC cannot store ids of type {array.dtype}; write OME-Zarr.")

        def slabs() -> Iterator[Array]:
            for span in cut(Span(0, self._facts.shape[0]), array.chunks[0]):
                yield np.asarray(array[span.as_slice()]).astype(dtype)

        plan = MrcPlan(self._facts.shape, dtype, self._facts.voxel_size, self._facts.origin, is_mask=is_mask)
        write_mrc(self.place, plan, slabs(), overwrite=True, on_event=on_event)
