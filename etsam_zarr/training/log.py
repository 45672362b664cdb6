"""What a training writes down after each epoch: a CSV file, and TensorBoard's event files on request."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import SettingsError

LOSSES = ("total", "bce", "focal", "dice", "iou", "object_score")
_COLUMNS = (
    "epoch",
    "step",
    *(f"loss_{name}" for name in LOSSES),
    "learning_rate",
    "dice",
    "precision",
    "recall",
    "seconds",
)
_TENSORBOARD_FOLDER = "tensorboard"


class TrainingLog:
    """One row per epoch; those of epochs that a resumed training repeats are dropped.

    Parameters
    ----------
    path
        The CSV file.
    step
        Steps that are behind a resumed training; 0 starts anew.
    tensorboard
        Also write every number as a scalar for TensorBoard, into a folder beside the file.

    Raises
    ------
    SettingsError
        TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, step: int, *, tensorboard: bool = False) -> None:
        self._path = path
        self._step = step
        rows: list[dict[str, str]] = []
        if path.exists() and step:
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self._rows: list[Mapping[str, object]] = list(rows)
        self._new_writer: Any = _summary_writer() if tensorboard else None
        self._writer: Any = None

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row; names that it lacks stay empty.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        self._rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self._path, text.getvalue().encode())
        if self._new_writer is not None:
            self._add_scalars(row)

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()

    def _add_scalars(self, row: Mapping[str, object]) -> None:
        folder = self._path.with_name(_TENSORBOARD_FOLDER)
        with disk_errors("writing for TensorBoard", folder):
            if self._writer is None:
                # Made late: one process of several writes. What follows the step that is gone on from is hidden.
                self._writer = self._new_writer(log_dir=str(folder), purge_step=self._step + 1 if self._step else None)
            step = int(str(row["step"]))
            for name, value in row.items():
                if name not in ("epoch", "step", "seconds"):
                    self._writer.add_scalar(_tag(name), float(str(value)), step)
            self._writer.flush()


def _tag(name: str) -> str:
    """Group losses and scores in TensorBoard's page.

    >>> _tag("loss_bce"), _tag("dice"), _tag("learning_rate")
    ('loss/bce', 'validation/dice', 'learning_rate')
    """
    if name.startswith("loss_"):
        return f"loss/{name.removeprefix('loss_')}"
    return name if name == "learning_rate" else f"validation/{name}"


def _summary_writer() -> Any:  # noqa: ANN401 - an optional dependency
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--tensorboard needs the package {error.name}, which is not installed. Install the extra: pip install "
            "'etsam-zarr[train]', or leave the option out: log.csv holds the same numbers."
        ) from error
    return SummaryWriter
