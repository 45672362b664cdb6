"""The weights that a training validates and keeps: the latest ones, or a moving average of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class KeptWeights:
    """Follows a model in training.

    Parameters
    ----------
    model
        In training, on its device.
    decay
        Per step, of an exponential moving average; 0 keeps the latest weights.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model = model
        self._averaged = None
        if decay:
            average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self._averaged = AveragedModel(model, multi_avg_fn=average)

    def update(self) -> None:
        """Take in what a step has changed."""
        if self._averaged is not None:
            self._averaged.update_parameters(self._model)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights to validate and keep, named as the model names them."""
        source: torch.nn.Module = self._model if self._averaged is None else self._averaged.module
        return {name: value.detach() for name, value in source.state_dict().items()}

    def state(self) -> dict[str, torch.Tensor]:
        """Return what :meth:`restore` needs; empty where nothing is averaged."""
        return {} if self._averaged is None else self._averaged.state_dict()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's average."""
        if self._averaged is not None:
            self._averaged.load_state_dict(state)
