"""Scores a trained small model on phantoms that it has never seen, with and without its memory.

    python benchmarks/bundled_model.py --stage1 stage1.pt --stage2 stage2.pt --work /tmp/held-out

Prints a Markdown table per question, for the model card: Dice of both stages at three signal-to-noise ratios, and
Dice of stage 1 with memory cut to nothing, to the prompted slice, and whole. The seeds of these phantoms (from
900000 on) are used nowhere else. Everything runs through the library's own walk, at the model's own settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etsam_zarr.checkpoint import read_checkpoint
from etsam_zarr.frames import StreamedFrames
from etsam_zarr.geometry import Span
from etsam_zarr.model_config import ModelConfig, read_model_config
from etsam_zarr.phantom import PhantomSettings
from etsam_zarr.phantom_store import write_phantom
from etsam_zarr.prompts import fixed_prompt
from etsam_zarr.sam import Propagation, SliceOutput, build_predictor
from etsam_zarr.training_pairs import Pair, TrainingVolume
from etsam_zarr.training_predict import compute_stage1, evaluate
from etsam_zarr.training_settings import RECIPES, TrainSettings

FIRST_SEED = 900_000
Memory = Literal["none", "prompted", "full"]


def held_out(work: Path, *, snr: float, number: int, shape: tuple[int, int, int]) -> TrainingVolume:
    """Make (or find) a held-out phantom and open it."""
    path = work / f"{'x'.join(map(str, shape))}-snr{snr:g}-{number}.zarr"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_phantom(path, PhantomSettings(shape=shape, seed=FIRST_SEED + number, snr=snr))
    return TrainingVolume(Pair(str(path)), normalize_method="percentile", facts_folder=work / "facts")


def dice_with_memory(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    volume: TrainingVolume,
    settings: TrainSettings,
    memory: Memory,
) -> float:
    """Return stage 1's Dice on all slices but the prompted one, with some of the memory cut.

    ``none`` gives every slice the embedding that SAM 2 uses where there is no memory; ``prompted`` forgets every
    slice but the prompted one; ``full`` is a run.
    """
    predictor: Any = build_predictor(config, weights, origin="stage 1")
    if memory == "none":

        def alone(current_vision_feats: list[torch.Tensor], feat_sizes: list[Any], **_: object) -> torch.Tensor:
            features = current_vision_feats[-1] + predictor.no_mem_embed
            shaped: torch.Tensor = features.permute(1, 2, 0).view(features.shape[1], features.shape[2], *feat_sizes[-1])
            return shaped

        predictor._prepare_memory_conditioned_features = alone
    depth, height, width = volume.shape
    frames = StreamedFrames(volume.input_planes, depth=depth, image_size=config.image_size, slab=16)
    walk = Propagation(predictor, frames, height=height, width=width)
    walk.prompt(0, fixed_prompt("grid_zero", height, width, settings.grid_interval))
    both = sizes = 0

    def count(output: SliceOutput) -> None:
        nonlocal both, sizes
        if output.z:
            mask = output.full.numpy() > 0
            (truth,) = volume.planes(Span(output.z, output.z + 1))[1]
            both += int(np.count_nonzero(mask & truth))
            sizes += int(np.count_nonzero(mask) + np.count_nonzero(truth))
        if memory != "full":
            walk._outputs["non_cond_frame_outputs"].clear()

    walk.walk(Span(0, depth), count)
    return 2 * both / max(sizes, 1)


def main() -> None:
    """Run what is asked for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo-256")
    parser.add_argument("--stage1", type=Path, required=True)
    parser.add_argument("--stage2", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=3, help="per signal-to-noise ratio")
    parser.add_argument("--large", action="store_true", help="one of 128 x 512 x 512 besides")
    arguments = parser.parse_args()
    config = read_model_config(arguments.model)
    settings = dataclasses.replace(RECIPES["inference"], model=arguments.model)
    first = read_checkpoint(arguments.stage1)
    second = read_checkpoint(arguments.stage2) if arguments.stage2 else None
    small = (32, 256, 256)

    cases = [(snr, number, small) for snr in (0.5, 0.2, 0.1) for number in range(arguments.phantoms)]
    if arguments.large:
        cases.append((0.5, 100, (128, 512, 512)))
    print("| SNR | shape | seed | stage 1 Dice | stage 2 Dice | precision | recall |")
    print("|---|---|---|---|---|---|---|")
    for snr, number, shape in cases:
        volume = held_out(arguments.work, snr=snr, number=number, shape=shape)
        score1 = evaluate(config, first, [volume], settings, stage=1)
        score = score1
        if second is not None:
            folder = arguments.work / "stage1-output"
            volume.use_stage1(*compute_stage1(config, first, volume, settings, folder))
            score = evaluate(config, second, [volume], settings, stage=2)
        stage2 = f"{score.dice:.3f}" if second is not None else ""
        size = " x ".join(map(str, shape))
        print(
            f"| {snr:g} | {size} | {FIRST_SEED + number} | {score1.dice:.3f} | {stage2} | {score.precision:.3f} | "
            f"{score.recall:.3f} |",
            flush=True,
        )
    print("\n| memory of stage 1 at SNR 0.1 | Dice | seconds |\n|---|---|---|")
    volumes = [held_out(arguments.work, snr=0.1, number=number, shape=small) for number in range(arguments.phantoms)]
    kinds: tuple[Memory, ...] = ("none", "prompted", "full")
    for memory in kinds:
        begun = time.perf_counter()
        mean = np.mean([dice_with_memory(config, first, volume, settings, memory) for volume in volumes])
        print(f"| {memory} | {mean:.3f} | {time.perf_counter() - begun:.1f} |", flush=True)


if __name__ == "__main__":
    main()
