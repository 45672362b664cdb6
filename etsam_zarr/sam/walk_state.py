"""What a walk holds of the slices that later ones look at, as tensors with names that can be stored, and back."""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_FIELDS = ("maskmem_features", "obj_ptr", "object_score_logits")


def packed(outputs: dict[int, dict[str, Any]], *, with_masks: bool = False) -> Tensors:
    """Flatten per-slice outputs to named tensors; the leading number keeps their order, which sets rounding."""
    fields = (*_FIELDS, "pred_masks") if with_masks else _FIELDS
    return {
        f"{order:06d}.{z}.{field}": output[field].contiguous()
        for order, (z, output) in enumerate(outputs.items())
        for field in fields
        if output[field] is not None
    }


def unpacked(state: Tensors, positions: list[torch.Tensor], device: torch.device) -> dict[int, dict[str, Any]]:
    """Return the outputs that were flattened, on the device; ``positions`` are those of every memory's cells."""
    outputs: dict[int, dict[str, Any]] = {}
    for name in sorted(state):
        if name.startswith("position_encoding."):
            continue
        _, z, field = name.split(".")
        blank = {"maskmem_pos_enc": positions, "pred_masks": None, "maskmem_features": None}
        outputs.setdefault(int(z), blank)[field] = state[name].to(device)
    return outputs
