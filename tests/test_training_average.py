"""The weights that a training keeps: the latest, or their exponential moving average."""

from __future__ import annotations

import pytest
import torch

from etsam_zarr.training.average import KeptWeights


def walked(kept: KeptWeights, model: torch.nn.Linear, values: list[float]) -> None:
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        kept.update()


def test_without_a_decay_the_latest_weights_are_kept() -> None:
    model = torch.nn.Linear(2, 2)
    kept = KeptWeights(model, 0.0)
    walked(kept, model, [1.0, 5.0])
    assert torch.equal(kept.weights()["weight"], torch.full((2, 2), 5.0))
    assert kept.state() == {}


def test_the_average_follows_the_weights_and_goes_on_after_a_restore() -> None:
    model = torch.nn.Linear(2, 2)
    kept = KeptWeights(model, 0.75)
    walked(kept, model, [1.0, 5.0])
    assert set(kept.weights()) == set(model.state_dict())
    assert torch.allclose(kept.weights()["weight"], torch.full((2, 2), 0.75 * 1 + 0.25 * 5))
    again = KeptWeights(model, 0.75)
    again.restore(kept.state())
    walked(again, model, [9.0])
    assert float(again.weights()["weight"][0, 0]) == pytest.approx(0.75 * 2 + 0.25 * 9)
    assert float(model.weight.detach()[0, 0]) == 9.0, "the model itself is left alone"
