"""``etsam-zarr run``: segment a tomogram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from etsam_zarr_cli.amounts import duration_text
from etsam_zarr_cli.progress import Progress
from etsam_zarr_cli.report import plan_lines
from etsam_zarr_cli.run_options import Prepared, prepare, run_options
from etsam_zarr_cli.traffic import remove_default_cache, summary_lines
from etsam_zarr_cli.worker_options import Team, hired

from etsam_zarr.events import Notice

if TYPE_CHECKING:
    from etsam_zarr.pipeline import RunSummary
    from etsam_zarr.predictors import Predictors


@click.command()
@run_options
@click.option("--overwrite", is_flag=True, help="Delete a run store that is there, and start again.")
@click.option("--resume", is_flag=True, help="Go on with a run store that is there; this is the default.")
@click.option("--force", is_flag=True, help="Start even if the projection says that it does not fit.")
@click.option("--store-logits", is_flag=True, help="ETSAM's option; logits are always stored, see export --logits.")
@click.option("--post-process", is_flag=True, help="Clean the mask as well, like the command postprocess.")
@click.option(
    "--min-slices", "--post-process-min-slices", type=click.IntRange(min=1), default=10, show_default=True,
    help="With --post-process: drop components that span fewer slices.",
)  # fmt: skip
@click.pass_context
def command(
    context: click.Context, /, overwrite: bool, resume: bool, force: bool, store_logits: bool, post_process: bool,
    min_slices: int, **given: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Segment the membranes of the tomogram INPUT (MRC, OME-Zarr or Zarr) into a run store.

    Give the same command again after an interruption: it goes on where it was.
    """
    if overwrite and resume:
        raise click.UsageError("--overwrite and --resume contradict each other.")
    progress = Progress()
    try:
        prepared, summary = segment(given, progress, overwrite=overwrite, force=force)
    finally:
        progress.close()
    depth, height, width = prepared.volume.info.shape
    share = summary.voxels / (depth * height * width)
    if summary.already_finished:
        click.echo("This run is finished already; nothing was computed.")
    elif summary.model_seconds:
        outside = 1 - summary.model_seconds / summary.seconds / summary.workers
        together = f" of {summary.workers} workers" if summary.workers > 1 else ""
        click.echo(
            f"{duration_text(summary.seconds)}, of which {duration_text(summary.model_seconds)} in the model{together} "
            f"({max(0, outside):.0%} outside of it)"
        )
    click.echo(f"membranes  {summary.voxels} voxels ({share:.2%}) above logit {prepared.settings.logit_threshold:g}")
    for line in summary_lines(prepared.volume):
        click.echo(line)
    click.echo(f"run store  {prepared.destination if prepared.copy_to is None else prepared.copy_to.shown}")
    if post_process:
        from etsam_zarr_cli.postprocess import command as postprocess

        context.invoke(postprocess, source=prepared.destination, min_slices=min_slices)


def segment(
    given: dict[str, Any], progress: Progress, *, overwrite: bool = False, force: bool = False,
    predictors: Predictors | None = None,
) -> tuple[Prepared, RunSummary]:  # fmt: skip
    """Do what the options of a run ask for, after saying what that is; ``batch`` does so for each line.

    ``predictors`` keeps the model for the next one.
    """
    with hired(given, progress) as team:
        given = {**given, "team_size": team.count}
        return _segment(given, team, progress, overwrite=overwrite, force=force, predictors=predictors)


def _segment(
    given: dict[str, Any], team: Team, progress: Progress, *, overwrite: bool, force: bool,
    predictors: Predictors | None,
) -> tuple[Prepared, RunSummary]:  # fmt: skip
    prepared = prepare(given)
    # Only now torch: a wrong path or option is answered at once.
    from etsam_zarr_cli.resources import Resources

    from etsam_zarr.memory import check_fits
    from etsam_zarr.pipeline import run
    from etsam_zarr.run_request import RunRequest

    resources = Resources.of(prepared, given, team)
    for line in plan_lines(
        prepared, resources.projection, device=str(resources.device), precision=resources.precision, team=team
    ):  # fmt: skip
        click.echo(line, err=True)
    for warning in resources.warnings:
        progress(Notice(warning, warning=True))
    if not force:
        check_fits(resources.projection, prepared.destination, device_free=resources.device_free)
    request = RunRequest(
        prepared.plan, prepared.settings, prepared.model, resources.precision, resources.device,
        ome_zarr=given["ome_zarr"], level=given["level"], overwrite=overwrite,
        remote=prepared.remote, follow=team.follows(prepared.plan),
    )  # fmt: skip
    with prepared.volume, team.runtime(prepared, given, progress) as runtime:
        summary = run(
            prepared.volume, prepared.destination, request, runtime=runtime, predictors=predictors, on_event=progress
        )
        remove_default_cache(prepared.volume, asked_for=given["cache"] is not None)
    if prepared.copy_to is not None:
        from etsam_zarr.publish import publish

        copied = publish(prepared.destination, prepared.copy_to, options=prepared.remote, on_event=progress)
        progress(Notice(
            f"{copied.copied} of {copied.files} files were copied to {prepared.copy_to.shown}, all are there; the "
            f"local run store {prepared.destination} may be deleted."
        ))  # fmt: skip
    return prepared, summary
