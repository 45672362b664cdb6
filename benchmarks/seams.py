"""How far windows computed at once are from one walk through the depth, before and after repair, and what it costs.

    python benchmarks/seams.py                              # the bundled model, etsam-v1 and etsam-v2
    python benchmarks/seams.py --model seeded-256           # the sensitive test model

A phantom is walked through once (stream mode); then its second window is computed on a guess, once per context. The
end of the first window is true, so a repair of the second goes through exactly what the walk stored: where it would
stop with any tolerance, and what would be stored then, follows without computing anything again. Stage 2 starts from
the true stage 1, so that each stage is seen by itself; ``--whole-runs`` checks the defaults by runs of the program, in
which stage 2 starts from a repaired stage 1.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from measure import save, table
from seam_runs import GuessedWindows, profile_settings, walked

from etsam_zarr.config import Settings
from etsam_zarr.ledger import Ledger
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.phantom.store import write_phantom
from etsam_zarr.phantom.volume import PhantomSettings
from etsam_zarr.plan import DEFAULT_CONTEXT, DEFAULT_TOLERANCE, Seams, cut_windows
from etsam_zarr.repair import REPAIR_SLAB, agrees
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores, upsample
from etsam_zarr.seams import seams as seams_of
from etsam_zarr.slabs import SlabValues
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, Stage

TOLERANCES = (0.0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
Mask = npt.NDArray[np.bool_]


def repair_stops(differences: tuple[tuple[float, float], ...], tolerance: float, horizon: int) -> tuple[int, bool]:
    """Return after how many slices a repair stops, and whether it agrees there."""
    for stop in range(REPAIR_SLAB, len(differences) + REPAIR_SLAB, REPAIR_SLAB):
        done = differences[:stop]
        if agrees(done, tolerance, horizon):
            return len(done), True
    return len(differences), False


def dice(one: Mask, other: Mask) -> float:
    """Return the Dice coefficient; 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def masks(logits: npt.NDArray[np.float32], threshold: float, height: int, width: int) -> Mask:
    """Return the full-resolution mask of native logits."""
    return np.stack([upsample(plane, height, width) > threshold for plane in logits])


def measured(
    true: SlabValues, guess: SlabValues, before: Mask, *, threshold: float, context: int, horizon: int, depth: int,
    shape: tuple[int, int],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield what each tolerance gives: for a second window with values ``true``, and the mask ``before`` it."""
    differences = true.differences(guess)
    others = np.maximum(np.abs(true.scores - guess.scores), np.abs(true.pointers - guess.pointers).max(axis=1))
    apart = np.abs(true.logits - guess.logits).reshape(len(differences), -1)
    true_mask, guess_mask = masks(true.logits, threshold, *shape), masks(guess.logits, threshold, *shape)
    whole = np.concatenate([before, true_mask])
    window = len(differences)
    profile = [
        {"distance": low, "max": float(apart[low:high].max()), "mean": float(apart[low:high].mean()),
         "score_and_pointer": float(others[low:high].max()),
         "dice": dice(true_mask[low:high], guess_mask[low:high])}
        for low, high in zip(DISTANCES, (*DISTANCES[1:], window), strict=True) if low < min(high, window)
    ]  # fmt: skip
    unrepaired = dice(whole, np.concatenate([before, guess_mask]))
    for tolerance in TOLERANCES:
        stop, agreed = repair_stops(differences, tolerance, horizon)
        mended = np.concatenate([before, true_mask[:stop], guess_mask[stop:]])
        recomputed = context + stop
        yield {
            "context": context, "tolerance": tolerance, "agreed": agreed, "repaired": stop, "recomputed": recomputed,
            "recomputed_share": recomputed / depth, "dice_before": unrepaired, "dice_after": dice(whole, mended),
            "max_after": float(apart[stop:].max(initial=0)), "mean_after": float(apart[stop:].mean()) if stop < window
            else 0.0, "speed_up": depth / (max(depth - window, context + window) + stop), "by_distance": profile,
        }  # fmt: skip


def stage_measurements(
    path: Path, store: RunStore, model: ModelSpec, settings: Settings, stage: Stage, contexts: list[int]
) -> list[dict[str, Any]]:
    """Measure one stage, all contexts and tolerances."""
    depth, height, width = store.shape
    first, second = cut_windows(depth, 2, unit=LOGIT_CHUNK_DEPTH)
    threshold = settings.logit_threshold if stage == 2 else settings.stage1_logit_threshold
    true = SlabValues.read(store.stage(stage), 0, second)
    before = masks(SlabValues.read(store.stage(stage), 0, first).logits, threshold, height, width)
    windows = GuessedWindows(path, store, model, settings, stage)
    found = []
    for context in contexts:
        begun = time.perf_counter()
        guess = windows.compute(second, context)
        click.echo(f"stage {stage}, context {context}: {time.perf_counter() - begun:.0f} s", err=True)
        found += [
            {"stage": stage, **row}
            for row in measured(
                true, guess, before, threshold=threshold, context=context, horizon=windows.horizon, depth=depth,
                shape=(height, width),
            )
        ]  # fmt: skip
    return found


def whole_run(path: Path, streamed: RunStore, store: Path, model: ModelSpec, settings: Settings) -> dict[str, Any]:
    """Run the program in two windows with the default context and tolerance; compare its final scores."""
    cut = walked(path, store, model, settings, Seams(DEFAULT_CONTEXT, DEFAULT_TOLERANCE))
    depth, counts, apart = streamed.shape[0], np.zeros(3, dtype=np.int64), 0.0
    threshold = settings.logit_threshold
    for one, other in zip(final_scores(streamed).planes_in_turn(), final_scores(cut).planes_in_turn(), strict=True):
        mine, theirs = one > threshold, other > threshold
        counts += [np.count_nonzero(mine & theirs), np.count_nonzero(mine), np.count_nonzero(theirs)]
        apart = max(apart, float(np.abs(one - other).max()))
    ledger = Ledger(cut.path / "ledger")
    recomputed = [seam.recomputed for stage in (1, 2) for seam in seams_of(cut, ledger, stage)]
    return {
        "context": DEFAULT_CONTEXT, "tolerance": DEFAULT_TOLERANCE, "recomputed": recomputed,
        "recomputed_share": sum(recomputed) / (2 * depth), "max_after": apart,
        "dice_after": float(2 * counts[0] / (counts[1] + counts[2])) if counts[1] + counts[2] else math.nan,
    }  # fmt: skip


def rows_of(measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table of what context and tolerance give."""
    return [
        {
            "profile": row["profile"], "stage": row["stage"], "context": row["context"],
            "tolerance": f"{row['tolerance']:g}",
            "slices recomputed": f"{row['recomputed']} ({row['recomputed_share']:.1%})",
            "speed-up": f"{row['speed_up']:.2f}", "Dice before": f"{row['dice_before']:.5f}",
            "Dice after": f"{row['dice_after']:.5f}", "max after": f"{row['max_after']:.3g}",
            "mean after": f"{row['mean_after']:.2g}",
        }
        for row in measurements
    ]  # fmt: skip


def told(measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the measurements that the documentation shows: all tolerances without context, the default with any."""
    return [
        row
        for row in measurements
        if (row["context"] == 0 and row["tolerance"] != TOLERANCES[1]) or row["tolerance"] == DEFAULT_TOLERANCE
    ]


def whole_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table of whole runs."""
    return [
        {
            "profile": run["profile"],
            "context": run["context"],
            "tolerance": f"{run['tolerance']:g}",
            "slices recomputed in stage 1, 2": ", ".join(map(str, run["recomputed"])),
            "of all": f"{run['recomputed_share']:.1%}",
            "Dice of the final masks": f"{run['dice_after']:.5f}",
            "largest difference": f"{run['max_after']:.3g}",
        }
        for run in runs
    ]


def distance_rows(measurements: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table of how far guesses are from the walk, by distance from the window's edge."""
    return [
        {
            "profile": row["profile"], "stage": row["stage"], "context": row["context"],
            **{f"{part['distance']} on": f"{part['max']:.2g} / {part['mean']:.1g}" for part in row["by_distance"]},
        }
        for row in measurements if row["tolerance"] == 0
    ]  # fmt: skip


@click.command()
@click.option("--model", default="demo-256", show_default=True)
@click.option("--stage1", type=click.Path(path_type=Path), help="Other weights of stage 1 than the model's own.")
@click.option("--stage2", type=click.Path(path_type=Path), help="Other weights of stage 2 than the model's own.")
@click.option("--profiles", default="etsam-v1,etsam-v2", show_default=True)
@click.option("--contexts", default="0,4,8,16,32", show_default=True)
@click.option("--depth", default=256, show_default=True)
@click.option("--size", default=256, show_default=True, help="Edge of a slice in voxels.")
@click.option("--snr", default=0.1, show_default=True)
@click.option("--seed", default=910_000, show_default=True)
@click.option("--whole-runs", is_flag=True, help="Run the program in two windows with the defaults as well.")
@click.option("--name", help="Of the result file. [default: seams-MODEL]")
def main(
    model: str, stage1: Path | None, stage2: Path | None, profiles: str, contexts: str, depth: int, size: int,
    snr: float, seed: int, whole_runs: bool, name: str | None,
) -> None:  # fmt: skip
    """Measure, print tables, and save the result."""
    lengths = [int(context) for context in contexts.split(",")]
    spec = choose_model(model, stage1_checkpoint=stage1, stage2_checkpoint=stage2)
    measurements: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.zarr"
        write_phantom(path, PhantomSettings(shape=(depth, size, size), seed=seed, snr=snr))
        for profile in profiles.split(","):
            settings = profile_settings(profile, spec)
            store = walked(path, Path(folder) / f"{profile}.etsam.zarr", spec, settings)
            # Stage 1 is the same in both profiles, but for the threshold of its mask.
            stages: tuple[Stage, ...] = (1, 2) if not measurements else (2,)
            for stage in stages:
                measurements += [
                    {"profile": profile, **row}
                    for row in stage_measurements(path, store, spec, settings, stage, lengths)
                ]
            if whole_runs:
                cut = Path(folder) / f"{profile}-cut.etsam.zarr"
                runs.append({"profile": profile, **whole_run(path, store, cut, spec, settings)})
    click.echo(table(distance_rows(measurements)))
    click.echo(table(rows_of(measurements)))
    if runs:
        click.echo(table(whole_rows(runs)))
    click.echo(save(name or f"seams-{Path(model).stem}", measurements, model=model, depth=depth, size=size, snr=snr,
                    seed=seed, whole_runs=runs, weights=[spec.digest(1), spec.digest(2)]))  # fmt: skip


if __name__ == "__main__":
    main()
