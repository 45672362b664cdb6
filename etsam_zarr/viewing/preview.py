"""A contact sheet of a tomogram: xy slices, one xz and one yz cut, membranes outlined, with a scale bar.

Beneath the outlines the truth can be tinted, where there is one.

Only the slices that are shown are read, from the coarsest pyramid level that has enough pixels for them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.sources import open_volume
from etsam_zarr.viewing.panel import (
    Cut,
    PanelScale,
    draw_outline,
    draw_scale_bar,
    draw_text,
    draw_tint,
    grey_image,
    read_plane,
)
from etsam_zarr.volume import Volume

_MARGIN = 8
_TITLE_HEIGHT = 28
_BACKGROUND = (24, 24, 24)


@dataclass(frozen=True)
class PreviewSettings:
    """How the sheet looks."""

    slices: int = 6
    """Number of xy slices, evenly spread; the outermost are half a step from the ends."""
    columns: int = 3
    """Panels side by side."""
    panel: int = 400
    """Width of an xy panel in pixels."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Grey values shown as black and white, of the slices shown."""
    outline: tuple[int, int, int] = (255, 176, 0)
    """Colour of the membranes' outlines."""
    tint: tuple[int, int, int] = (0, 150, 255)
    """Colour laid over the truth."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if self.slices < 1 or self.columns < 1:
            raise SettingsError(f"A sheet needs at least 1 slice and 1 column, not {self.slices} and {self.columns}.")
        if not 64 <= self.panel <= 4096:
            raise SettingsError(f"--panel is {self.panel} pixels; it takes 64 to 4096.")
        if not 0 <= low < high <= 100:
            raise SettingsError(f"--percentiles is {low:g},{high:g}; it takes two rising numbers from 0 to 100.")


def open_for_pixels(uri: str | Path, pixels: int, *, voxel_size: tuple[float, float, float] | None = None) -> Volume:
    """Open the coarsest level of an image that has at least ``pixels`` voxels along x, else its finest.

    Parameters
    ----------
    uri
        As :func:`~etsam_zarr.sources.open_volume` takes it; an MRC or a bare array has one level.
    pixels
        How many are going to be shown.
    voxel_size
        Of the finest level in angstrom, z, y, x, in place of what is stored.

    Raises
    ------
    InputError
        There is no volume.
    """
    best = finest = open_volume(uri, voxel_size=voxel_size)
    for level in range(1, 32):
        try:
            size = voxel_size and (voxel_size[0] * 2**level, voxel_size[1] * 2**level, voxel_size[2] * 2**level)
            coarser = open_volume(uri, level=level, voxel_size=size)
        except InputError:
            # It is the last one, or a file without levels.
            break
        if coarser.info.shape[2] < min(pixels, finest.info.shape[2]):
            coarser.close()
            break
        best.close()
        best = coarser
    return best


def contact_sheet(
    volume: Volume,
    mask: Volume | None = None,
    *,
    truth: Volume | None = None,
    settings: PreviewSettings | None = None,
    depth: int | None = None,
) -> Image.Image:
    """Draw the sheet.

    1. The xy slices and the two cuts through the middle are read and brought to true proportions.
    2. Contrast is set by percentiles of the xy slices, for all panels alike.
    3. The truth, at the same relative places, is tinted; then the mask is outlined.
    4. Panels are pasted into a grid; the first carries the scale bar.

    Parameters
    ----------
    volume
        The tomogram, at a level that suffices.
    mask
        A mask of the same region, at any level; every value but 0 is inside.
    truth
        Another mask, to compare it with.
    settings
        Looks.
    depth
        Slices of the finest level, to number the slices by; by default those of ``volume``.

    Returns
    -------
    RGB image

    Raises
    ------
    InputError
        A volume cannot be read.
    """
    settings = settings or PreviewSettings()
    places: list[tuple[Cut, float]] = [("xy", (i + 0.5) / settings.slices) for i in range(settings.slices)]
    places += [("xz", 0.5), ("yz", 0.5)]
    planes = [read_plane(volume, cut, place) for cut, place in places]
    shown = np.concatenate([plane.ravel() for plane in planes[: settings.slices]]).astype(np.float32)
    shown = shown[np.isfinite(shown)]
    low, high = np.percentile(shown, settings.percentiles) if shown.size else (0.0, 1.0)

    scale = PanelScale(volume, settings.panel)
    panels = []
    for (cut, place), plane in zip(places, planes, strict=True):
        size = scale.size(cut)
        panel = grey_image(plane, float(low), float(high)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
        if truth is not None:
            draw_tint(panel, read_plane(truth, cut, place) != 0, settings.tint)
        if mask is not None:
            draw_outline(panel, read_plane(mask, cut, place) != 0, settings.outline)
        along = {"xy": depth or volume.info.shape[0], "xz": volume.info.shape[1], "yz": volume.info.shape[2]}[cut]
        draw_text(panel, (6, 4), f"z {int(place * along)}" if cut == "xy" else f"{cut} (z down)")
        panels.append(panel)
    draw_scale_bar(panels[0], scale)
    return _grid(panels, settings, title=_title(volume) + ("   blue: truth" if truth else ""))


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as PNG or JPEG, by the suffix.

    Raises
    ------
    SettingsError
        The suffix is neither.
    OutputError
        The file cannot be written.
    """
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise SettingsError(f"The sheet's name {path.name!r} ends in neither .png nor .jpg; give one of these.")
    data = io.BytesIO()
    sheet.save(data, format=kind)
    write_atomically(path, data.getvalue())


def _title(volume: Volume) -> str:
    info = volume.info
    if info.voxel_size is None:
        return f"{info.name}   voxel size unknown"
    z, y, x = (n * size / 10 for n, size in zip(info.shape, info.voxel_size, strict=True))
    return f"{info.name}   {x:.0f} x {y:.0f} x {z:.0f} nm (x, y, z)"


def _grid(panels: list[Image.Image], settings: PreviewSettings, *, title: str) -> Image.Image:
    """Paste panels row by row; the two cuts make a row of their own."""
    cuts, slices = panels[-2:], panels[:-2]
    rows = [slices[i : i + settings.columns] for i in range(0, len(slices), settings.columns)] + [cuts]
    width = max(sum(p.width + _MARGIN for p in row) for row in rows) + _MARGIN
    height = sum(max(p.height for p in row) + _MARGIN for row in rows) + _MARGIN + _TITLE_HEIGHT
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw_text(sheet, (_MARGIN, 7), title)
    for panel, place in zip(panels, _places(rows), strict=True):
        sheet.paste(panel, place)
    return sheet


def _places(rows: list[list[Image.Image]]) -> Iterator[tuple[int, int]]:
    top = _MARGIN + _TITLE_HEIGHT
    for row in rows:
        left = _MARGIN
        for panel in row:
            yield left, top
            left += panel.width + _MARGIN
        top += max(panel.height for panel in row) + _MARGIN
