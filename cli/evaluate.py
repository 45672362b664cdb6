"""``etsam-zarr evaluate``: how well results agree with the truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from etsam_zarr_cli.comparison import Comparison
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.remote_options import access_options
from etsam_zarr_cli.result_options import PATH, any_label, input_label, numbers, region, where

from etsam_zarr.errors import EtsamZarrError, SettingsError
from etsam_zarr.events import Notice
from etsam_zarr.geometry import Box

if TYPE_CHECKING:
    from etsam_zarr.evaluation.agreement import Evaluation
    from etsam_zarr.manifest import Pair
    from etsam_zarr.portal.table import TruthWish, Unresolved


def _ids(text: str) -> tuple[int, ...]:
    """Turn ``"26081,12765"`` into numbers; ETSAM's tables have ``|`` between."""
    parts = text.replace("|", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} is no list of annotation ids, such as 26081,12765.")
    return tuple(map(int, parts))


@click.command()
@click.argument("prediction", metavar="[PRED", required=False)
@click.argument("truth", metavar="TRUTH]", required=False)
@click.option(
    "--truth",
    "truth_option",
    metavar="TRUTH",
    help="TRUTH as an option; 'portal' takes the masks that the CryoET Data Portal has of PRED's run, or those of the "
    "manifest's column annotation_ids.",
)
@click.option(
    "--annotation-ids",
    type=_ids,
    metavar="ID[,ID...]",
    help="With --truth portal: the annotations whose union is the truth.",
)
@click.option(
    "--truth-object",
    metavar="TEXT",
    help="With --truth portal: all masks of objects whose name has TEXT, such as membrane, where no ids are given.",
)
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
@where
@click.option("--csv", "table", type=PATH, help="Write a line for each pair to this CSV.")
@click.option("--scratch", type=PATH, help="Folder for sorting scores, 4 bytes a voxel. [default: beside PRED]")
@input_label
@any_label
@access_options
def command(
    prediction: str | None, truth: str | None, truth_option: str | None, annotation_ids: tuple[int, ...] | None,
    truth_object: str | None, thresholds: tuple[float, ...] | None, roi: Box | None, tolerance: float, curve: bool,
    figure: Path | None, as_json: bool, manifest: Path | None, prediction_path: str, truth_path: str,
    conditions: dict[str, str], table: Path | None, scratch: Path | None, label: str | None, any_label: bool,
) -> int:  # fmt: skip
    """Compare PRED with the mask TRUTH: Dice, IoU, precision, recall; for scores also AUPRC.

    PRED is a run store (its logits; a label of it with --label), a mask of integers, or a file of
    floating-point scores. Both may be addresses (https, s3, CryoET Data Portal).
    """
    from etsam_zarr.evaluation.figure import save_curve_figure
    from etsam_zarr.manifest import Pair, read_manifest, write_results
    from etsam_zarr.portal.table import Unresolved
    from etsam_zarr.sources import as_place

    if truth is not None and truth_option is not None:
        raise click.UsageError("Give TRUTH or --truth, not both.")
    truth = truth or truth_option
    on_portal = truth == "portal"
    if not on_portal and (annotation_ids or truth_object):
        raise click.UsageError("--annotation-ids and --truth-object go with --truth portal.")
    if manifest is not None:
        if prediction is not None or annotation_ids or not (truth is None or on_portal):
            raise click.UsageError("Give PRED and TRUTH, or --manifest, not both; its lines name the truths.")
        pairs = read_manifest(
            manifest, prediction=prediction_path, truth=None if on_portal else truth_path, conditions=conditions
        )
    elif prediction is None or truth is None or conditions:
        raise click.UsageError("Give PRED and TRUTH, or --manifest with a CSV of pairs.")
    else:
        place = None if on_portal else as_place(truth)
        pairs = [Pair({"prediction": prediction, "truth": truth}, as_place(prediction), place)]
    asked = Comparison(thresholds, roi, tolerance, curve, label, any_label, scratch)
    progress = Progress()
    rows: list[dict[str, float | str]] = []
    done: dict[str, Evaluation] = {}
    try:
        for pair in pairs:
            wanted = pair.truth or _wish(pair, manifest, annotation_ids or (), truth_object)
            if pair.prediction is None or isinstance(wanted, Unresolved):
                reason = wanted.reason if isinstance(wanted, Unresolved) else "the line names no prediction"
                progress(Notice(f"{pair.name} is skipped: {reason}."))
                rows.append({"skipped": reason})
                continue
            try:
                found = asked.evaluate(pair.prediction, wanted, pair.columns, progress)
            except EtsamZarrError as error:
                if manifest is None:
                    raise
                # The other pairs are still worth having; the exit code tells.
                click.echo(f"Error: {pair.name}: {error}", err=True)
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
            {**pair.columns, **(row if row.keys() & {"error", "skipped"} else done[str(pair.prediction)].as_json())}
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
    failed = sum("error" in row for row in rows)
    if failed:
        click.echo(f"Error: {failed} of {len(pairs)} pairs could not be compared; see above.", err=True)
    elif not done:
        click.echo(
            f"Error: all {len(pairs)} lines were skipped, see above. Where no annotation is named, --truth-object "
            "membrane takes all membrane masks that the portal has of a run, and --truth-path masks of your own.",
            err=True,
        )
    return 1 if failed or not done else 0


def _wish(
    pair: Pair, manifest: Path | None, annotation_ids: tuple[int, ...], object_name: str | None
) -> TruthWish | Unresolved:
    """Return which masks of the portal are the truth of a pair."""
    from etsam_zarr.portal.table import TruthWish, truth_of

    if manifest is not None:
        return truth_of(pair.columns, object_name=object_name)
    return TruthWish(annotation_ids, object_name)


def _show(prediction: Path | str, found: Evaluation) -> None:
    """Print a table for people."""
    from etsam_zarr.evaluation.metrics import ratios

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
