"""Trains both stages from a recipe: the recipe's phantoms, stage 1, its output, stage 2."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from etsam_zarr.atomic import write_atomically
from etsam_zarr.checkpoint import read_checkpoint, serialized
from etsam_zarr.errors import DoesNotFitError, ModelError, SettingsError
from etsam_zarr.events import Notice, OnEvent, ignore
from etsam_zarr.model_config import ModelConfig, read_model_config
from etsam_zarr.phantom.density import Bilayer
from etsam_zarr.phantom.imaging import Microscope
from etsam_zarr.phantom.store import write_phantom
from etsam_zarr.phantom.volume import PhantomSettings
from etsam_zarr.training.loop import TrainJob, train
from etsam_zarr.training.pairs import Pair, TrainingVolume
from etsam_zarr.training.predict import compute_stage1
from etsam_zarr.training.settings import PhantomSet, RecipeFile, TrainSettings

# A checkpoint with its optimizer's state is three times the weights; two stages, two files each, and room
# to write.
_COPIES_ON_DISK = 12


@dataclass(frozen=True)
class TrainRequest:
    """What a user asks for."""

    out: Path
    recipe: RecipeFile
    pairs: Sequence[Pair] = ()
    """Volumes to train both stages on; empty takes the recipe's phantoms."""
    validation: Sequence[Pair] = ()
    stages: tuple[int, ...] = (1, 2)
    initial: Mapping[int, Path] = dataclasses.field(default_factory=dict)
    """Checkpoints to start from, by stage."""
    stage1_checkpoint: Path | None = None
    """Stage 1's weights where only stage 2 is trained; None takes the result in ``out``."""
    resume: bool = False
    accelerator: str = "cpu"
    devices: int = 1
    tensorboard: bool = False
    """Whether to write the log of each epoch for TensorBoard, too."""


def train_stages(request: TrainRequest, *, on_event: OnEvent = ignore) -> dict[int, Path]:
    """Train what is asked for, one stage after the other, and return the final checkpoint of each.

    1. Phantoms that the recipe asks for are made (those that are there already are kept).
    2. Each volume and mask pair is checked and measured in one streamed pass.
    3. Stage 1 is trained; its result is ``<out>/stage1.pt``.
    4. Stage 1 is run over the volumes of stage 2 and its logits are stored.
    5. Stage 2 is trained on them; its result is ``<out>/stage2.pt``.

    Both results are in ETSAM's file format, ``{"model": state_dict}``, and load in a run as they are.

    Raises
    ------
    SettingsError
        There is nothing to train on, or stage 1's checkpoint is missing.
    InputError
        A pair cannot be used.
    DoesNotFitError
        The disk has too little room.
    """
    if request.devices > 1 and len(request.stages) > 1:
        raise SettingsError(
            f"{request.devices} devices train one stage per command: the processes of the first stage would each go on "
            "to the second. Give --stage 1, then the same command with --stage 2."
        )
    _check_room(request)
    results: dict[int, Path] = {}
    for stage in request.stages:
        settings = request.recipe.stages[stage]
        config = read_model_config(settings.model)
        volumes, validation = _data(request, stage, settings, on_event)
        if stage == 2:
            _give_stage1(request, config, settings, [*volumes, *validation], on_event)
        job = TrainJob(
            stage=stage,
            config=config,
            settings=settings,
            volumes=volumes,
            validation=validation,
            folder=request.out / f"stage{stage}",
            initial=_initial(request, stage, settings),
            accelerator=request.accelerator,
            devices=request.devices,
            tensorboard=request.tensorboard,
        )
        kept = train(job, resume=request.resume, on_event=on_event)
        results[stage] = result = request.out / f"stage{stage}.pt"
        write_atomically(result, serialized({"model": read_checkpoint(kept)}))
    return results


def phantom_settings(phantoms: PhantomSet, number: int) -> PhantomSettings:
    """Return the settings of one phantom of a set: its conditions are drawn from the set's seed and its number."""
    rng = np.random.default_rng([phantoms.seed, number])

    def between(limits: tuple[float, float]) -> float:
        return round(float(rng.uniform(*limits)), 3)

    return PhantomSettings(
        shape=phantoms.shape,
        seed=phantoms.seed * 100_000 + number,
        snr=round(float(np.exp(rng.uniform(*np.log(phantoms.snr)))), 4),
        voxel_size=between(phantoms.voxel_size),
        bilayer=Bilayer(thickness=between(phantoms.thickness)),
        microscope=Microscope(defocus=between(phantoms.defocus), tilt_range=between(phantoms.tilt_range)),
        crowding=between((0.1, 0.5)),
        carbon=bool(rng.random() < 0.15),
    )


def half_precision(checkpoint: Path, out: Path) -> None:
    """Store a checkpoint's weights as float16, half the size, in the same file format; loading casts them back.

    Raises
    ------
    ModelError
        A weight is too large for float16.
    """
    weights = read_checkpoint(checkpoint)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    broken = [name for name, value in halved.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(
            f"The weight {broken[0]} of {checkpoint} does not fit float16 (limit 65504). Keep the checkpoint as it is."
        )
    write_atomically(out, serialized({"model": halved}))


def _data(
    request: TrainRequest, stage: int, settings: TrainSettings, on_event: OnEvent
) -> tuple[list[TrainingVolume], list[TrainingVolume]]:
    pairs, validation = list(request.pairs), list(request.validation)
    if not pairs:
        if stage not in request.recipe.phantoms:
            raise SettingsError(
                "There is nothing to train on: the recipe makes no phantoms for stage "
                f"{stage}. Give --pair VOLUME MASK, or volumes that hold their truth as labels/membranes."
            )
        pairs = _phantoms(request, f"stage{stage}", request.recipe.phantoms[stage], on_event)
    if not validation and request.recipe.validation is not None:
        validation = _phantoms(request, "validation", request.recipe.validation, on_event)
    facts = request.out / "facts"

    def opened(pair: Pair) -> TrainingVolume:
        return TrainingVolume(pair, normalize_method=settings.normalize_method, facts_folder=facts)

    return [opened(pair) for pair in pairs], [opened(pair) for pair in validation]


def _phantoms(request: TrainRequest, name: str, phantoms: PhantomSet, on_event: OnEvent) -> list[Pair]:
    folder = request.out / "phantoms" / name
    pairs = []
    for number in range(phantoms.count):
        path = folder / f"{number:03d}.zarr"
        if not path.exists():
            if number == 0:
                on_event(Notice(f"Making {phantoms.count} phantoms in {folder}."))
            folder.mkdir(parents=True, exist_ok=True)
            write_phantom(path, phantom_settings(phantoms, number))
        pairs.append(Pair(str(path)))
    return pairs


def _give_stage1(
    request: TrainRequest,
    config: ModelConfig,
    settings: TrainSettings,
    volumes: Sequence[TrainingVolume],
    on_event: OnEvent,
) -> None:
    checkpoint = request.stage1_checkpoint or request.out / "stage1.pt"
    if not checkpoint.is_file():
        raise SettingsError(
            f"Stage 2 learns from stage 1's output, and there is no checkpoint of stage 1 at {checkpoint}. Train "
            "stage 1 first, or give --stage1-checkpoint."
        )
    weights = read_checkpoint(checkpoint)
    on_event(Notice(f"Running stage 1 over {len(volumes)} volumes for stage 2 (those that are done are kept)."))
    folder = request.out / "stage1-output"
    device = "cuda" if request.accelerator in ("cuda", "gpu") else "cpu"
    for volume in volumes:
        volume.use_stage1(*compute_stage1(config, weights, volume, settings, folder, device=device))


def _initial(request: TrainRequest, stage: int, settings: TrainSettings) -> Path | None:
    if stage == 2 and settings.start_from_stage1 and 2 not in request.initial:
        return request.stage1_checkpoint or request.out / "stage1.pt"
    return request.initial.get(stage)


def _check_room(request: TrainRequest) -> None:
    request.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(request.out).free
    # 5.7 M weights take 23 MB, SAM 2.1 B+ 320 MB: known only after building, so the image size stands for it.
    large = any(read_model_config(request.recipe.stages[s].model).hidden_dim > 128 for s in request.stages)
    needed = (340e6 if large else 24e6) * _COPIES_ON_DISK
    if not request.pairs:
        sets = [request.recipe.phantoms[s] for s in request.stages if s in request.recipe.phantoms]
        needed += sum(5.0 * s.count * s.shape[0] * s.shape[1] * s.shape[2] for s in sets)
    if needed > free:
        raise DoesNotFitError(
            f"This training writes about {needed / 1e9:.1f} GB (checkpoints, phantoms) to {request.out}, which has "
            f"{free / 1e9:.1f} GB free. Choose another --output, or make room."
        )
