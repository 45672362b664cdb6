"""Draws docs/tiles.png: the logits of four tiles, cut where they meet and blended, and the mask over the slice.

A simulated tomogram that no model was trained on; stage 1, whose logits stage 2 and its prompts are made from.

    python benchmarks/tiles_figure.py
    python benchmarks/tiles_figure.py --stage1-checkpoint a.pt --stage2-checkpoint b.pt
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from etsam_zarr.bundled import BUNDLED_SETTINGS
from etsam_zarr.config import resolve_settings
from etsam_zarr.geometry import Span
from etsam_zarr.model_config import BUNDLED_MODEL
from etsam_zarr.modelspec import choose_model
from etsam_zarr.phantom.store import write_phantom
from etsam_zarr.phantom.volume import PhantomSettings
from etsam_zarr.pipeline import run
from etsam_zarr.plan import plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores, upsample
from etsam_zarr.sources import open_volume
from etsam_zarr.stage_arrays import Stage
from etsam_zarr.tiling import TileGrid

FIGURE = Path(__file__).parents[1] / "docs" / "tiles.png"
MOST_BYTES = 300_000
SHAPE = (12, 480, 480)
SHOWN = 7
STAGE: Stage = 1
_OUTLINE, _BORDER = (255, 176, 0), (0, 150, 255)
_GREYS, _GAP, _HEAD = 24, 6, 20

Plane = npt.NDArray[np.float32]


def abutted(store: RunStore, grid: TileGrid, z: int) -> Plane:
    """Return the logits of a slice with every voxel from one tile alone: the one that weighs most there."""
    logits = np.zeros(store.shape[1:], dtype=np.float32)
    largest = np.zeros_like(logits)
    for tile in grid.tiles:
        window = tile.y.as_slice(), tile.x.as_slice()
        weights = np.outer(*grid.weights(tile))
        native = np.asarray(store.stage(STAGE).logits[tile.index, z], dtype=np.float32)
        own = weights > largest[window]
        logits[window][own] = upsample(native, tile.height, tile.width)[: tile.y.size, : tile.x.size][own]
        largest[window][own] = weights[own]
    return logits


def grey(plane: Plane, low: float, high: float) -> Image.Image:
    """Return a picture with few greys, which compress better; nobody sees it."""
    shade = ((plane.clip(low, high) - low) / (high - low) * (_GREYS - 1)).round() * (255 / (_GREYS - 1))
    return Image.fromarray(shade.astype(np.uint8)).convert("RGB")


def draw(volume: Plane, store: RunStore, grid: TileGrid, threshold: float) -> Image.Image:
    """Draw three panels: the slice with tiles and mask, logits cut, logits blended."""
    blended = final_scores(store, STAGE).read(Span(SHOWN, SHOWN + 1))[0]
    slices = grey(volume, *np.percentile(volume, (1, 99)))
    inside = blended > threshold
    outline = inside & ~ndimage.binary_erosion(inside)
    slices.paste(_OUTLINE, mask=Image.fromarray(outline.astype(np.uint8) * 255))
    borders = ImageDraw.Draw(slices)
    for tile in grid.tiles:
        borders.rectangle((tile.x.start, tile.y.start, tile.x.stop - 1, tile.y.stop - 1), outline=_BORDER)
    panels = [slices, grey(abutted(store, grid, SHOWN), -6, 6), grey(blended, -6, 6)]
    titles = [
        f"{len(grid.tiles)} tiles of {grid.edge} (blue), what was found (orange)", "logits, tiles side by side",
        "logits, blended",
    ]  # fmt: skip
    width, height = slices.size
    sheet = Image.new("RGB", (3 * (width + _GAP) + _GAP, height + _GAP + _HEAD), (24, 24, 24))
    for column, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = _GAP + column * (width + _GAP)
        sheet.paste(panel, (left, _HEAD))
        ImageDraw.Draw(sheet).text((left, 3), title, font=ImageFont.load_default(size=13))
    return sheet


@click.command()
@click.option("--stage1-checkpoint", type=click.Path(path_type=Path))
@click.option("--stage2-checkpoint", type=click.Path(path_type=Path))
def main(stage1_checkpoint: Path | None, stage2_checkpoint: Path | None) -> None:
    """Simulate, run, draw."""
    spec = choose_model(BUNDLED_MODEL, stage1_checkpoint=stage1_checkpoint, stage2_checkpoint=stage2_checkpoint)
    settings = resolve_settings(model_settings=BUNDLED_SETTINGS)
    with tempfile.TemporaryDirectory() as name:
        phantom = write_phantom(Path(name) / "phantom.zarr", PhantomSettings(SHAPE, seed=800_012, snr=0.5))
        with open_volume(phantom) as volume:
            plan = plan_run(SHAPE, settings, spec.config, voxel_bytes=volume.info.dtype.itemsize)
            request = RunRequest(plan, settings, spec, "float32", torch.device("cpu"))
            store = run(volume, Path(name) / "run.etsam.zarr", request).store
            voxels = volume.read(Span(SHOWN, SHOWN + 1))[0].astype(np.float32)
        sheet = draw(voxels, store, plan.grid, settings.logit_threshold)
    data = io.BytesIO()
    sheet.quantize(64, dither=Image.Dither.NONE).save(data, format="PNG", optimize=True)
    if data.tell() > MOST_BYTES:
        raise SystemExit(f"The figure has {data.tell()} bytes, more than {MOST_BYTES}.")
    FIGURE.write_bytes(data.getvalue())
    print(FIGURE.name, data.tell(), "bytes")


if __name__ == "__main__":
    main()
