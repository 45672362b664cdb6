"""How far a training has come, and the checkpoint of it that an interrupted one goes on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from etsam_zarr.atomic import write_atomically
from etsam_zarr.checkpoint import read_checkpoint, serialized
from etsam_zarr.errors import FingerprintError
from etsam_zarr.training.average import KeptWeights

LAST = "last.pt"
"""Weights, optimizer and step of the latest checkpoint; its entry ``model`` is read like any checkpoint."""


@dataclass
class Progress:
    """How far a training has come, and the losses of its epoch so far."""

    step: int = 0
    """Steps done."""
    best_dice: float = -1.0
    """Highest validation Dice of an epoch; -1 before the first."""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Losses by name, added up over the steps of the epoch."""
    steps_in_epoch: int = 0

    def add_losses(self, losses: Mapping[str, torch.Tensor], share: float) -> None:
        """Add a clip's losses, scalars by name, which count as ``share`` of a step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * share

    def mean_loss(self, name: str) -> float | None:
        """Return the mean of a loss over the epoch so far; None where there is no such loss."""
        return self.sums[name] / self.steps_in_epoch if name in self.sums else None

    def start_epoch(self) -> None:
        """Forget the losses of the epoch that has ended."""
        self.sums, self.steps_in_epoch = {}, 0


def save_progress(
    path: Path,
    progress: Progress,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    kept: KeptWeights,
    *,
    fingerprint: str,
) -> None:
    """Write the checkpoint that :func:`take_over` reads, in place of the one before.

    Parameters
    ----------
    path
        The file.
    progress, model, optimizer, kept
        As they are after a step.
    fingerprint
        What the training that goes on must have in common with this one.

    Raises
    ------
    OutputError
        It cannot be written; the one before stays.
    """
    content = {
        "model": model.state_dict(),
        "average": kept.state(),
        "optimizer": optimizer.state_dict(),
        "progress": dataclasses.asdict(progress),
        "fingerprint": fingerprint,
    }
    write_atomically(path, serialized(content))


def take_over(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, fingerprint: str
) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Load the latest checkpoint; return how far it had come, and its averaged weights.

    Parameters
    ----------
    path
        The file.
    model, optimizer
        As they were built; they become what they were when it was written.
    fingerprint
        Of the training that goes on.

    Raises
    ------
    ModelError
        The file is damaged.
    FingerprintError
        It is of another training.
    """
    read_checkpoint(path)  # says clearly what is wrong with a damaged file
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("fingerprint") != fingerprint:
        raise FingerprintError(
            f"The training in {path.parent} was started with other data, settings, model or number of devices. Give "
            "the same command as then, or another output folder."
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return Progress(**content["progress"]), content["average"]
