"""Keeps what sam2 computes anew for every slice though it never changes; results stay the same to the last bit.

Any number of threads may use a predictor that was changed so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def remember_position_embedding(trunk: Any) -> None:  # noqa: ANN401 - sam2 has no type information
    """Keep the image encoder from interpolating its position embedding anew for every slice.

    It depends on the weights and the image size only, and costs about 1 % of a slice.
    """
    compute = trunk._get_pos_embed
    kept = _Kept(lambda: (trunk.pos_embed, trunk.pos_embed_window))

    def position_embedding(size: tuple[int, int]) -> torch.Tensor:
        return kept.or_computed(tuple(size), lambda: compute(size))

    trunk._get_pos_embed = position_embedding


def remember_absent_prompt(encoder: Any) -> None:  # noqa: ANN401 - sam2 has no type information
    """Keep the prompt encoder from embedding anew, for every slice without a prompt, that there is none.

    sam2 stands a point with the label -1 in for it, whose place does not count, and embeds the places of the image's
    cells besides. Both depend on the weights only; for a small model it is forty small operations, 1.5 % of a slice.
    Elsewhere than on a CPU points are always embedded: looking at their labels would wait for the device.
    """
    embed, places = encoder._embed_points, encoder.get_dense_pe
    kept_points = _Kept(lambda: tuple(encoder.not_a_point_embed.parameters()))
    kept_places = _Kept(lambda: tuple(encoder.pe_layer.buffers()))

    def embed_points(points: torch.Tensor, labels: torch.Tensor, pad: bool) -> torch.Tensor:
        def compute() -> torch.Tensor:
            result: torch.Tensor = embed(points, labels, pad)
            return result

        if labels.is_cpu and bool((labels == -1).all()):
            return kept_points.or_computed((*points.shape, pad), compute)
        return compute()

    encoder._embed_points = embed_points
    encoder.get_dense_pe = lambda: kept_places.or_computed((), places)


class _Kept:
    """The last value of a function, as long as what it was computed from is the same.

    Weights are known to have changed by their version counters. Nothing is kept where gradients are wanted.
    """

    def __init__(self, weights: Callable[[], Sequence[torch.Tensor]]) -> None:
        self._weights = weights
        self._kept: dict[Any, torch.Tensor] = {}

    def or_computed(self, argument: tuple[Any, ...], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the value for this argument, computed where it is not the one that is kept."""
        if not torch.is_inference_mode_enabled():
            return compute()
        weights = self._weights()
        key = (
            argument,
            torch.is_autocast_enabled(weights[0].device.type),
            *((weight.data_ptr(), weight._version) for weight in weights),
        )
        found = self._kept.get(key)
        if found is None:
            found = compute()
            self._kept.clear()
            self._kept[key] = found
        return found


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
