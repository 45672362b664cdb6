"""Slices per second of a run against the plain loop that holds everything, with the same weights, in one call.

Both loops run both stages with profile etsam-v2, in turn, several times, each in a fresh process; ratios are taken
within a round. Reported besides: what share of the streamed run's time passes outside the model.

    python benchmarks/throughput.py                       # seeded-256, float32
    python benchmarks/throughput.py --model sam2.1_hiera_t --image-size 512 --depth 24 --precision auto
    python benchmarks/throughput.py --model sam2.1_hiera_b+ --device cuda:0 --precision auto --depth 64
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from measure import in_fresh_process, save, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def resized_config(model: str, image_size: int, folder: Path) -> str:
    """Return a config like ``model`` for another image size, as a file if need be."""
    from omegaconf import OmegaConf

    from etsam_zarr.model_config import read_model_config

    config = read_model_config(model)
    if image_size in (0, config.image_size):
        return model
    tree = dict(config.tree, image_size=image_size)
    cells = image_size // config.backbone_stride
    for attention in ("self_attention", "cross_attention"):
        tree["memory_attention"]["layer"][attention]["feat_sizes"] = [cells, cells]
    path = folder / "config.yaml"
    OmegaConf.save({"model": tree}, path)
    return str(path)


def write_weights(config: str, folder: Path) -> tuple[Path, Path]:
    """Write seeded weights for a config as two checkpoints."""
    import torch

    from etsam_zarr.model_config import read_model_config
    from etsam_zarr.sam.predictor import build_predictor
    from etsam_zarr.seeded import make_sensitive

    paths = folder / "stage1.pt", folder / "stage2.pt"
    for seed, path in enumerate(paths, start=1):
        predictor = build_predictor(read_model_config(config), None, seed=seed)
        make_sensitive(predictor)
        torch.save({"model": predictor.state_dict()}, path)
    return paths


def run_once(
    loop: str, model: str, image_size: int, depth: int, size: int, device: str, precision: str
) -> dict[str, Any]:
    """Time one loop in this process: reading the volume, loading weights, both stages, and what it makes of them.

    The streamed loop also stores logits, a mask with a pyramid, and a reduced copy of the volume.
    """
    import numpy as np
    import torch
    import zarr

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.device import choose_precision
    from etsam_zarr.modelspec import choose_model

    settings = resolve_settings("etsam-v2")
    where = torch.device(device)
    computed_in = choose_precision(precision, where)  # type: ignore[arg-type]
    if loop == "reference" and where.type == "cpu":
        computed_in = "float32"
    voxels = np.random.default_rng(0).normal(size=(depth, size, size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "noise.zarr"
        zarr.create_array(source, data=voxels, chunks=(16, 256, 256))
        config = resized_config(model, image_size, folder)
        first, second = write_weights(config, folder)
        spec = choose_model(config, stage1_checkpoint=first, stage2_checkpoint=second)
        model_seconds = None
        if loop == "reference":
            import reference

            begun = time.perf_counter()
            voxels = np.asarray(zarr.open_array(source, mode="r")[...])
            predictors = spec.build(where), spec.build(where)
            spec.load(predictors[0], 1)
            spec.load(predictors[1], 2)
            reference.two_stages(
                predictors, voxels, normalize_method=settings.normalize_method, stage1_prompt=settings.stage1_prompt,
                stage2_prompt=settings.stage2_prompt, grid_interval=settings.grid_interval,
                stage1_logit_threshold=settings.stage1_logit_threshold,
                autocast=computed_in == "bfloat16",
            )  # fmt: skip
            seconds = time.perf_counter() - begun
        else:
            from etsam_zarr.pipeline import run
            from etsam_zarr.plan import plan_run
            from etsam_zarr.run_request import RunRequest
            from etsam_zarr.sources import open_volume

            with open_volume(source) as volume:
                plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4)
                request = RunRequest(plan, settings, spec, computed_in, where)
                begun = time.perf_counter()
                summary = run(volume, folder / "run.etsam.zarr", request)
                seconds, model_seconds = time.perf_counter() - begun, summary.model_seconds
    peak = torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
    return {"loop": loop, "precision": computed_in, "seconds": seconds, "model_seconds": model_seconds,
            "slices_per_second": depth / seconds, "peak_device_bytes": peak}  # fmt: skip


@click.command()
@click.option("--model", default="seeded-256", show_default=True)
@click.option("--image-size", default=0, show_default=True, help="Another image size than the model's own.")
@click.option("--depth", default=256, show_default=True)
@click.option("--size", default=256, show_default=True, help="Edge of a slice in voxels.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="float32", show_default=True, help="Of the streamed run; the reference computes "
              "in float32 on a CPU and, as ETSAM, in bfloat16 on a GPU where this says auto or bfloat16.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True)
@click.option("--name", default=None, help="Of the result file.")
@click.option("--child", nargs=7, type=str, hidden=True)
def main(
    model: str, image_size: int, depth: int, size: int, device: str, precision: str, rounds: int, name: str | None,
    child: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Measure, print a table, and save the result."""
    if child is not None:
        loop, model, edge, slices, voxels, where, computed_in = child
        print(json.dumps(run_once(loop, model, int(edge), int(slices), int(voxels), where, computed_in)))
        return
    found = []
    for number in range(rounds):
        for loop in ("streamed", "reference"):
            result = in_fresh_process(__file__, loop, model, image_size, depth, size, device, precision)
            found.append({"round": number, **result})
    rows, ratios = [], []
    for number in range(rounds):
        streamed, reference = (result for result in found if result["round"] == number)
        ratios.append(streamed["slices_per_second"] / reference["slices_per_second"])
        rows.append(
            {
                "round": number,
                "streamed slices/s": f"{streamed['slices_per_second']:.3g} ({streamed['precision']})",
                "reference slices/s": f"{reference['slices_per_second']:.3g} ({reference['precision']})",
                "ratio": f"{ratios[-1]:.3f}",
                "outside the model": f"{1 - streamed['model_seconds'] / streamed['seconds']:.1%}",
            }
        )
    print(table(rows))
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f}")
    label = name or f"throughput-{Path(model).name}-{image_size or 'own'}-{device.partition(':')[0]}-{precision}"
    print(save(label, found, model=model, image_size=image_size, depth=depth, size=size, device=device,
               precision=precision, profile="etsam-v2", median_ratio=ratio))  # fmt: skip


if __name__ == "__main__":
    main()
