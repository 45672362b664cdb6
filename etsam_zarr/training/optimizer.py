"""The optimizer of a training: which parameters learn how fast, and how that changes from step to step."""

from __future__ import annotations

import math
from typing import Any

import torch

from etsam_zarr.training.model import ClipModel
from etsam_zarr.training.settings import TrainSettings


def build_optimizer(model: ClipModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over all parameters of a model, in groups that :func:`set_learning_rate` can set.

    Parameters
    ----------
    model
        To train.
    settings
        Learning rates and weight decay.
    """
    return torch.optim.AdamW(_parameter_groups(model, settings), betas=(0.9, 0.999))


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> float:
    """Warm up linearly, then follow a cosine down to the final share; return the base rate.

    Parameters
    ----------
    optimizer
        As :func:`build_optimizer` returns it; the rate of each group is changed.
    settings
        Steps, and the rates at their ends.
    step
        About to be done, from 0.
    """
    if step < settings.warmup_steps:
        share = (step + 1) / settings.warmup_steps
    else:
        through = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
        left = settings.final_learning_rate
        share = left + (1 - left) * (1 + math.cos(math.pi * through)) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * share
    return settings.learning_rate * share


def _parameter_groups(model: ClipModel, settings: TrainSettings) -> list[dict[str, Any]]:
    """Group parameters by learning rate and weight decay; norms and biases are not decayed."""
    trunk = model.image_encoder.trunk
    prefix = "image_encoder.trunk."
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = settings.learning_rate
        if name.startswith("image_encoder.") and settings.vision_learning_rate is not None:
            rate = settings.vision_learning_rate
        if name.startswith(prefix) and settings.layer_decay != 1:
            below = trunk.get_num_layers() + 1 - trunk.get_layer_id(name.removeprefix(prefix))
            rate *= settings.layer_decay**below
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "full_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
