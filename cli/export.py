"""``etsam-zarr export``: results as MRC files, or scores as OME-Zarr."""

from __future__ import annotations

from pathlib import Path

import click
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.result_options import PATH

from etsam_zarr.runstore import RunStore
from etsam_zarr.stage_arrays import Stage


@click.command()
@click.argument("store", metavar="RUN", type=PATH)
@click.option("--mask", type=PATH, help="Write the membrane mask (MRC mode 0) here.")
@click.option("--processed-mask", type=PATH, help="Write the mask that 'postprocess' cleaned (MRC mode 0) here.")
@click.option("--components", type=PATH, help="Write the components (MRC mode 6, at most 65,535) here.")
@click.option("--logits", type=PATH, help="Write full-resolution float32 logits (MRC mode 2) here.")
@click.option("--scores", type=PATH, help="Write full-resolution scores as OME-Zarr with a pyramid here.")
@click.option(
    "--scores-type", type=click.Choice(["uint8", "float16", "float32"]), default="uint8", show_default=True,
    help="uint8: probabilities times 255; float32, float16: logits (neuroglancer cannot read float16).",
)  # fmt: skip
@click.option(
    "--stage", type=click.IntRange(1, 2), default=2, show_default=True, help="Stage of --logits and --scores."
)
@click.option(
    "--etsam-names", is_flag=True, help="Write NAME_etsam_predicted_mask.mrc, ..._logits.mrc and, where there is one, "
    "..._post_processed_mask.mrc, as ETSAM names its files.",
)  # fmt: skip
@click.option("--output-dir", type=PATH, help="Folder for --etsam-names. [default: the current one]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def command(
    store: Path, mask: Path | None, processed_mask: Path | None, components: Path | None, logits: Path | None,
    scores: Path | None, scores_type: str, stage: Stage, etsam_names: bool, output_dir: Path | None, overwrite: bool,
) -> None:  # fmt: skip
    """Write results of the run store RUN for other programs, with the tomogram's voxel size and origin."""
    if output_dir is not None and not etsam_names:
        raise click.UsageError("--output-dir goes with --etsam-names; other files go where their options say.")
    if not (mask or processed_mask or components or logits or scores or etsam_names):
        raise click.UsageError(
            "Nothing to export: give --mask, --processed-mask, --components, --logits, --scores or --etsam-names."
        )
    run = RunStore.open(store)
    from etsam_zarr import export
    from etsam_zarr.score_image import SCORE_TYPES

    exports = export.etsam_exports(run, output_dir or Path()) if etsam_names else []
    if mask is not None:
        exports.append(export.mask_export(run, mask))
    if processed_mask is not None:
        exports.append(export.processed_mask_export(run, processed_mask))
    if components is not None:
        exports.append(export.components_export(run, components))
    if logits is not None:
        exports.append(export.logits_export(run, logits, stage=stage))
    if scores is not None:
        kind = next(kind for kind in SCORE_TYPES if kind == scores_type)
        exports.append(export.scores_export(run, scores, dtype=kind, stage=stage))
    progress = Progress()
    try:
        export.write_all(exports, overwrite=overwrite, on_event=progress)
    finally:
        progress.close()
    for written in exports:
        click.echo(f"{written.name}  {written.path}")
