"""One panel of a contact sheet: the plane it shows, its size, and what is drawn on it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from etsam_zarr.geometry import Span
from etsam_zarr.volume import Volume

Plane = npt.NDArray[Any]
Cut = Literal["xy", "xz", "yz"]

_FONT_SIZE = 14
_WHITE = (255, 255, 255)
# A pixel counts as membrane if this share of what it covers is: thin ones must not vanish when shrunk.
_LEAST_COVER = 0.2
# Of 255.
_TINT_STRENGTH = 110


class PanelScale:
    """How large panels are: one number of pixels for a nanometre, along all axes.

    Parameters
    ----------
    volume
        What is shown; where its voxel size is unknown, voxels count as cubes.
    width
        Of an xy panel in pixels.
    """

    def __init__(self, volume: Volume, width: int) -> None:
        self.known = volume.info.voxel_size is not None
        voxel = volume.info.voxel_size or (1.0, 1.0, 1.0)
        self._extent = [n * size for n, size in zip(volume.info.shape, voxel, strict=True)]
        self.pixels_per_unit = width / self._extent[2]

    def size(self, cut: Cut) -> tuple[int, int]:
        """Return width and height of a panel in pixels."""
        z, y, x = (max(1, round(extent * self.pixels_per_unit)) for extent in self._extent)
        return {"xy": (x, y), "xz": (x, z), "yz": (y, z)}[cut]

    def bar(self) -> tuple[int, str]:
        """Return length in pixels and text of a scale bar: 1, 2 or 5 times 10^n, at most a quarter of a panel."""
        target = self._extent[2] / 4 / (10 if self.known else 1)
        power = 10 ** math.floor(math.log10(target))
        length = power * max(step for step in (1, 2, 5) if step * power <= target * (1 + 1e-9))
        pixels = length * (10 if self.known else 1) * self.pixels_per_unit
        return max(1, round(pixels)), f"{length:g} {'nm' if self.known else 'voxels'}"


def read_plane(volume: Volume, cut: Cut, place: float) -> Plane:
    """Read one plane at a relative place (0 to 1) along the axis across it.

    Returns
    -------
    Plane
        (y, x), (z, x) or (z, y), of the volume's type.

    Raises
    ------
    InputError
        The volume cannot be read.
    """
    depth, height, width = volume.info.shape
    spans = [Span(0, depth), Span(0, height), Span(0, width)]
    axis = {"xy": 0, "xz": 1, "yz": 2}[cut]
    index = min(int(place * volume.info.shape[axis]), volume.info.shape[axis] - 1)
    spans[axis] = Span(index, index + 1)
    return volume.read(*spans).squeeze(axis)


def grey_image(plane: Plane, low: float, high: float) -> Image.Image:
    """Return a plane in grey, a pixel a voxel: black from ``low`` down, white from ``high`` up."""
    values = (np.nan_to_num(plane.astype(np.float32)) - low) / max(high - low, 1e-30)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def draw_outline(panel: Image.Image, inside: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Colour the pixels of a mask that have a neighbour outside of it.

    Parameters
    ----------
    panel
        RGB; drawn on.
    inside
        Plane of the mask, of any size.
    colour
        Red, green, blue, 0 to 255.
    """
    from scipy import ndimage

    covered = _covered(panel, inside)
    edge = covered & ~ndimage.binary_erosion(covered, np.ones((3, 3)), border_value=1)
    panel.paste(colour, mask=Image.fromarray(edge.astype(np.uint8) * 255))


def draw_tint(panel: Image.Image, inside: npt.NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Lay a colour over the pixels of a mask; the grey beneath stays visible.

    Parameters
    ----------
    panel, inside, colour
        As :func:`draw_outline` takes them.
    """
    panel.paste(colour, mask=Image.fromarray(_covered(panel, inside).astype(np.uint8) * _TINT_STRENGTH))


def draw_scale_bar(panel: Image.Image, scale: PanelScale) -> None:
    """Draw a scale bar and its length into the lower right corner."""
    pixels, text = scale.bar()
    draw = ImageDraw.Draw(panel)
    right, bottom = panel.width - 10, panel.height - 10
    draw.rectangle((right - pixels - 1, bottom - 5, right, bottom), fill=_WHITE, outline=(0, 0, 0))
    left = right - pixels / 2 - draw.textlength(text, font=_font()) / 2
    draw_text(panel, (min(left, panel.width - 10 - draw.textlength(text, font=_font())), bottom - 8 - _FONT_SIZE), text)


def draw_text(panel: Image.Image, at: tuple[float, float], text: str) -> None:
    """Write a line of text, its upper left corner ``at`` x and y."""
    draw = ImageDraw.Draw(panel)
    # A dark rim keeps it legible on light ground.
    draw.text(at, text, font=_font(), fill=_WHITE, stroke_width=2, stroke_fill=(0, 0, 0))


def _covered(panel: Image.Image, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which pixels of a panel a mask covers."""
    grey = Image.fromarray(inside.astype(np.uint8) * 255)
    shrunk = panel.width < grey.width or panel.height < grey.height
    scaled = grey.resize(panel.size, Image.Resampling.BOX if shrunk else Image.Resampling.NEAREST)
    covered: npt.NDArray[np.bool_] = np.asarray(scaled) > 255 * _LEAST_COVER
    return covered


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_FONT_SIZE)
