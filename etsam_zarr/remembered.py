"""Keeps what sam2 computes anew for every slice though it never changes; results stay the same to the last bit.

Any number of threads may use a predictor that was changed so.
"""

from __future__ import annotations

from typing import Any

import torch


def remember_position_embedding(trunk: Any) -> None:  # noqa: ANN401 - sam2 has no type information
    """Keep the image encoder from interpolating its position embedding anew for every slice.

    It depends on the weights and the image size only, and costs about 1 % of a slice. The value is computed again when
    the weights have changed (their version counters say so), and never kept where gradients are wanted.
    """
    compute = trunk._get_pos_embed
    kept: dict[Any, torch.Tensor] = {}

    def position_embedding(size: tuple[int, int]) -> torch.Tensor:
        if not torch.is_inference_mode_enabled():
            result: torch.Tensor = compute(size)
            return result
        weights = (trunk.pos_embed, trunk.pos_embed_window)
        key = (
            tuple(size),
            torch.is_autocast_enabled(weights[0].device.type),
            *((weight.data_ptr(), weight._version) for weight in weights),
        )
        found = kept.get(key)
        if found is None:
            found = compute(size)
            kept.clear()
            kept[key] = found
        return found

    trunk._get_pos_embed = position_embedding


def remember_sine_encoding(encoding: Any) -> None:  # noqa: ANN401 - sam2 has no type information
    """Keep a sine encoding from copying its table anew for every slice, which costs about 2 % of a small model's time.

    sam2 keeps the table by size and hands out copies, which nothing writes into; here it hands out the same copy again.
    sam2's very first result is laid out differently in memory, which might change rounding. In a whole walk only slice
    0 is given that one; here nobody is, so that a walk that begins in the midst of a volume has what a whole one has.
    """
    compute = encoding._pe
    kept: dict[Any, torch.Tensor] = {}

    def table(batch: int, device: torch.device, *size: int) -> torch.Tensor:
        key = (batch, str(device), *size)
        inference = torch.is_inference_mode_enabled()
        if inference and key in kept:
            return kept[key]
        if size not in encoding.cache:
            compute(batch, device, *size)
        result: torch.Tensor = compute(batch, device, *size)
        if inference:
            kept[key] = result
        return result

    encoding._pe = table
