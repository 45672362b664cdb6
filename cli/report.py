"""Plans and results in words, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etsam_zarr_cli.amounts import bytes_text
from etsam_zarr_cli.run_options import Prepared
from etsam_zarr_cli.traffic import plan_line
from etsam_zarr_cli.worker_options import Team

from etsam_zarr.plan import RunPlan, StagePlan
from etsam_zarr.volume import VolumeInfo

if TYPE_CHECKING:
    # It imports torch, and a wrong path or option shall be answered before that.
    from etsam_zarr.memory import Projection


STANDS_IN = (
    "ETSAM's weights are not on this machine, so this uses the bundled demonstration model; 'etsam-zarr weights fetch' "
    "gets ETSAM's (2 x 320 MB)"
)


def plan_lines(
    prepared: Prepared, projection: Projection, *, device: str, precision: str, team: Team
) -> list[str]:  # fmt: skip
    """Describe what a run will do and need."""
    info, plan = prepared.volume.info, prepared.plan
    kind = model_kind(untrained=prepared.model.untrained, bundled=prepared.model.bundled)
    note = [f"note       {STANDS_IN}"] if prepared.model.stands_in else []
    return [
        f"volume     {size(info)}, {info.format}, {info.uri}",
        f"output     {prepared.destination}"
        + ("" if prepared.copy_to is None else f", copied to {prepared.copy_to.shown} at the end"),
        f"model      {prepared.model.config.name}{kind}, image {plan.image_size} x {plan.image_size}, "
        f"{precision} on {device}",
        *note,
        f"work       {_tiles(plan)}, {_count(len(plan.windows), 'window')}, "
        f"{_count(plan.slabs, 'slab')} of {plan.slab} slices, 2 stages",
        *(_stage_line(stage, plan) for stage in plan.stages),
        *([] if team.here else [team.line(plan)]),
        f"memory     {bytes_text(projection.host)} on the host"
        + (f", {bytes_text(projection.device)} on {device}" if projection.device else ""),
        f"disk       {bytes_text(projection.disk)} at most",
        *([] if prepared.need is None else [plan_line(prepared.need, prepared.remote.cache)]),
    ]


def model_kind(*, untrained: bool, bundled: bool) -> str:
    """Say in brackets what people must know of a model before they believe its result.

    >>> model_kind(untrained=False, bundled=False)
    ''
    """
    if untrained:
        return " (untrained: its result means nothing)"
    return " (bundled demonstration model, trained on simulated tomograms)" if bundled else ""


def size(info: VolumeInfo) -> str:
    """Describe a volume's extent: voxels, type and voxel size."""
    z, y, x = info.shape
    if info.voxel_size is None:
        spacing = "voxel size unknown"
    elif len(set(info.voxel_size)) == 1:
        spacing = f"voxel {info.voxel_size[0]:g} A"
    else:
        spacing = "voxel {:g} x {:g} x {:g} A (z y x)".format(*info.voxel_size)
    return f"{z} x {y} x {x} (z y x) {info.dtype}, {spacing}"


def _tiles(plan: RunPlan) -> str:
    """Say what the model sees as one image."""
    grid, (first, *others) = plan.grid, plan.tiles
    if grid.tiling == "whole":
        return "1 tile"
    if grid.tiling == "quadrants":
        return "4 quadrants"
    count = _count(len(plan.tiles), "tile")
    beside = f" that overlap by {grid.overlap} or more" if others else ""
    return f"{count} of {first.height} x {first.width}{beside}"


def _stage_line(stage: StagePlan, plan: RunPlan) -> str:
    count = len(stage.prompted)
    line = f"stage {stage.stage}    prompt {stage.prompt} on {_count(count, 'slice')}"
    if count == 1:
        return f"{line}; the cost of a slice does not depend on the depth"
    return (
        f"{line}, read and encoded beforehand; every slice attends to {stage.first_tokens} to {stage.last_tokens} "
        f"memory tokens ({stage.attention_growth:.1f} times as many as with one prompted slice: grows with the depth)"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
