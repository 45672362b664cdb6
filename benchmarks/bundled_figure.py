"""Draws the model card's figure from finished runs: a slice, its truth, and what each stage makes of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from etsam_zarr.bundled import BUNDLED_SETTINGS
from etsam_zarr.geometry import Span
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores
from etsam_zarr.sources import open_volume

FIGURE = Path(__file__).parents[1] / "docs" / "bundled-model.png"
MOST_BYTES = 400_000
_WHITE, _MISSED, _WRONG = (255, 255, 255), (0, 150, 255), (255, 140, 0)
_GAP, _HEAD = 6, 20
# Fewer greys than 256 compress noise better, and nobody sees it.
_GREYS = 32

Panel = npt.NDArray[np.uint8]


def draw_figure(rows: list[tuple[str, Path]], *, out: Path = FIGURE) -> Path:
    """Draw a row for each phantom, whose run lies beside it: its slice with most membrane of those not prompted."""
    titles = ["slice", "truth", "stage 1", "stage 2"]
    drawn = [(name, _panels(phantom)) for name, phantom in rows]
    height, width = drawn[0][1][0].shape[:2]
    sheet = Image.new("RGB", (4 * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _HEAD), (24, 24, 24))
    for row, (name, panels) in enumerate(drawn):
        for column, panel in enumerate(panels):
            place = (_GAP + column * (width + _GAP), _HEAD + row * (height + _GAP))
            sheet.paste(Image.fromarray(panel), place)
            if column == 0:
                _write(sheet, (place[0] + 4, place[1] + 2), name)
    for column, title in enumerate(titles):
        _write(sheet, (_GAP + column * (width + _GAP) + 4, 2), title)
    data = io.BytesIO()
    sheet.save(data, format="PNG", optimize=True)
    if data.tell() > MOST_BYTES:
        raise SystemExit(f"The figure has {data.tell()} bytes, more than {MOST_BYTES}: draw fewer rows.")
    out.write_bytes(data.getvalue())
    return out


def _panels(phantom: Path) -> list[Panel]:
    store = RunStore.open(phantom.with_name(f"{phantom.stem}.etsam.zarr"))
    prompted = {z for slices in store.record["prompted"].values() for z in slices}
    with open_volume(phantom / "labels" / "membranes") as truth, open_volume(phantom) as volume:
        cover = [
            0 if z in prompted else int(np.count_nonzero(truth.read(Span(z, z + 1)))) for z in range(store.shape[0])
        ]
        span = Span(int(np.argmax(cover)), int(np.argmax(cover)) + 1)
        truly = truth.read(span)[0] > 0
        grey = _grey(volume.read(span)[0])
    found = [final_scores(store, stage).read(span)[0] > BUNDLED_SETTINGS.logit_threshold for stage in (1, 2)]
    return [grey, _compared(truly, truly), *(_compared(mask, truly) for mask in found)]


def _grey(plane: npt.NDArray[np.generic]) -> Panel:
    values = plane.astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    steps = ((values - low) / (high - low)).clip(0, 1) * (_GREYS - 1)
    grey = (steps.round() * (255 / (_GREYS - 1))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _compared(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Panel:
    panel = np.zeros((*truth.shape, 3), np.uint8)
    panel[found & truth] = _WHITE
    panel[~found & truth] = _MISSED
    panel[found & ~truth] = _WRONG
    return panel


def _write(sheet: Image.Image, at: tuple[float, float], text: str) -> None:
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(sheet).text(at, text, font=font, fill=_WHITE, stroke_width=2, stroke_fill=(0, 0, 0))
