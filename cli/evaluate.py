"""``etsam-zarr evaluate``: how well results agree with the truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH, any_label, input_label, numbers, region

from etsam_zarr.block_grid import Box
from etsam_zarr.errors import EtsamZarrError, SettingsError

if TYPE_CHECKING:
    from etsam_zarr.evaluate import Evaluation


@click.command()
@click.argument("prediction", metavar="[PRED", type=PATH, required=False)
@click.argument("truth", metavar="TRUTH]", type=PATH, required=False)
@click.option(
    "--logit-threshold",
    "thresholds",
    type=numbers,
    metavar="X[,Y,...]",
    help="Makes masks of scores. [default: the run's own threshold; 0 for files]",
)
@click.option("--roi", type=region, metavar="Z:Z,Y:Y,X:X", help="Compare only this region, in voxels, stop exclusive.")
@click.option("--tolerance", type=float, default=0.0, help="Also count what lies within so many voxels as right.")
@click.option("--curve/--no-curve", default=True, help="For scores, the exact curve and AUPRC too. [default: yes]")
@click.option("--figure", type=PATH, help="Draw the precision-recall curve into this PNG, PDF or SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--manifest", type=PATH, help="CSV with a line for each pair, instead of PRED and TRUTH.")
@click.option("--prediction-path", default="{prediction}", show_default=True, help="How a line gives the prediction.")
@click.option("--truth-path", default="{truth}", show_default=True, help="How a line gives the truth.")
@click.option("--csv", "table", type=PATH, help="Write a line for each pair to this CSV.")
@click.option("--scratch", type=PATH, help="Folder for sorting scores, 4 bytes a voxel. [default: beside PRED]")
@input_label
@any_label
def command(
    prediction: Path | None, truth: Path | None, thresholds: tuple[float, ...] | None, roi: Box | None,
    tolerance: float, curve: bool, figure: Path | None, as_json: bool, manifest: Path | None, prediction_path: str,
    truth_path: str, table: Path | None, scratch: Path | None, label: str | None, any_label: bool,
) -> int:  # fmt: skip
    """Compare PRED with the mask TRUTH: Dice, IoU, precision, recall; for scores also AUPRC.

    PRED is a run store (its logits; a label of it with --label), a mask of integers, or a file of
    floating-point scores.
    """
    from etsam_zarr.curve_figure import save_curve_figure
    from etsam_zarr.manifest import Pair, read_manifest, write_results

    if manifest is not None:
        if prediction is not None:
            raise click.UsageError("Give PRED and TRUTH, or --manifest, not both.")
        pairs = read_manifest(manifest, prediction=prediction_path, truth=truth_path)
    elif prediction is None or truth is None:
        raise click.UsageError("Give PRED and TRUTH, or --manifest with a CSV of pairs.")
    else:
        pairs = [Pair({"prediction": str(prediction), "truth": str(truth)}, prediction, truth)]
    asked = _Asked(thresholds, roi, tolerance, curve, label, any_label, scratch)
    progress = Progress()
    rows: list[dict[str, float | str]] = []
    done: dict[str, Evaluation] = {}
    try:
        for pair in pairs:
            try:
                found = asked.evaluate(pair.prediction, pair.truth, progress)
            except EtsamZarrError as error:
                if manifest is None:
                    raise
                # The other pairs are still worth having; the exit code tells.
                click.echo(f"Error: {pair.prediction}: {error}", err=True)
                rows.append({"error": str(error)})
                continue
            done[str(pair.prediction)] = found
            rows.append(dict(found.as_row()))
            if not as_json:
                _show(pair.prediction, found)
    finally:
        progress.close()
    if as_json:
        records = [
            {**pair.columns, **(done[str(pair.prediction)].as_json() if "error" not in row else row)}
            for pair, row in zip(pairs, rows, strict=True)
        ]
        click.echo(json.dumps(records if manifest is not None else records[0], indent=2))
    if table is not None:
        write_results(table, pairs, rows)
    if figure is not None:
        curves = {Path(name).name: found.curve for name, found in done.items() if found.curve is not None}
        if not curves:
            raise SettingsError(
                "--figure draws the curve of scores, and there are none: PRED is a mask, or --no-curve."
            )
        save_curve_figure(curves, figure)
    failed = len(pairs) - len(done)
    if failed:
        click.echo(f"Error: {failed} of {len(pairs)} pairs could not be compared; see above.", err=True)
    return 1 if failed else 0


class _Asked:
    """What to do with every pair."""

    def __init__(
        self, thresholds: tuple[float, ...] | None, roi: Box | None, tolerance: float, curve: bool, label: str | None,
        any_label: bool, scratch: Path | None,
    ) -> None:  # fmt: skip
        self._thresholds = thresholds
        self._options: dict[str, Any] = {"roi": roi, "tolerance": tolerance, "curve": curve}
        self._label = label
        self._any_label = any_label
        self._scratch = scratch

    def evaluate(self, prediction: Path, truth: Path, progress: Progress) -> Evaluation:
        from etsam_zarr.evaluate import EvaluationSettings, evaluate_mask, evaluate_scores
        from etsam_zarr.ledger import Ledger
        from etsam_zarr.masks import BinaryMask, VolumeBox
        from etsam_zarr.results import Source
        from etsam_zarr.sources import open_volume

        given = Source.at(prediction, label=self._label)
        scratch = (self._scratch or prediction.parent) / f".{prediction.name}.curve"
        with open_volume(truth) as true_volume:
            true = BinaryMask(true_volume, name=str(truth), any_label=self._any_label)
            if given.store is not None and self._label is None:
                from etsam_zarr.pipeline import final_scores

                store = given.require_logits()
                # What the mask of the run was made with last.
                mask_record = Ledger(store.path / "ledger").finished("mask") or store.record["settings"]
                own = float(mask_record["logit_threshold"])
                settings = EvaluationSettings(thresholds=self._thresholds or (own,), **self._options)
                return evaluate_scores(
                    final_scores(store), true, scratch=scratch, settings=settings, name=str(prediction),
                    on_event=progress,
                )  # fmt: skip
            with given.open_mask() as volume:
                settings = EvaluationSettings(thresholds=self._thresholds or (0.0,), **self._options)
                if volume.info.dtype.kind == "f":
                    return evaluate_scores(
                        VolumeBox(volume), true, scratch=scratch, settings=settings, name=str(prediction),
                        on_event=progress,
                    )  # fmt: skip
                if self._thresholds is not None:
                    raise SettingsError(
                        f"{prediction} is a mask ({volume.info.dtype}), and --logit-threshold makes masks of scores. "
                        "Leave it out."
                    )
                mask = BinaryMask(volume, name=str(prediction), any_label=self._any_label)
                return evaluate_mask(mask, true, settings=settings, on_event=progress)


def _show(prediction: Path, found: Evaluation) -> None:
    """Print a table for people."""
    from etsam_zarr.metrics import ratios

    click.echo(str(prediction))
    click.echo(f"  {'':18}{'dice':>9}{'iou':>9}{'precision':>11}{'recall':>9}")
    for agreement in found.masks:
        what = "mask" if agreement.threshold is None else f"above {agreement.threshold:g}"
        lines = {what: ratios(agreement.overall)} | {f"  mean of {p}": m for p, m in agreement.planes.items()}
        if agreement.tolerant is not None:
            lines[f"  within {agreement.tolerant.tolerance:g}"] = ratios(agreement.tolerant)
        for name, values in lines.items():
            iou = f"{values['iou']:9.4f}" if "iou" in values else " " * 9
            click.echo(f"  {name:18}{values['dice']:9.4f}{iou}{values['precision']:11.4f}{values['recall']:9.4f}")
    if found.curve is not None:
        click.echo(
            f"  AUPRC {found.curve.average_precision:.6f}; best Dice {found.curve.best_dice:.4f} above "
            f"{found.curve.best_threshold:g}"
        )
    sys.stdout.flush()
