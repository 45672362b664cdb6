"""Peak memory of a run against depth, next to the plain loop that holds everything, and what ``plan`` projects.

Each measurement is a fresh process: both stages of the untrained model ``seeded-256`` on a volume of noise. The
reference is tests/reference.py, sam2's own predictor with all frames and results in memory, as ETSAM runs it.

    python benchmarks/memory.py [--depths 64,256,1024] [--size 256]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from measure import in_fresh_process, peak_bytes, save, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

MIB = 2**20
LOOPS = ("etsam-v2", "etsam-v1", "reference etsam-v2")
VOXEL_BYTES = 4


def make_volume(path: Path, depth: int, size: int) -> None:
    """Write noise slab by slab, so that making it does not count."""
    import numpy as np

    from etsam_zarr.mrc.write import MrcPlan, write_mrc

    generator = np.random.default_rng(0)
    slabs = (generator.normal(size=(1, size, size)).astype(np.float32) for _ in range(depth))
    write_mrc(path, MrcPlan((depth, size, size), np.dtype(np.float32), (10.0, 10.0, 10.0)), slabs)


def stream(path: Path, profile: str, folder: Path) -> dict[str, Any]:
    """Run the streamed implementation and project its memory."""
    import torch

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.memory import project
    from etsam_zarr.modelspec import choose_model
    from etsam_zarr.pipeline import run
    from etsam_zarr.plan import plan_run
    from etsam_zarr.run_request import RunRequest
    from etsam_zarr.sources import open_volume

    settings, model = resolve_settings(profile), choose_model("seeded-256")
    with open_volume(path) as volume:
        plan = plan_run(volume.info.shape, settings, model.config, voxel_bytes=VOXEL_BYTES)
        request = RunRequest(plan, settings, model, "float32", torch.device("cpu"))
        run(volume, folder / "run.etsam.zarr", request)
        peak = peak_bytes()
        projected = project(
            plan, model.config, volume.info, weights=model.weight_bytes(), on_host=True, half=False
        ).host
    return {"peak_bytes": peak, "projected_bytes": projected}


def hold_everything(path: Path, profile: str) -> dict[str, Any]:
    """Run the reference loop."""
    import mrcfile
    import reference

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.modelspec import choose_model

    settings, model = resolve_settings(profile), choose_model("seeded-256")
    predictors = model.build("cpu"), model.build("cpu")
    model.load(predictors[0], 1)
    model.load(predictors[1], 2)
    with mrcfile.open(path) as mrc:
        reference.two_stages(
            predictors,
            mrc.data,
            normalize_method=settings.normalize_method,
            stage1_prompt=settings.stage1_prompt,
            stage2_prompt=settings.stage2_prompt,
            grid_interval=settings.grid_interval,
            stage1_logit_threshold=settings.stage1_logit_threshold,
        )
    return {"peak_bytes": peak_bytes(), "projected_bytes": None}


def measure(loop: str, depth: int, size: int) -> dict[str, Any]:
    """Measure one loop at one depth, in this process."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "noise.mrc"
        make_volume(path, depth, size)
        result = (
            hold_everything(path, loop.removeprefix("reference "))
            if loop.startswith("reference")
            else stream(path, loop, Path(name))
        )
    return {"loop": loop, "depth": depth, **result}


def rows_of(found: list[dict[str, Any]], loops: tuple[str, ...]) -> list[dict[str, Any]]:
    """Turn measurements into rows of a table."""
    rows = []
    for loop in loops:
        own = [result for result in found if result["loop"] == loop]
        for result in own:
            projected = result["projected_bytes"]
            rows.append(
                {
                    "loop": loop,
                    "slices": result["depth"],
                    "peak MiB": round(result["peak_bytes"] / MIB),
                    "against the thinnest": f"{result['peak_bytes'] / own[0]['peak_bytes']:.3f}",
                    "plan MiB": "" if projected is None else round(projected / MIB),
                    "plan / peak": "" if projected is None else f"{projected / result['peak_bytes']:.2f}",
                }
            )
    return rows


@click.command()
@click.option("--depths", default="64,256,1024", show_default=True)
@click.option("--size", default=256, show_default=True, help="Edge of a slice in voxels.")
@click.option("--child", nargs=3, type=str, hidden=True)
def main(depths: str, size: int, child: tuple[str, str, str] | None) -> None:
    """Measure, print a table, and save the result."""
    if child is not None:
        loop, depth, edge = child
        print(json.dumps(measure(loop, int(depth), int(edge))))
        return
    found = [in_fresh_process(__file__, loop, depth, size) for loop in LOOPS for depth in map(int, depths.split(","))]
    print(table(rows_of(found, LOOPS)))
    print(save("memory", found, size=size, model="seeded-256", precision="float32"))


if __name__ == "__main__":
    main()
