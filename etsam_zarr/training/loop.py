"""Trains one stage: steps, checkpoints, a log, a validation score per epoch, and an exact resume.

Several GPUs, mixed precision and gradient accumulation come from Lightning Fabric. It was chosen over
accelerate and over plain torchrun with DistributedDataParallel because it wraps nothing but the model and
the optimizer: the loop below stays ours, runs the same without it being noticed on one CPU, and no launcher
or config file is needed (``--devices 4`` is enough).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etsam_zarr.atomic import write_atomically
from etsam_zarr.checkpoint import load_weights, read_checkpoint, serialized
from etsam_zarr.errors import OutputExistsError, SettingsError
from etsam_zarr.events import Advanced, Finished, Notice, OnEvent, Started, ignore
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.training.average import KeptWeights
from etsam_zarr.training.clips import ClipSampler, clips_ahead
from etsam_zarr.training.log import LOSSES, TrainingLog
from etsam_zarr.training.model import build_clip_model
from etsam_zarr.training.optimizer import build_optimizer, set_learning_rate
from etsam_zarr.training.pairs import TrainingVolume
from etsam_zarr.training.predict import evaluate
from etsam_zarr.training.progress import LAST, Progress, save_progress, take_over
from etsam_zarr.training.settings import TrainSettings

KEPT = "kept.pt"
"""The result so far, ``{"model": state_dict}`` as ETSAM's own files: the weights after the epoch with the best
validation Dice; after the latest one where nothing is validated, or the settings want it so."""
LOG = "log.csv"


@dataclass(frozen=True)
class TrainJob:
    """What to train, on what, and where to."""

    stage: int
    config: ModelConfig
    settings: TrainSettings
    volumes: Sequence[TrainingVolume]
    validation: Sequence[TrainingVolume]
    folder: Path
    initial: Path | None = None
    """Checkpoint to start from; None starts from scratch."""
    accelerator: str = "cpu"
    devices: int = 1
    minutes_between_checkpoints: float = 5.0
    tensorboard: bool = False
    """Whether to write the log for TensorBoard, too."""

    @property
    def fingerprint(self) -> str:
        """What a resumed training must have in common with the one it goes on."""
        content = {
            "stage": self.stage,
            "config": self.config.digest,
            "settings": dataclasses.asdict(self.settings),
            "volumes": [volume.digest for volume in self.volumes],
            "initial": None if self.initial is None else self.initial.name,
            "devices": self.devices,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def train(job: TrainJob, *, resume: bool = False, on_event: OnEvent = ignore) -> Path:
    """Train one stage to the end of its recipe.

    1. Build the model, from scratch or a checkpoint, or take over an interrupted training.
    2. For each step: draw clips (a thread does, ahead of time), add up gradients, clip them, step.
    3. After each epoch: validate, log, keep the weights if they are the best. Every few minutes, and at the end of an
       epoch, write a checkpoint.

    Every random choice is a function of seed and step, so that an interrupted training, resumed, ends as an
    uninterrupted one: to the last bit on CPU in float32 with the same number of threads.

    Returns
    -------
    pathlib.Path
        The checkpoint :data:`KEPT`.

    Raises
    ------
    OutputExistsError
        The folder holds a training and ``resume`` was not given.
    FingerprintError
        The training in the folder had other settings or data.
    OutputError
        A checkpoint cannot be written; the one before it stays.
    """
    last = job.folder / LAST
    if last.exists() and not resume:
        raise OutputExistsError(
            f"{job.folder} holds a training already. Give --resume to go on with it, or another output folder."
        )
    fabric = _fabric(job)
    if not fabric.is_global_zero:
        on_event = ignore  # one process speaks for all
    model = build_clip_model(job.config, job.settings)
    if job.initial is not None:
        load_weights(model, read_checkpoint(job.initial), origin=str(job.initial))
    optimizer = build_optimizer(model, job.settings)
    progress = Progress()
    average: dict[str, torch.Tensor] = {}
    if last.exists():
        progress, average = take_over(last, model, optimizer, fingerprint=job.fingerprint)
        on_event(Notice(f"Going on after step {progress.step} of {job.settings.steps}."))
    wrapped, optimizer = fabric.setup(model, optimizer)
    model.train()
    kept = KeptWeights(model, job.settings.weight_averaging)
    if last.exists():
        kept.restore(average)
    sampler = ClipSampler(job.volumes, job.settings, stage=job.stage, image_size=job.config.image_size)
    log = TrainingLog(job.folder / LOG, progress.step, tensorboard=job.tensorboard)
    steps, name = job.settings.steps, f"train stage {job.stage}"
    begun = saved = time.monotonic()
    on_event(Started(name, total=steps, done=progress.step, unit="steps"))
    for clips in _clips_of_steps(sampler, job.settings, progress.step, fabric):
        rate = set_learning_rate(optimizer, job.settings, progress.step)
        for number, clip in enumerate(clips):
            final = number == job.settings.accumulate - 1
            seed = _seed(job.settings.seed, progress.step, number, fabric.global_rank)
            with fabric.no_backward_sync(wrapped, enabled=not final and job.devices > 1):
                losses = wrapped(clip.to(fabric.device), seed=seed)
                fabric.backward(losses["total"] / job.settings.accumulate)
            progress.add_losses(losses, 1 / job.settings.accumulate)
        fabric.clip_gradients(wrapped, optimizer, max_norm=job.settings.gradient_clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        kept.update()
        progress.step += 1
        progress.steps_in_epoch += 1
        on_event(Advanced(name))
        ended = progress.step % job.settings.steps_per_epoch == 0
        if ended:
            _finish_epoch(job, fabric, kept, progress, log, rate, begun, on_event)
            progress.start_epoch()  # before the checkpoint, which else would carry these losses into the next epoch
        due = time.monotonic() - saved > 60 * job.minutes_between_checkpoints
        if (ended or due) and fabric.is_global_zero:
            save_progress(last, progress, model, optimizer, kept, fingerprint=job.fingerprint)
            saved = time.monotonic()
    log.close()
    on_event(Finished(name, time.monotonic() - begun))
    return job.folder / KEPT


def _fabric(job: TrainJob) -> Any:  # noqa: ANN401 - an optional dependency
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"Training needs the package {error.name}, which is not installed. Install the extra: pip install "
            "'etsam-zarr[train]'."
        ) from error
    # A recipe leaves parts of SAM 2 unused in some clips (points, boxes), so DDP must look for them.
    strategy: Any = DDPStrategy(find_unused_parameters=True) if job.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=job.accelerator, devices=job.devices, strategy=strategy, precision=job.settings.precision
    )
    fabric.launch()
    return fabric


def _clips_of_steps(
    sampler: ClipSampler,
    settings: TrainSettings,
    first: int,
    fabric: Any,  # noqa: ANN401
) -> Iterator[list[Any]]:
    keys = [
        (step, number, fabric.global_rank)
        for step in range(first, settings.steps)
        for number in range(settings.accumulate)
    ]
    with contextlib.closing(clips_ahead(sampler, keys)) as clips:  # type: ignore[type-var]
        for _ in range(first, settings.steps):
            yield [next(clips) for _ in range(settings.accumulate)]


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big")


def _finish_epoch(
    job: TrainJob,
    fabric: Any,  # noqa: ANN401
    kept: KeptWeights,
    progress: Progress,
    log: TrainingLog,
    rate: float,
    begun: float,
    on_event: OnEvent,
) -> None:
    epoch = progress.step // job.settings.steps_per_epoch
    if fabric.is_global_zero:
        row: dict[str, object] = {"epoch": epoch, "step": progress.step, "learning_rate": f"{rate:.3g}"}
        row.update({f"loss_{name}": f"{mean:.5f}" for name in LOSSES if (mean := progress.mean_loss(name)) is not None})
        said = f"Epoch {epoch}: loss {progress.mean_loss('total'):.4f}"
        weights = kept.weights()
        keep = not job.validation or job.settings.keep == "last"
        if job.validation:
            score = evaluate(job.config, weights, job.validation, job.settings, stage=job.stage, device=fabric.device)
            row.update({name: f"{value:.5f}" for name, value in dataclasses.asdict(score).items()})
            said += f", validation Dice {score.dice:.4f}"
            keep = keep or score.dice > progress.best_dice
            progress.best_dice = max(progress.best_dice, score.dice)
        if keep:
            write_atomically(job.folder / KEPT, serialized({"model": weights}))
        row["seconds"] = f"{time.monotonic() - begun:.1f}"
        log.add(row)
        on_event(Notice(f"{said}."))
    fabric.barrier()
