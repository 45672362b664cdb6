"""Fills the tables of docs/model-card.md from the result file of bundled_model.py.

python benchmarks/model_card.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from measure import RESULTS, table

CARD = Path(__file__).parents[1] / "docs" / "model-card.md"
RESULT = RESULTS / "bundled-model.json"
_BLOCK = re.compile(r"(<!-- (\S+): filled by benchmarks/model_card\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def blocks(record: dict[str, Any]) -> dict[str, str]:
    """Return the card's filled parts by name."""
    runs = [row for row in record["measurements"] if row["what"] == "held-out"]
    memory = [row for row in record["measurements"] if row["what"] == "memory"]
    return {
        "training": _training(record),
        "scores": table(_score_rows(runs)),
        "memory": table(_memory_rows(memory)),
        "machine": _machine(record),
    }


def filled(text: str, parts: dict[str, str]) -> str:
    """Return the card with its blocks replaced."""
    return _BLOCK.sub(lambda block: f"{block[1]}{parts[block[2]]}\n{block[3]}", text)


def fill_card(*, card: Path = CARD, result: Path = RESULT) -> Path:
    """Fill the card from the result file."""
    parts = blocks(json.loads(result.read_text()))
    card.write_text(filled(card.read_text(), parts))
    return card


def _score_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[float, tuple[int, ...]], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["snr"], tuple(run["shape"])), []).append(run)
    rows = []
    for (snr, shape), members in groups.items():
        row: dict[str, Any] = {"SNR": f"{snr:g}", "volumes": f"{len(members)} of {' x '.join(map(str, shape))}"}
        for stage in ("stage1", "stage2"):
            dice = [member[stage]["dice"] for member in members]
            spread = f" ({min(dice):.3f} to {max(dice):.3f})" if len(dice) > 1 else ""
            row[f"stage {stage[-1]} Dice"] = f"{statistics.mean(dice):.3f}{spread}"
        for name in ("precision", "recall"):
            row[f"stage 2 {name}"] = f"{statistics.mean(member['stage2'][name] for member in members):.3f}"
        rows.append(row)
    return rows


def _memory_rows(memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for kind, words in (("none", "none"), ("prompted", "only the prompted slices"), ("full", "full")):
        row: dict[str, Any] = {"memory": words}
        for stage in (1, 2):
            found = [entry["dice"][kind] for entry in memory if entry["stage"] == stage]
            row[f"stage {stage} Dice"] = f"{statistics.mean(found):.3f}"
        rows.append(row)
    return rows


def _training(record: dict[str, Any]) -> str:
    training = record["settings"]["training"]
    if training is None:
        return "The result file says nothing of the training."
    return table(
        [
            {
                "part": facts["part"],
                "stage": facts["stage"],
                "epochs": facts["epochs"],
                "steps": facts["steps"],
                "hours": f"{facts['hours']:.1f}",
                "loss": f"{facts['first_loss']:.2f} to {facts['last_loss']:.2f}",
                "best validation Dice": f"{facts['best_validation_dice']:.3f}",
            }
            for facts in training
        ]
    )


def _machine(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    weights = ", ".join(f"`{digest[:12]}...`" for digest in record["settings"]["sha256"])
    return (
        f"Made by `{record['command']}` in {record['settings']['minutes']:.0f} minutes on {machine['processor']} "
        f"({record['settings']['threads']} threads), torch {versions['torch']}, {record['date']}. SHA-256 of the "
        f"weights: {weights}"
    )


if __name__ == "__main__":
    print(fill_card())
