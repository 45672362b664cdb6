"""What a training minimises: how far masks, and what the model says of them, are from the truth.

The recipe ``etsam`` uses sam2's own losses instead.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from training.loss_fns import sigmoid_focal_loss

from etsam_zarr.training.settings import TrainSettings

Losses = dict[str, torch.Tensor]
"""Scalars by name; ``total`` is what to minimise."""


def mask_losses(
    logits: torch.Tensor, ious: torch.Tensor, scores: torch.Tensor, truth: torch.Tensor, settings: TrainSettings
) -> Losses:
    """Return the losses of N masks, M proposals of S x S pixels for each.

    Parameters
    ----------
    logits
        Of the proposals, (N, M, S, S).
    ious
        What the model takes the proposals' IoU for, (N, M).
    scores
        Logits of "there is an object", (N, 1).
    truth
        Bool, (N, S, S).
    settings
        Weights of the losses in the total.
    """
    target = truth[:, None].float().expand_as(logits)
    logits = logits.float()
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)
    bce = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(2, 3))
    focal = sigmoid_focal_loss(logits, target, 1, loss_on_multimask=True)
    with torch.no_grad():
        inside = logits > 0
        shared = (inside & (target > 0)).sum(dim=(2, 3))
        union = (inside | (target > 0)).sum(dim=(2, 3))
        true_iou = shared / union.clamp(min=1)
    # Of several proposals the best one learns the mask; all learn how good they are.
    mask_loss = settings.bce_weight * bce + settings.dice_weight * dice + settings.focal_weight * focal
    best = mask_loss.argmin(dim=1, keepdim=True)
    present = truth.flatten(1).any(dim=1, keepdim=True).float()
    losses: Losses = {
        "bce": bce.gather(1, best).mean(),
        "dice": dice.gather(1, best).mean(),
        "focal": focal.gather(1, best).mean(),
        "iou": (ious.float() - true_iou).abs().mean(),
        "object_score": functional.binary_cross_entropy_with_logits(scores.float(), present),
    }
    losses["total"] = (
        mask_loss.gather(1, best).mean()
        + settings.iou_weight * losses["iou"]
        + settings.object_score_weight * losses["object_score"]
    )
    return losses
