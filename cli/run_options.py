"""The options that ``run`` and ``plan`` share, and how they become a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from etsam_zarr_cli.portal_options import CHOICE_OPTIONS, chosen, given_choice
from etsam_zarr_cli.remote_options import (
    ACCESS_OPTIONS,
    CACHE_OPTION,
    REGION_OPTIONS,
    given_access,
    given_cache,
    given_region,
)
from etsam_zarr_cli.traffic import need_of
from etsam_zarr_cli.triples import voxel_size as to_voxel_size
from etsam_zarr_cli.window_options import WINDOW_OPTIONS, given_windows
from etsam_zarr_cli.worker_options import WORKER_OPTIONS

from etsam_zarr.config import PROFILES, Settings, resolve_settings
from etsam_zarr.errors import SettingsError
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.plan import RunPlan, plan_run
from etsam_zarr.remote.address import RemoteAddress, as_uri, is_remote
from etsam_zarr.remote.chunk_supply import Need
from etsam_zarr.remote.volumes import RemoteOptions, keep_chunks, secrets_of
from etsam_zarr.runstore import SUFFIX
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import Volume

_PROMPTS = click.Choice(["zero", "grid", "grid_zero", "stage1_partial", "etsam_stage1_partial"])
_FILE = click.Path(path_type=Path)

_OPTIONS: list[Callable[[Any], Any]] = [
    click.argument("source", metavar="INPUT"),
    click.option("-o", "--output", type=_FILE, help=f"Run store to make; for s3:// a local one is made, then copied. "
                 f"[default: INPUT's name with {SUFFIX}]"),
    click.option("--output-dir", type=_FILE, help="Folder for the run store, which gets INPUT's name there."),
    click.option(
        "--profile", type=click.Choice(list(PROFILES)),
        help="Named settings: etsam-v1 is ETSAM as published, etsam-v2 as it was later. [default: the model's own, "
        "which for ETSAM are etsam-v1]",
    ),
    click.option(
        "--model",
        help="sam2.1_hiera_b+ (ETSAM's), demo-256 (bundled), another name, or a YAML config in sam2's format. "
        "[default: ETSAM's if its weights are here, else demo-256]",
    ),
    click.option("--stage1-checkpoint", type=_FILE, help="Weights of stage 1 in ETSAM's file format."),
    click.option("--stage2-checkpoint", type=_FILE, help="Weights of stage 2 in ETSAM's file format."),
    click.option("--stage1-prompt", type=_PROMPTS, help="Prompts of stage 1."),
    click.option("--stage2-prompt", type=_PROMPTS, help="Prompts of stage 2."),
    click.option("--grid-interval", type=int, help="Distance of prompted slices and of grid points."),
    click.option(
        "--normalize-method", type=click.Choice(["min_max_positive_values", "softplus_minmax", "percentile"]),
        help="How voxel values become the model's input.",
    ),
    click.option("--stage1-logit-threshold", type=float, help="Stage 1 logits above it make the prompts of stage 2."),
    click.option("--logit-threshold", type=float, help="Stage 2 logits above it are membrane."),
    click.option(
        "--prompted-slices", type=click.Choice(["etsam", "predict"]),
        help="What prompted slices show: their prompt, as ETSAM does, or a prediction made backwards.",
    ),
    click.option(
        "--tiling", type=click.Choice(["auto", "whole", "tiles", "quadrants"]),
        help="What the model sees as one image: the whole slice, resized, as ETSAM does; overlapping tiles of exactly "
        "the image size; quadrants, ETSAM's split processing. [default: auto, tiles where a slice is larger]",
    ),
    click.option(
        "--overlap", type=float, metavar="F|N",
        help="Least overlap of tiles: below 1 a fraction of the image size, else voxels. [default: 0.125]",
    ),
    click.option(
        "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True,
        help="Of the computation; auto takes bfloat16 where the device computes it fast.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N."),
    *WORKER_OPTIONS,
    *WINDOW_OPTIONS,
    click.option("--slab", type=int, help="Slices read at once and saved together. [default: 16, or fewer]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the model. [default: all cores]"),
    click.option("--level", type=click.IntRange(min=0), default=0, show_default=True, help="Level of INPUT's pyramid."),
    click.option("--voxel-size", type=to_voxel_size, metavar="A[,A,A]", help="Voxel size in angstrom, one or z,y,x."),
    click.option(
        "--ome-zarr", "ome_zarr", type=click.Choice(["0.4", "0.5"]), default="0.4", show_default=True,
        help="OME-Zarr version of the run store.",
    ),
    *CHOICE_OPTIONS,
    *REGION_OPTIONS,
    CACHE_OPTION,
    *ACCESS_OPTIONS,
]  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before the work begins."""

    volume: Volume
    destination: Path
    settings: Settings
    model: ModelSpec
    plan: RunPlan
    remote: RemoteOptions
    """How the volume was opened, and where its chunks are kept, if it is remote."""
    need: Need | None
    """What it will fetch, if it is remote."""
    copy_to: RemoteAddress | None
    """Where the finished run store is to be copied, if the output is an address."""


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def prepare(given: dict[str, Any]) -> Prepared:
    """Turn the options of the command line into a plan."""
    model = choose_model(
        given["model"], stage1_checkpoint=given["stage1_checkpoint"], stage2_checkpoint=given["stage2_checkpoint"]
    )
    names = ("stage1_prompt", "stage2_prompt", "grid_interval", "normalize_method", "stage1_logit_threshold",
             "logit_threshold", "prompted_slices", "tiling", "overlap")  # fmt: skip
    settings = resolve_settings(
        given["profile"], model_settings=model.settings, **{name: given[name] for name in names}
    )
    source = chosen(given["source"], given_choice(given))
    access = given_access(given)
    opened = open_volume(source, level=given["level"], voxel_size=given["voxel_size"], remote=access)
    volume = given_region(opened, given)
    copy_to = _copy_to(given)
    destination = _destination(given, volume) if copy_to is None else Path(copy_to.path.rpartition("/")[2])
    plan = plan_run(
        volume.info.shape, settings, model.config, voxel_bytes=volume.info.dtype.itemsize, slab=given["slab"],
        **given_windows(given, volume.info.shape[0], destination),
    )  # fmt: skip
    remote = replace(access, cache=given_cache(given, destination), secrets=secrets_of(source))
    keep_chunks(volume, remote.cache)
    return Prepared(volume, destination, settings, model, plan, remote, need_of(volume), copy_to)


def _copy_to(given: dict[str, Any]) -> RemoteAddress | None:
    """Return the output if it is an address; the run then works in the present folder, under the same name."""
    output = "" if given["output"] is None else as_uri(given["output"])
    if not is_remote(output):
        return None
    address = RemoteAddress.parse(output)
    if address.scheme != "s3" or not address.path:
        raise SettingsError(
            f"The output is {address.shown}; a run store is written to a local path, or to s3://bucket/path."
        )
    if given["output_dir"] is not None:
        raise SettingsError("Both -o and --output-dir are given. Give one of them.")
    return address


def _destination(given: dict[str, Any], volume: Volume) -> Path:
    """Return where the run store goes: beside a local input unless the user says otherwise."""
    output: Path | None = given["output"]
    folder: Path | None = given["output_dir"]
    if output is not None and folder is not None:
        raise SettingsError("Both -o and --output-dir are given. Give one of them.")
    if output is not None:
        return output
    beside = Path() if is_remote(volume.info.uri) else Path(volume.info.uri).parent
    return (folder or beside) / f"{volume.info.name}{SUFFIX}"
