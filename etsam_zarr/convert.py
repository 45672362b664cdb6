"""Makes an OME-Zarr image of any volume, layer by layer, so that a killed conversion goes on where it was.

1. The arrays of all levels are created in ``<destination>.partial``, beside the destination.
2. The finest level is copied in layers as deep as a chunk (or shard); a layer in blocks of about 128 MiB.
3. The coarser levels are made from it on disk (see :mod:`etsam_zarr.ome.pyramid`).
4. After each layer a small ledger in the partial folder says how many are done, for which source and settings
   (see :mod:`etsam_zarr.convert_ledger`).
5. The folder gets its final name; nothing unfinished ever carries it.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zarr

from etsam_zarr.atomic import disk_errors
from etsam_zarr.convert_ledger import LEDGER, ConvertLedger
from etsam_zarr.errors import OutputExistsError, SettingsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span, ceil_div, cut, pyramid_shapes
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid, zarr_format
from etsam_zarr.ome.pyramid import build_pyramid, write_unit
from etsam_zarr.volume import Volume

# As deep as a usual slab, so that slices can be read without decoding others; 4 MiB a file for float32. Of
# seven shapes between 16 x 128 x 128 and 128 x 128 x 128 the flat ones were read fastest in slabs of 16
# slices (0.2 to 0.5 s against 1.5 s for the cube, 256 x 512 x 512 float32, 2 cores), and converted about as
# fast.
DEFAULT_CHUNKS: Shape3 = (16, 256, 256)
_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True)
class ConvertSettings:
    """How the OME-Zarr image is to be written."""

    version: OmeVersion = "0.4"
    chunks: Shape3 = DEFAULT_CHUNKS
    shards: Shape3 | None = None
    """Write unit in voxels, only for version 0.5."""
    voxel_size: tuple[float, float, float] | None = None
    """Angstrom, z, y, x; None keeps the source's."""


def convert(
    source: Volume,
    destination: Path,
    *,
    settings: ConvertSettings | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> Path:
    """Write ``source`` as an OME-Zarr image with a pyramid in all three axes, values and type unchanged.

    Called again after an interruption it goes on with the layer that was begun, provided that source and
    settings are the same; otherwise it starts anew.

    Parameters
    ----------
    source
        Any volume.
    destination
        Folder to make.
    settings
        Version, chunks and so on; None for the defaults.
    overwrite
        Replace a Zarr at ``destination``, once the new one is complete.
    on_event
        Told about each layer.

    Returns
    -------
    Path
        ``destination``.

    Raises
    ------
    OutputExistsError
        ``destination`` exists and ``overwrite`` is false, or what is there is no Zarr.
    OutputError
        The disk is full or cannot be written; finished layers are kept.
    SettingsError
        ``destination`` is the source, or the settings contradict each other.
    InputError
        The source cannot be read.
    """
    settings = settings or ConvertSettings()
    zarr_format(settings.version)
    _check_destination(source, destination, overwrite=overwrite)
    partial = destination.with_name(f"{destination.name}.partial")
    ledger = ConvertLedger.resume(partial, _task(source, settings), on_event)
    if ledger.layers:
        arrays = _open_arrays(partial, source.info.shape)
    else:
        # Before anything else, so that a later call knows the folder for its own.
        ledger.save()
        arrays = _create_arrays(partial, source, settings)
    layers = _copy(source, arrays[0], ledger, on_event)
    build_pyramid(
        arrays,
        reduce="mean",
        on_event=on_event,
        done=max(0, ledger.layers - layers),
        after_layer=lambda count: ledger.finish(layers + count),
    )
    _publish(partial, destination)
    return destination


def _task(source: Volume, settings: ConvertSettings) -> dict[str, Any]:
    """Return what must be equal for a partial result to be worth going on with."""
    info = source.info
    facts = {
        "source": source.digest(),
        "shape": info.shape,
        "chunks": info.chunks,
        "dtype": info.dtype.str,
        "voxel_size": info.voxel_size,
        "origin": info.origin,
        "settings": asdict(settings),
        "layout": 1,
    }
    task: dict[str, Any] = json.loads(json.dumps(facts))
    return task


def _create_arrays(partial: Path, source: Volume, settings: ConvertSettings) -> list[zarr.Array[Any]]:
    info = source.info
    return create_pyramid(
        partial,
        shape=info.shape,
        dtype=info.dtype,
        voxel_size=settings.voxel_size or info.voxel_size,
        origin=info.origin,
        chunks=settings.chunks,
        shards=settings.shards,
        version=settings.version,
        name=info.name,
    )


def _open_arrays(partial: Path, shape: Shape3) -> list[zarr.Array[Any]]:
    # By their known paths: zarr warns when it lists a group that holds a file it does not know, our ledger.
    levels = len(pyramid_shapes(shape))
    return [zarr.open_array(partial / str(level), mode="r+") for level in range(levels)]


def _copy(source: Volume, finest: zarr.Array[Any], ledger: ConvertLedger, on_event: OnEvent) -> int:
    """Copy the layers that are missing; return how many there are in all."""
    step = _step(source, finest)
    layers = cut(Span(0, finest.shape[0]), step[0])
    done = min(ledger.layers, len(layers))
    begun = time.monotonic()
    on_event(Started("convert", total=finest.shape[0], done=sum(z.size for z in layers[:done])))
    for number, z in enumerate(layers[done:], start=done + 1):
        for y in cut(Span(0, finest.shape[1]), step[1]):
            for x in cut(Span(0, finest.shape[2]), step[2]):
                voxels = source.read(z, y, x)
                with disk_errors("writing voxels", str(finest.store_path)):
                    finest[z.as_slice(), y.as_slice(), x.as_slice()] = voxels
        ledger.finish(number)
        on_event(Advanced("convert", z.size))
    on_event(Finished("convert", time.monotonic() - begun))
    return len(layers)


def _step(source: Volume, finest: zarr.Array[Any]) -> Shape3:
    """Return the block in which to copy: whole write units, and whole source chunks where memory allows.

    Portal stores have chunks of 256 slices: copied in layers of 16, each would be decoded 16 times.
    """
    unit = write_unit(finest)
    itemsize = source.info.dtype.itemsize
    z, y, x = (ceil_div(chunk, n) * n for chunk, n in zip(source.info.chunks, unit, strict=True))
    if z == unit[0] or z * y * x * itemsize > _BLOCK_BYTES:
        z, y, x = unit
    across = max(1, _BLOCK_BYTES // (z * y * x * itemsize))
    needed = ceil_div(finest.shape[2], x)
    return z, y * max(1, across // needed), x * min(across, needed)


def _check_destination(source: Volume, destination: Path, *, overwrite: bool) -> None:
    here, origin = destination.resolve(), Path(source.info.uri).resolve()
    if here == origin or here in origin.parents or origin in here.parents:
        raise SettingsError(
            f"The destination {destination} and the source {source.info.uri} lie in each other; writing one "
            "would destroy the other. Choose another destination."
        )
    if not destination.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{destination} exists already. Choose another name, or replace it with --overwrite.")
    if not _is_zarr(destination):
        raise OutputExistsError(
            f"{destination} exists and is no Zarr, so it is not replaced even with --overwrite. Move it "
            "away, or choose another name."
        )


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", ".zarray", "zarr.json"))


def _publish(partial: Path, destination: Path) -> None:
    """Give the finished folder its name, and only then let go of what it replaces."""
    replaced = destination.with_name(f"{destination.name}.replaced")
    with disk_errors("giving the result its name", destination):
        if replaced.exists():
            shutil.rmtree(replaced)
        if destination.exists():
            destination.rename(replaced)
        partial.rename(destination)
        # Last, so that a kill before the renaming finds the ledger of finished work and only renames.
        (destination / LEDGER).unlink(missing_ok=True)
        shutil.rmtree(replaced, ignore_errors=True)
