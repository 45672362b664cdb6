"""How much memory and disk a run will take, projected before it starts, and whether that is there.

The model's part was fitted to peak resident memory measured on Linux x86-64 with PyTorch 2.13 (CPU, float32) for
SAM 2.1 Hiera-T at 256, 512 and 1024 pixels, Hiera-B+ at 512 and 1024, and a model of 5.7 M parameters at 256; the rest
is counted.
``benchmarks/memory.py`` compares the projection with what runs take.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from etsam_zarr.errors import DoesNotFitError
from etsam_zarr.maskpass import mask_chunks
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.overview import overview_factor
from etsam_zarr.plan import RunPlan, StagePlan
from etsam_zarr.sam.frames import FRAMES_AHEAD
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH
from etsam_zarr.volume import VolumeInfo
from etsam_zarr.zarr_volume import DEFAULT_CACHE_BYTES

MIB = 2**20

_IMPORTED = 260 * MIB  # the interpreter with torch, sam2 and zarr
_MODEL_FIXED = 50 * MIB
_MODEL_PER_PIXEL = 60.0
_MODEL_PER_PIXEL_AND_CHANNEL = 6.3
# What encoding the next slice meanwhile adds on a CPU, measured with Hiera-T at 256, 512 and 1024 pixels, and with a
# small model beside two busy programs; pairs of small images add less. Counted also where nothing is encoded ahead.
_AHEAD_FIXED = 50 * MIB
_AHEAD_PER_PIXEL = 200.0
_BFLOAT16_SHARE = 0.8  # of the activations, which autocast keeps partly in float32
# Of what one pass frees, the next one finds this share in pieces too small for it: measured with slices of 2048 x 2048,
# where it matters; of small slices nothing is left to speak of.
_LEFT_IN_PIECES = 0.5
_PASSING = 100 * MIB  # compression buffers, percentiles, blocks of the pyramid


@dataclass(frozen=True)
class Projection:
    """Bytes that a run takes at most at any time; nothing but ``prompted`` grows with the depth."""

    host: int
    device: int
    """0 where the model runs on the host."""
    disk: int
    prompted: int
    """The part of the memory that holds the prompted slices' memories and what attending to them takes."""


def project(
    plan: RunPlan, model: ModelConfig, info: VolumeInfo, *, weights: int, on_host: bool, half: bool
) -> Projection:
    """Project what a run takes.

    Parameters
    ----------
    weights
        Bytes of the model's weights in float32.
    on_host
        Whether the model runs on the CPU.
    half
        Whether it computes in bfloat16.
    """
    depth, height, width = info.shape
    plane, native = height * width, model.native_size**2
    tile = max(tile.y.size * tile.x.size for tile in plan.tiles)
    given = max(tile.height * tile.width for tile in plan.tiles)
    layer = info.chunks[0] * plane * info.dtype.itemsize
    cache = min(layer, DEFAULT_CACHE_BYTES) if info.chunks[0] > 1 else 0
    # One slab of whole slices is reduced for the overview while the next one is measured.
    measure = min(2 * plan.pass_slab, depth) * plane * info.dtype.itemsize + cache + 4 * plane * 4

    pixels = model.image_size**2
    activations = _MODEL_FIXED + int(pixels * (_MODEL_PER_PIXEL + _MODEL_PER_PIXEL_AND_CHANNEL * model.trunk_channels))
    if on_host:
        activations += _AHEAD_FIXED + int(pixels * _AHEAD_PER_PIXEL)
    if half:
        activations = int(activations * _BFLOAT16_SHARE)
    prompted = max(_prompted_bytes(stage, model) for stage in plan.stages)
    on_device = weights + activations + prompted
    frames = (FRAMES_AHEAD + 2) * pixels * 3 * 4
    # Stage 2 reads stage 1's logits of its own tile and of those around it.
    around = min(len(plan.tiles), 1 if plan.grid.independent else 9)
    slab = min(plan.slab, depth)
    logits = 3 * slab * native * 4 + around * min(slab, LOGIT_CHUNK_DEPTH) * native * 4 + 6 * given * 4
    # Loading holds the weights twice, the walk needs its activations: whichever is more.
    in_model = max(on_device, 2 * weights) if on_host else 2 * weights
    walk = slab * tile * info.dtype.itemsize + cache + frames + logits + in_model
    layer_depth = mask_chunks(info.shape)[0]
    mask = (
        layer_depth * plane
        + 4 * plane * 4
        + len(plan.tiles) * min(layer_depth, LOGIT_CHUNK_DEPTH) * native * 4
        + weights
    )
    largest = max(measure, walk, mask)
    left = int(_LEFT_IN_PIECES * (measure + walk + mask - largest))
    host = _IMPORTED + _PASSING + largest + left

    factor = overview_factor(info.shape)
    voxels = depth * plane
    # Repairs of all windows at worst hold every slice of the stage under way a second time.
    stored_stages = 2 if len(plan.windows) == 1 else 3
    disk = (
        stored_stages * len(plan.tiles) * depth * (native + model.hidden_dim) * 4
        + voxels // 8  # masks compress well; the score would not
        + 8 * voxels * 4 // (7 * factor**3)
        + len(plan.tiles) * sum(_stored_state(stage, model, len(plan.windows)) for stage in plan.stages)
    )
    return Projection(host=host, device=0 if on_host else on_device, disk=disk, prompted=prompted)


def check_fits(projection: Projection, destination: Path, *, device_free: int | None = None) -> None:
    """Compare a projection with what the machine has free.

    Parameters
    ----------
    destination
        Where the run store will be; it need not exist yet.
    device_free
        Free bytes of the device's own memory; None where the model runs on the host.

    Raises
    ------
    DoesNotFitError
        There is not enough; the message says of what, and what to change.
    """
    free = psutil.virtual_memory().available
    if projection.host > free:
        raise DoesNotFitError(
            f"The run would need {projection.host / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free. Lower "
            "--slab, give a coarser --level, take a smaller --model, or (where many slices are prompted) --profile "
            "etsam-v2 or a larger --grid-interval; --force runs it all the same."
        )
    if device_free is not None and projection.device > device_free:
        raise DoesNotFitError(
            f"The run would need {projection.device / 2**30:.1f} GiB on the device, {device_free / 2**30:.1f} GiB are "
            "free. Take a smaller --model, --profile etsam-v2, another --device; --force runs it all the same."
        )
    folder = next(parent for parent in (destination.absolute(), *destination.absolute().parents) if parent.is_dir())
    disk = shutil.disk_usage(folder).free
    # What an interrupted run has stored already is not needed again.
    stored = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    if projection.disk - stored > disk:
        raise DoesNotFitError(
            f"The run store would take up to {projection.disk / 2**30:.1f} GiB, {disk / 2**30:.1f} GiB are free at "
            f"{folder}. Give -o on another disk, or free some space; --force runs it all the same."
        )


def _prompted_bytes(stage: StagePlan, model: ModelConfig) -> int:
    """Return what the memories of prompted slices, and attending to all memories of a late slice, take."""
    kept = len(stage.prompted) * (model.memory_tokens * model.memory_dim * 2 + model.native_size**2 * 4)
    # Memories with positions (three copies of the memory's width), keys and values of one layer with rotations.
    attended = stage.last_tokens * (3 * model.memory_dim * 4 + 4 * model.hidden_dim * 4)
    return kept + attended


def _stored_state(stage: StagePlan, model: ModelConfig, windows: int) -> int:
    memory = model.memory_tokens * model.memory_dim * 2
    recent = 2 * model.recent_memories * memory + 2 * MIB
    return len(stage.prompted) * (memory + model.native_size**2 * 4) + windows * recent
