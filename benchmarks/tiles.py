"""Slices per second of runs in 1, 4 and 9 tiles.

Each measurement is a fresh process: both stages with profile etsam-v2 on noise whose slices are as large as that many
tiles of the model with the default overlap, read from Zarr. A tile costs what a whole slice of the model's image size
costs; what tiles add is reading their neighbours' logits and blending.

    python benchmarks/tiles.py                     # seeded-256, float32
    python benchmarks/tiles.py --model sam2.1_hiera_b+ --device cuda:0 --precision auto
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from measure import in_fresh_process, peak_bytes, save, table

ACROSS = (1, 2, 3)
"""Tiles along either side of a slice."""


def run_once(model: str, across: int, depth: int, device: str, precision: str) -> dict[str, Any]:
    """Run in ``across`` times ``across`` tiles, in this process."""
    import numpy as np
    import torch
    import zarr

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.device import choose_precision
    from etsam_zarr.geometry import Span
    from etsam_zarr.modelspec import choose_model
    from etsam_zarr.pipeline import run
    from etsam_zarr.plan import plan_run
    from etsam_zarr.run_request import RunRequest
    from etsam_zarr.scores import final_scores
    from etsam_zarr.sources import open_volume

    settings, spec, where = resolve_settings("etsam-v2", tiling="tiles"), choose_model(model), torch.device(device)
    edge = spec.config.image_size
    size = edge + (across - 1) * (edge - edge // 8)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "noise.zarr"
        noise = zarr.create_array(source, shape=(depth, size, size), chunks=(16, 256, 256), dtype="float32")
        generator = np.random.default_rng(0)
        for z in range(0, depth, 16):
            noise[z : z + 16] = generator.normal(size=(min(16, depth - z), size, size)).astype(np.float32)
        with open_volume(source) as volume:
            plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4)
            request = RunRequest(plan, settings, spec, choose_precision(precision, where), where)  # type: ignore[arg-type]
            begun = time.perf_counter()
            summary = run(volume, Path(name) / "run.etsam.zarr", request)
            seconds = time.perf_counter() - begun
        scores = final_scores(summary.store)
        begun = time.perf_counter()
        for _ in scores.planes(Span(0, depth)):
            pass
        blending = time.perf_counter() - begun
    return {
        "tiles": len(plan.tiles), "size": size, "seconds": seconds, "model_seconds": summary.model_seconds,
        "slices_per_second": depth / seconds, "tile_slices_per_second": depth * len(plan.tiles) / seconds,
        "blending_seconds_per_slice": blending / depth, "peak_bytes": peak_bytes(),
    }  # fmt: skip


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn measurements into rows of a table: medians over rounds."""
    rows = []
    counts = sorted({result["tiles"] for result in found})
    one = statistics.median(result["tile_slices_per_second"] for result in found if result["tiles"] == counts[0])
    for count in counts:
        own = [result for result in found if result["tiles"] == count]
        rate = statistics.median(result["tile_slices_per_second"] for result in own)
        rows.append(
            {
                "tiles": count,
                "slice": f"{own[0]['size']} x {own[0]['size']}",
                "slices/s": f"{statistics.median(result['slices_per_second'] for result in own):.3g}",
                "tiles x slices/s": f"{rate:.3g}",
                "against one tile": f"{rate / one:.2f}",
                "outside the model": f"{statistics.median(1 - r['model_seconds'] / r['seconds'] for r in own):.1%}",
                "blending ms/slice": f"{statistics.median(r['blending_seconds_per_slice'] for r in own) * 1e3:.1f}",
                "peak MiB": round(max(result["peak_bytes"] for result in own) / 2**20),
            }
        )
    return rows


@click.command()
@click.option("--model", default="seeded-256", show_default=True)
@click.option("--depth", default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--child", nargs=5, type=str, hidden=True)
def main(
    model: str, depth: int, device: str, precision: str, rounds: int, child: tuple[str, ...] | None
) -> None:  # fmt: skip
    """Measure, print a table, and save the result."""
    if child is not None:
        model, across, slices, device, precision = child
        print(json.dumps(run_once(model, int(across), int(slices), device, precision)))
        return
    found = [
        {"round": number, **in_fresh_process(__file__, model, across, depth, device, precision)}
        for number in range(rounds)
        for across in ACROSS
    ]
    print(table(rows_of(found)))
    name = (
        "tiles" if (model, device) == ("seeded-256", "cpu") else f"tiles-{Path(model).name}-{device.partition(':')[0]}"
    )
    print(save(name, found, model=model, depth=depth, device=device, precision=precision, profile="etsam-v2"))


if __name__ == "__main__":
    main()
