"""The model card says what was measured, of the weights that are in the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etsam_zarr.bundled import bundled_paths

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def model_card(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that fills the card; it is no part of the package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import model_card

    return model_card


def record(dice: float = 0.9) -> dict[str, Any]:
    scores = {"dice": dice, "precision": 0.8, "recall": 0.7}
    return {
        "command": "python benchmarks/bundled_model.py",
        "date": "2026-01-01",
        "machine": {"processor": "a processor"},
        "versions": {"torch": "2.0"},
        "settings": {"sha256": ["a" * 64, "b" * 64], "threads": 1, "minutes": 7.0, "training": None},
        "measurements": [
            {"what": "held-out", "snr": 0.5, "shape": [3, 4, 5], "stage1": scores, "stage2": scores | {"dice": d}}
            for d in (dice, dice - 0.2)
        ]
        + [
            {"what": "memory", "stage": stage, "dice": {"none": 0.1, "prompted": 0.2, "full": dice}} for stage in (1, 2)
        ],
    }


def test_tables_are_filled_where_the_card_asks_for_them(model_card: ModuleType) -> None:
    text = "Before\n<!-- scores: filled by benchmarks/model_card.py -->\nold\n<!-- end -->\nafter\n"
    once = model_card.filled(text, model_card.blocks(record()))
    assert once.startswith("Before\n<!-- scores: filled")
    assert once.endswith("<!-- end -->\nafter\n")
    assert "| 0.5 | 2 of 3 x 4 x 5 | 0.900 (0.900 to 0.900) | 0.800 (0.700 to 0.900) | 0.800 | 0.700 |" in once
    assert "old" not in once
    assert model_card.filled(once, model_card.blocks(record())) == once
    assert "| full | 0.900 | 0.900 |" in model_card.blocks(record())["memory"]


@pytest.mark.usefixtures("bundled_model")
def test_the_card_says_what_was_measured_of_these_weights(model_card: ModuleType) -> None:
    measured = json.loads(model_card.RESULT.read_text())
    assert measured["settings"]["sha256"] == [hashlib.sha256(p.read_bytes()).hexdigest() for p in bundled_paths()]
    text = model_card.CARD.read_text()
    assert model_card.filled(text, model_card.blocks(measured)) == text, "give: python benchmarks/model_card.py"
    assert (model_card.CARD.parent / "bundled-model.png").stat().st_size <= 400_000
