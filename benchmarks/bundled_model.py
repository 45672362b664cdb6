"""Scores the bundled model on phantoms that it has never seen, with and without its memory, and fills the model card.

    python benchmarks/bundled_model.py --training demo-training

Writes ``results/bundled-model.json``, the figure ``docs/bundled-model.png``, and the tables of ``docs/model-card.md``.
Scores come from whole runs (``etsam-zarr run``, float32) with the model's own settings: Dice, precision and recall over
all slices but the prompted ones, which show their prompt. The seeds of these phantoms, from 900000 on, are used nowhere
else. The memory is cut in the library's own walk.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from bundled_figure import draw_figure
from etsam_zarr_cli.main import main as etsam_zarr
from measure import save
from model_card import RESULT, fill_card

from etsam_zarr.bundled import BUNDLED_SETTINGS, bundled_paths
from etsam_zarr.checkpoint import read_checkpoint
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.model_config import BUNDLED_MODEL, ModelConfig, read_model_config
from etsam_zarr.phantom.store import write_phantom
from etsam_zarr.phantom.volume import PhantomSettings
from etsam_zarr.prompts import fixed_prompt, prompted_slices
from etsam_zarr.runstore import RunStore
from etsam_zarr.sam.frames import StreamedFrames
from etsam_zarr.sam.predictor import build_predictor
from etsam_zarr.sam.propagation import Propagation, SliceOutput
from etsam_zarr.scores import final_scores
from etsam_zarr.sources import open_volume
from etsam_zarr.stage_arrays import Stage
from etsam_zarr.training.pairs import Pair, TrainingVolume
from etsam_zarr.training.predict import compute_stage1
from etsam_zarr.training.settings import RECIPES

FIRST_SEED = 900_000
SNRS = (0.5, 0.2, 0.1)
Memory = Literal["none", "prompted", "full"]
Weights = Mapping[str, torch.Tensor]


def held_out(work: Path, *, snr: float, number: int, shape: Shape3) -> Path:
    """Make (or find) a held-out phantom."""
    path = work / f"{'x'.join(map(str, shape))}-snr{snr:g}-{number}.zarr"
    if not path.exists():
        write_phantom(path, PhantomSettings(shape=shape, seed=FIRST_SEED + number, snr=snr))
    return path


def segment(phantom: Path, weights: tuple[Path, Path]) -> RunStore:
    """Run both stages."""
    store = phantom.with_name(f"{phantom.stem}.etsam.zarr")
    command = ["run", str(phantom), "-o", str(store), "--model", BUNDLED_MODEL, "--precision", "float32", "--overwrite"]
    for stage, path in enumerate(weights, start=1):
        command += [f"--stage{stage}-checkpoint", str(path)]
    code = etsam_zarr(command)
    if code:
        raise SystemExit(code)
    return RunStore.open(store)


def score(store: RunStore, phantom: Path, stage: Stage) -> dict[str, float]:
    """Compare a stage's logits with the truth, on all slices that no stage was prompted on."""
    prompted = {z for slices in store.record["prompted"].values() for z in slices}
    view = final_scores(store, stage)
    both = found = true = 0
    with open_volume(phantom / "labels" / "membranes") as truth:
        for span in cut(Span(0, store.shape[0]), 16):
            counted = [z - span.start for z in range(span.start, span.stop) if z not in prompted]
            mask = view.read(span)[counted] > BUNDLED_SETTINGS.logit_threshold
            truly = truth.read(span)[counted] > 0
            both += int(np.count_nonzero(mask & truly))
            found += int(np.count_nonzero(mask))
            true += int(np.count_nonzero(truly))
    return {
        "dice": 2 * both / max(found + true, 1),
        "precision": both / max(found, 1),
        "recall": both / max(true, 1),
        "truth_share": true / (store.shape[0] - len(prompted)) / store.shape[1] / store.shape[2],
    }


def dice_with_memory(
    config: ModelConfig, weights: Weights, volume: TrainingVolume, memory: Memory, stage: Stage
) -> float:
    """Return a stage's Dice on all slices but the prompted ones, with some of the memory cut.

    ``none`` gives every slice the embedding that SAM 2 uses where there is no memory; ``prompted`` forgets every
    slice but the prompted ones; ``full`` is a run.
    """
    predictor: Any = build_predictor(config, weights, origin=f"stage {stage}")
    if memory == "none":

        def alone(current_vision_feats: list[torch.Tensor], feat_sizes: list[Any], **_: object) -> torch.Tensor:
            features = current_vision_feats[-1] + predictor.no_mem_embed
            shaped: torch.Tensor = features.permute(1, 2, 0).view(features.shape[1], features.shape[2], *feat_sizes[-1])
            return shaped

        predictor._prepare_memory_conditioned_features = alone
    depth, height, width = volume.shape
    settings = BUNDLED_SETTINGS
    method = settings.stage1_prompt if stage == 1 else settings.stage2_prompt
    prompted = prompted_slices(method, depth, settings.grid_interval)
    frames = StreamedFrames(volume.input_planes, depth=depth, image_size=config.image_size, slab=16)
    walk = Propagation(predictor, frames, height=height, width=width)
    for z in prompted:
        if method == "stage1_partial":
            walk.prompt(z, volume.stage1_logits(Span(z, z + 1))[0] > settings.stage1_logit_threshold)
        else:
            walk.prompt(z, fixed_prompt(method, height, width, settings.grid_interval))
    both = sizes = 0

    def count(output: SliceOutput) -> None:
        nonlocal both, sizes
        if output.z not in prompted:
            mask = output.full.numpy() > settings.logit_threshold
            (truth,) = volume.planes(Span(output.z, output.z + 1))[1]
            both += int(np.count_nonzero(mask & truth))
            sizes += int(np.count_nonzero(mask) + np.count_nonzero(truth))
        if memory != "full":
            walk._outputs["non_cond_frame_outputs"].clear()

    walk.walk(Span(0, depth), count)
    return 2 * both / max(sizes, 1)


def scores_of_runs(work: Path, weights: tuple[Path, Path], cases: list[tuple[float, int, Shape3]]) -> list[Any]:
    """Score both stages of whole runs."""
    rows = []
    for snr, number, shape in cases:
        phantom = held_out(work, snr=snr, number=number, shape=shape)
        begun = time.perf_counter()
        store = segment(phantom, weights)
        seconds = time.perf_counter() - begun
        stages = {f"stage{stage}": score(store, phantom, stage) for stage in (1, 2)}
        rows.append(
            {"what": "held-out", "snr": snr, "shape": shape, "seed": FIRST_SEED + number, "seconds": seconds, **stages}
        )
        print(f"SNR {snr:g}, {shape}: Dice {stages['stage1']['dice']:.3f}, {stages['stage2']['dice']:.3f}", flush=True)
    return rows


def scores_of_memory(work: Path, weights: tuple[Path, Path], phantoms: list[Path], snr: float) -> list[Any]:
    """Score both stages with their memory cut."""
    config = read_model_config(BUNDLED_MODEL)
    states = [read_checkpoint(path) for path in weights]
    training = dataclasses.replace(RECIPES["inference"], model=BUNDLED_MODEL)
    kinds: tuple[Memory, ...] = ("none", "prompted", "full")
    rows = []
    stages: tuple[Stage, ...] = (1, 2)
    with tempfile.TemporaryDirectory(dir=work) as output:
        for phantom in phantoms:
            volume = TrainingVolume(Pair(str(phantom)), normalize_method="percentile", facts_folder=work / "facts")
            for stage in stages:
                if stage == 2:
                    volume.use_stage1(*compute_stage1(config, states[0], volume, training, Path(output)))
                found = {kind: dice_with_memory(config, states[stage - 1], volume, kind, stage) for kind in kinds}
                rows.append({"what": "memory", "snr": snr, "stage": stage, "phantom": phantom.stem, "dice": found})
                print(f"{phantom.stem}, stage {stage}: {found}", flush=True)
    return rows


def training_of(folder: Path) -> list[dict[str, Any]]:
    """Sum up the logs of a training, part by part: epochs, steps, hours over all restarts, best validation Dice.

    Of parts that are not in the folder, because only the later ones were made anew, the last result file's are kept.
    """
    kept = json.loads(RESULT.read_text())["settings"]["training"] if RESULT.exists() else None
    summary = {(row["part"], row["stage"]): row for row in kept or ()}
    for log in sorted(folder.glob("*/stage[12]/log.csv")):
        with log.open(newline="") as file:
            rows = list(csv.DictReader(file))
        seconds = [float(row["seconds"]) for row in rows]
        # The clock starts at 0 again where a training was resumed.
        restarts = [before for before, after in itertools.pairwise(seconds) if after < before]
        part, stage = log.parts[-3], int(log.parts[-2].removeprefix("stage"))
        summary[part, stage] = {
            "part": part,
            "stage": stage,
            "epochs": int(rows[-1]["epoch"]),
            "steps": int(rows[-1]["step"]),
            "hours": (sum(restarts) + seconds[-1]) / 3600,
            "best_validation_dice": max(float(row["dice"]) for row in rows),
            "first_loss": float(rows[0]["loss_total"]),
            "last_loss": float(rows[-1]["loss_total"]),
        }
    return [summary[key] for key in sorted(summary)]


@click.command(context_settings={"show_default": True})
@click.option("--stage1", type=click.Path(path_type=Path), help="Weights of stage 1. [default: the bundled ones]")
@click.option("--stage2", type=click.Path(path_type=Path), help="Weights of stage 2. [default: the bundled ones]")
@click.option(
    "--training", type=click.Path(path_type=Path), help="Folder of 'make bundled-model', for its time and steps."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder that keeps phantoms and runs. [default: none]")
@click.option("--phantoms", default=5, help="Per signal-to-noise ratio.")
@click.option("--shape", nargs=3, type=int, default=(32, 256, 256), help="Of these, z y x.")
@click.option("--large/--no-large", default=True, help="Also one larger volume.")
@click.option("--large-shape", nargs=3, type=int, default=(128, 512, 512), help="Of that, z y x.")
@click.option("--card/--no-card", default=True, help="Write result file, figure and model card.")
def main(
    stage1: Path | None, stage2: Path | None, training: Path | None, work: Path | None, phantoms: int, shape: Shape3,
    large: bool, large_shape: Shape3, card: bool,
) -> None:  # fmt: skip
    """Score the bundled model, or given weights of its architecture."""
    begun = time.perf_counter()
    bundled = bundled_paths()
    weights = (stage1 or bundled[0], stage2 or bundled[1])
    cases = [(snr, number, shape) for snr in SNRS for number in range(phantoms)]
    if large:
        cases.append((SNRS[0], 100, large_shape))
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = scores_of_runs(folder, weights, cases)
        noisiest = [held_out(folder, snr=SNRS[-1], number=number, shape=shape) for number in range(phantoms)]
        found += scores_of_memory(folder, weights, noisiest, SNRS[-1])
        if not card:
            return
        first = [held_out(folder, snr=snr, number=0, shape=shape) for snr in SNRS]
        figure = draw_figure([(f"SNR {snr:g}", phantom) for snr, phantom in zip(SNRS, first, strict=True)])
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
        path = save(
            "bundled-model", found, sha256=digests, threads=torch.get_num_threads(),
            training=training_of(training) if training else None, minutes=(time.perf_counter() - begun) / 60,
        )  # fmt: skip
    print(path, figure, fill_card(), sep="\n")


if __name__ == "__main__":
    main()
