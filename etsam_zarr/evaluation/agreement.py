"""What was found out about how a prediction agrees with the truth, as a record in JSON and as a row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from etsam_zarr.evaluation.curve import ScoreCurve
from etsam_zarr.evaluation.metrics import Confusion, Plane, Tolerant, ratios
from etsam_zarr.geometry import Box


@dataclass(frozen=True)
class MaskAgreement:
    """How one mask agrees with the truth."""

    threshold: float | None
    """What made the mask from scores; None where it was a mask."""
    overall: Confusion
    """Counts over all voxels compared."""
    planes: dict[Plane, dict[str, float]]
    """Means over the planes of each direction, as ETSAM's plane-wise evaluation."""
    tolerant: Tolerant | None
    """With tolerance, where asked for."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found out about one pair."""

    box: Box
    """The voxels compared."""
    masks: tuple[MaskAgreement, ...]
    """One for each threshold, or one."""
    curve: ScoreCurve | None
    """Of scores, where asked for."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; what is undefined (0 / 0) is null."""
        record: dict[str, Any] = {
            "roi": [[span.start, span.stop] for span in self.box],
            "masks": [
                {
                    "threshold": agreement.threshold,
                    **vars(agreement.overall),
                    **ratios(agreement.overall),
                    "planes": agreement.planes,
                    "tolerant": None
                    if agreement.tolerant is None
                    else {"tolerance": agreement.tolerant.tolerance, **ratios(agreement.tolerant)},
                }
                for agreement in self.masks
            ],
            "curve": None if self.curve is None else vars(self.curve),
        }
        cleaned: dict[str, Any] = _finite(record)
        return cleaned

    def as_row(self) -> dict[str, float]:
        """Return one flat row for a table: ratios of each mask, suffixed by its threshold where there are several."""
        row: dict[str, float] = {}
        for agreement in self.masks:
            suffix = "" if len(self.masks) == 1 else f"@{agreement.threshold:g}"
            row |= {f"{name}{suffix}": value for name, value in ratios(agreement.overall).items()}
            for plane, means in agreement.planes.items():
                row |= {f"{plane}_{name}{suffix}": value for name, value in means.items()}
            if agreement.tolerant is not None:
                row |= {f"tolerant_{name}{suffix}": value for name, value in ratios(agreement.tolerant).items()}
        if self.curve is not None:
            row["auprc"] = self.curve.average_precision
            row["best_dice"] = self.curve.best_dice
            row["best_threshold"] = self.curve.best_threshold
        return row


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace what JSON has no number for by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
