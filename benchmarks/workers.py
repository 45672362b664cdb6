"""Throughput by number of workers: the same tiled run on one worker process, on two, and so on.

Every measurement is a fresh process that starts the workers (one single-threaded process per device), lets each load
the model with a small run, and then times a whole run (both stages, profile etsam-v2, seeded weights): measuring
intensities, stages, mask. Rounds take the numbers of workers in turn; ratios are taken within a round.

    python benchmarks/workers.py                                    # 1 and 2 workers on the CPU, one thread each
    python benchmarks/workers.py --devices cuda:0,cuda:1,cuda:2,cuda:3 --model sam2.1_hiera_b+ --precision auto
    python benchmarks/workers.py --windows 2 --model demo-256 --depth 256  # one tile in repaired windows
    python benchmarks/workers.py --follow --model demo-256 --depth 128     # one tile, stage 2 a slab behind stage 1

With ``--windows`` and ``--follow`` the tomogram is a phantom, and weights and settings are the model's own (with
``--follow`` but for stage 2's prompt, ``zero``), since the speed of repairs depends on both. One worker walks through
one window, one stage after the other.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
from measure import in_fresh_process, peak_bytes, save, table


def run_once(
    devices: list[str], model: str, precision: str, tiles: int, windows: int, depth: int, threads: int, follow: int
) -> dict[str, Any]:
    """Run on these devices, one worker each, in this process."""
    import numpy as np
    import torch
    import zarr
    from throughput import write_weights

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.device import choose_precision
    from etsam_zarr.ledger import REDONE, Ledger
    from etsam_zarr.modelspec import choose_model
    from etsam_zarr.phantom.store import write_phantom
    from etsam_zarr.phantom.volume import PhantomSettings
    from etsam_zarr.pipeline import RunSummary, run
    from etsam_zarr.plan import DEFAULT_CONTEXT, DEFAULT_TOLERANCE, Seams, cut_windows, plan_run
    from etsam_zarr.run_request import RunRequest
    from etsam_zarr.sources import open_volume
    from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH
    from etsam_zarr.workers.cluster import local_cluster
    from etsam_zarr.workers.runtime import DaskRuntime

    settings = resolve_settings("etsam-v2", tiling="tiles" if tiles > 1 else "whole")
    on_phantom = follow or windows > 1
    windows = windows if len(devices) > 1 else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if on_phantom:
            spec = choose_model(model)
            changes = {"stage2_prompt": "zero"} if follow else {}
            settings = resolve_settings(None, model_settings=spec.settings, tiling="whole", **changes)
        else:
            first, second = write_weights(model, folder)
            spec = choose_model(model, stage1_checkpoint=first, stage2_checkpoint=second)
        edge = spec.config.image_size
        size = edge + (tiles - 1) * (edge - edge // 8)
        # Workers see no other GPU than their own.
        where = torch.device("cuda:0" if devices[0].startswith("cuda") else "cpu")
        computed_in = choose_precision(precision, where)  # type: ignore[arg-type]

        def volume_of(slices: int, label: str) -> Path:
            path = folder / f"{label}.zarr"
            if on_phantom:
                return write_phantom(path, PhantomSettings((slices, edge, edge), seed=800_007, snr=0.5))
            noise = zarr.create_array(path, shape=(slices, edge, size), chunks=(16, 256, 256), dtype="float32")
            generator = np.random.default_rng(0)
            for z in range(0, slices, 16):
                noise[z : z + 16] = generator.normal(size=(min(16, slices - z), edge, size)).astype(np.float32)
            return path

        def run_on(runtime: DaskRuntime, slices: int, count: int, label: str) -> tuple[float, RunSummary]:
            with open_volume(volume_of(slices, label)) as volume:
                spans = cut_windows(slices, count, unit=LOGIT_CHUNK_DEPTH) if count > 1 else None
                plan = plan_run(
                    volume.info.shape, settings, spec.config, voxel_bytes=4, windows=spans,
                    seams=Seams(DEFAULT_CONTEXT, DEFAULT_TOLERANCE) if spans else None,
                )  # fmt: skip
                request = RunRequest(plan, settings, spec, computed_in, where)
                begun = time.perf_counter()
                summary = run(volume, folder / f"{label}.etsam.zarr", request, runtime=runtime)
                return time.perf_counter() - begun, summary

        begun = time.perf_counter()
        with local_cluster(devices, threads=threads) as client:
            runtime = DaskRuntime(client)
            if windows > 1:
                run_on(runtime, LOGIT_CHUNK_DEPTH * len(devices), len(devices), "warm")
            else:
                run_on(runtime, 2 * LOGIT_CHUNK_DEPTH if follow else 2, 1, "warm")
            start_seconds = time.perf_counter() - begun
            seconds, summary = run_on(runtime, depth, windows, "timed")
            peaks = client.run(peak_bytes)
        ledger = Ledger(summary.store.path / "ledger")
        if ledger.finished(REDONE):
            raise click.ClickException("Stage 2 was computed twice: this measures nothing.")
        stages = sum((ledger.finished(f"stage{stage}") or {})["seconds"] for stage in (1, 2))
    return {
        "workers": len(devices), "devices": devices, "precision": computed_in, "tiles": tiles, "windows": windows,
        "seconds": seconds, "stage_seconds": stages, "start_seconds": start_seconds,
        "tile_slices_per_second": tiles * depth / seconds, "worker_peak_bytes": sorted(peaks.values()),
    }  # fmt: skip


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn measurements into rows of a table: medians over rounds, ratios taken within a round."""
    counts = sorted({result["workers"] for result in found})
    by_round: dict[int, dict[int, dict[str, Any]]] = {}
    for result in found:
        by_round.setdefault(result["round"], {})[result["workers"]] = result
    rows = []
    for count in counts:
        own = [results[count] for results in by_round.values()]
        ratios = [
            results[counts[0]]["seconds"] / results[count]["seconds"] for results in by_round.values()
        ]  # fmt: skip
        peaks = [peak for result in own for peak in result["worker_peak_bytes"]]
        rate = statistics.median(result["tile_slices_per_second"] for result in own)
        # Stages that run at the same time are not added up.
        shares = [min(1, result["stage_seconds"] / result["seconds"]) for result in own]
        rows.append(
            {
                "workers": count,
                "slices/s (of a tile, both stages)": f"{rate:.3g}",
                "times one worker": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                "in the stages": f"{statistics.median(shares):.0%}",
                "peak MiB of a worker": f"{min(peaks) / 2**20:.0f} to {max(peaks) / 2**20:.0f}",
            }
        )
    return rows


@click.command()
@click.option("--devices", default="cpu,cpu", show_default=True, help="Of the workers; the first 1, 2, ... are taken.")
@click.option("--counts", default=None, help="Numbers of workers, such as 1,2,4. [default: 1, 2, 4, ... and all]")
@click.option("--model", default="seeded-256", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--tiles", default=4, show_default=True, help="Tiles in a row.")
@click.option("--windows", default=1, show_default=True, help="More than 1: one tile in so many windows.")
@click.option("--follow", is_flag=True, help="One tile in one window: stage 2 follows stage 1 on the second worker.")
@click.option("--depth", default=48, show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads of a worker.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--name", default=None, help="Of the result file.")
@click.option("--child", nargs=8, type=str, hidden=True)
def main(
    devices: str, counts: str | None, model: str, precision: str, tiles: int, windows: int, follow: bool, depth: int,
    threads: int, rounds: int, name: str | None, child: tuple[str, ...] | None,
) -> None:  # fmt: skip
    """Measure, print a table, and save the result."""
    if child is not None:
        where, model, precision, *numbers = child
        print(json.dumps(run_once(where.split(","), model, precision, *(int(number) for number in numbers))))
        return
    everyone = devices.split(",")
    doubled = [2**power for power in range(10) if 2**power < len(everyone)]
    chosen = [int(count) for count in counts.split(",")] if counts else [*doubled, len(everyone)]
    tiles = 1 if windows > 1 or follow else tiles
    found = []
    for number in range(rounds):
        # The other way round every other time, so that a drift of the machine favours nobody.
        for count in chosen if number % 2 == 0 else chosen[::-1]:
            arguments = (",".join(everyone[:count]), model, precision, tiles, windows, depth, threads, int(follow))
            found.append({"round": number, **in_fresh_process(__file__, *arguments)})
            print(f"round {number + 1}, {count} workers: {found[-1]['seconds']:.1f} s", flush=True)
    print(table(rows_of(found)))
    kind = devices.partition(",")[0].partition(":")[0]
    mode = "follow" if follow else "windows" if windows > 1 else "tiles"
    label = name or f"workers-{Path(model).name}-{kind}-{mode}"
    load = psutil.getloadavg()
    profile = "the model's own, stage 2 prompt zero" if follow else "etsam-v2"
    print(save(label, found, model=model, depth=depth, threads=threads, profile=profile, tiles=tiles, windows=windows,
               follow=follow, load_average=[round(figure, 1) for figure in load]))  # fmt: skip


if __name__ == "__main__":
    main()
