"""Draws a precision-recall curve; needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from etsam_zarr.atomic import write_atomically
from etsam_zarr.errors import SettingsError
from etsam_zarr.evaluation.curve import ScoreCurve


def save_curve_figure(curves: Mapping[str, ScoreCurve], path: Path) -> None:
    """Draw curves into one figure.

    Parameters
    ----------
    curves
        By what to call them in the legend.
    path
        Where to; its suffix (.png, .pdf, .svg) decides the format.

    Raises
    ------
    SettingsError
        matplotlib is not installed, or knows no such format.
    OutputError
        The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "Drawing the curve needs matplotlib, which is not installed. Install it (pip install 'etsam-zarr[plot]'), "
            "or leave out --figure and take the points from --json."
        ) from error
    # A figure by itself, without pyplot: no window, no state that outlives this call.
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise SettingsError(f"No figure format {path.suffix!r}; give a name that ends in .png, .pdf or .svg.")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.step(curve.recall, curve.precision, where="pre", label=f"{name}: AUPRC {curve.average_precision:.4f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    axes.legend(loc="lower left")
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=150)
    write_atomically(path, data.getvalue())
