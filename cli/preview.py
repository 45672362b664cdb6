"""``etsam-zarr preview``: a contact sheet."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.portal_options import choice_options, chosen, given_choice
from etsam_zarr_cli.remote_options import REGION_OPTIONS, access_options, given_region, with_options
from etsam_zarr_cli.result_options import PATH, input_label, numbers
from etsam_zarr_cli.traffic import summary_lines
from etsam_zarr_cli.triples import voxel_size as to_voxel_size


@click.command()
@click.argument("source", metavar="RUN")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="PNG or JPEG to write. [default: RUN's name with .png, beside it where it is local]",
)
@click.option("--mask", metavar="MASK", help="Outline this mask, MRC or OME-Zarr. [default: the run's]")
@click.option("--no-mask", is_flag=True, help="Outline nothing.")
@click.option("--truth", metavar="MASK", help="Tint this mask, MRC or OME-Zarr, to compare with it.")
@click.option("--slices", type=int, default=6, show_default=True, help="Number of xy slices.")
@click.option("--columns", type=int, default=3, show_default=True, help="Panels side by side.")
@click.option("--panel", type=int, default=400, show_default=True, help="Width of a panel in pixels.")
@click.option("--percentiles", type=numbers, default="1,99", show_default=True, help="Shown as black and white.")
@click.option("--voxel-size", type=to_voxel_size, metavar="A[,A,A]", help="Voxel size in angstrom, one or z,y,x.")
@input_label
@choice_options
@with_options(REGION_OPTIONS)
@access_options
def command(
    source: str, output: Path | None, mask: str | None, no_mask: bool, truth: str | None, slices: int, columns: int,
    panel: int, percentiles: tuple[float, ...], voxel_size: tuple[float, float, float] | None, label: str | None,
    **asked: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    """Draw slices and cuts of RUN, or of a tomogram (MRC, OME-Zarr), with the membranes outlined."""
    if len(percentiles) != 2:
        raise click.BadParameter("give two numbers, such as 1,99.", param_hint="--percentiles")
    from etsam_zarr.remote.address import is_remote
    from etsam_zarr.results import Source
    from etsam_zarr.sources import base_name, open_volume
    from etsam_zarr.viewing.preview import PreviewSettings, contact_sheet, open_for_pixels, save_sheet

    settings = PreviewSettings(slices, columns, panel, (percentiles[0], percentiles[1]))
    given = Source.at(Path(source), label=label)
    source = chosen(source, given_choice(asked))
    with contextlib.ExitStack() as stack:
        # A run store is itself an image: a reduced copy of its tomogram, large enough for a sheet.
        in_region = asked["roi"] is not None or asked["roi_angstrom"] is not None
        if in_region:
            volume = given_region(stack.enter_context(open_volume(source, voxel_size=voxel_size)), asked)
        else:
            volume = stack.enter_context(open_for_pixels(source, panel, voxel_size=voxel_size))
        beside = Path(f"{volume.info.name}.png")
        if not is_remote(volume.info.uri):
            beside = Path(source).with_name(f"{base_name(source)}.png")
        place = output or beside
        if in_region:
            depth = volume.info.shape[0]
        else:
            depth = given.store.shape[0] if given.store else stack.enter_context(open_volume(source)).info.shape[0]
        outlined = None
        if mask is not None:
            outlined = stack.enter_context(open_for_pixels(mask, panel))
        elif given.store is not None and not no_mask:
            labelled = Source.at(Path(source), label=label or given.latest_label())
            outlined = stack.enter_context(open_for_pixels(labelled.mask_place(), panel))
        tinted = stack.enter_context(open_for_pixels(truth, panel)) if truth is not None else None
        save_sheet(contact_sheet(volume, outlined, truth=tinted, settings=settings, depth=depth), place)
    click.echo(f"sheet  {place}")
    for line in summary_lines(volume):
        click.echo(line, err=True)
