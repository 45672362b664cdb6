"""Writes a phantom to disk as an OME-Zarr image with the label ``membranes``, tile by tile."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.errors import DoesNotFitError, OutputExistsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid, register_label, zarr_format
from etsam_zarr.ome.pyramid import build_pyramid
from etsam_zarr.phantom.volume import TILE, Phantom, PhantomSettings, SignalMeter, noise_scale

TRUTH_LABEL = "membranes"
"""Name of the label that holds the truth."""
SETTINGS_ATTRIBUTE = "etsam_zarr_phantom"
"""Attribute of the image group that says how the phantom was made."""
_TRUTH_COLOUR = (255, 170, 0, 255)
# Image and label with their coarser levels, a seventh more; noise hardly compresses.
_BYTES_PER_VOXEL = 6


def write_phantom(
    path: Path | str,
    settings: PhantomSettings,
    *,
    chunks: Shape3 = TILE,
    version: OmeVersion = "0.4",
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> Path:
    """Make a phantom on disk, in memory that does not depend on its size.

    1. Tile by tile, the noiseless tomogram and the truth are computed and written, and the signal's
    variance is
       added up.
    2. Tile by tile, noise scaled to the wanted ratio is added.
    3. The coarser levels are built; only then does the phantom appear at ``path``.

    Parameters
    ----------
    path
        Where to; by custom it ends in ``.zarr``.
    settings
        What to make.
    chunks
        Storage chunks in z, y, x; they do not change the voxels.
    version
        OME-Zarr version to write.
    overwrite
        Whether to replace what is there.

    Returns
    -------
    pathlib.Path
        ``path``.

    Raises
    ------
    OutputExistsError
        Something is there already.
    DoesNotFitError
        The disk has too little room.
    OutputError
        The destination cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists already. Choose another name, or give --overwrite to replace it by the new phantom."
        )
    _check_room(path, settings.shape)
    temporary = path.with_name(f".{path.name}.partial")
    phantom = Phantom(settings)
    begun = time.monotonic()
    tiles = list(phantom.tiles())
    on_event(Started("phantom", total=2 * len(tiles), unit="tiles"))
    with disk_errors("writing the phantom", path):
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.open_group(temporary, mode="w", zarr_format=zarr_format(version))
        common: dict[str, Any] = {
            "shape": settings.shape,
            "voxel_size": (settings.voxel_size,) * 3,
            "origin": (0.0, 0.0, 0.0),
            "chunks": chunks,
            "version": version,
        }
        levels = create_pyramid(group, dtype="float32", name=path.name.removesuffix(".zarr"), **common)
        label = register_label(group, TRUTH_LABEL, version=version)
        truth = create_pyramid(label, dtype="uint8", name=TRUTH_LABEL, label_colours={1: _TRUTH_COLOUR}, **common)
        meter = SignalMeter()
        for box in tiles:
            where = _slices(box)
            signal = phantom.signal(box)
            meter.add(signal)
            levels[0][where] = signal
            truth[0][where] = phantom.truth(box)
            on_event(Advanced("phantom"))
        scale = noise_scale(settings, meter.variance)
        for box in tiles:
            where = _slices(box)
            levels[0][where] = np.asarray(levels[0][where]) + np.float32(scale) * phantom.noise(box)
            on_event(Advanced("phantom"))
        on_event(Finished("phantom", time.monotonic() - begun))
        build_pyramid(levels, reduce="mean", on_event=on_event)
        build_pyramid(truth, reduce="max", on_event=on_event)
        group.attrs[SETTINGS_ATTRIBUTE] = {
            **dataclasses.asdict(settings),
            "signal_variance": meter.variance,
            "noise_deviation": scale,
        }
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    return path


def _slices(box: tuple[Span, Span, Span]) -> tuple[slice, slice, slice]:
    z, y, x = (span.as_slice() for span in box)
    return z, y, x


def _check_room(path: Path, shape: Shape3) -> None:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    needed = shape[0] * shape[1] * shape[2] * _BYTES_PER_VOXEL
    if needed > free:
        raise DoesNotFitError(
            f"A phantom of {shape[0]} x {shape[1]} x {shape[2]} voxels takes about {needed / 1e9:.1f} GB and "
            f"{existing} has {free / 1e9:.1f} GB free. Choose a smaller --shape or another disk."
        )
