"""Volume and mask pairs to train on: checked once, then read a few slices at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from etsam_zarr.atomic import write_atomically
from etsam_zarr.config import NormalizeMethod
from etsam_zarr.errors import InputError
from etsam_zarr.fuse import LogitBounds, fuse
from etsam_zarr.geometry import Shape3, Span, cut
from etsam_zarr.intensity import IntensityMeter, IntensityRange, normalizer
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import Volume

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

DEFAULT_LABEL = "labels/membranes"
_SLAB = 16
# Headers round voxel sizes; a mismatch of binning is a factor of two.
_VOXEL_SIZE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Pair:
    """Where a tomogram and its truth lie."""

    volume: str
    mask: str | None = None
    """None is the label ``membranes`` inside the volume's OME-Zarr."""

    @property
    def mask_uri(self) -> str:
        """Where the truth lies."""
        return self.mask or f"{self.volume.rstrip('/')}/{DEFAULT_LABEL}"


@dataclass(frozen=True)
class PairFacts:
    """What one pass over a pair found."""

    limits: IntensityRange
    membrane_voxels: int


class TrainingVolume:
    """One checked pair, read slice by slice as model input and truth.

    Parameters
    ----------
    pair
        Where it lies.
    facts_folder
        Where the result of the one pass over the data is kept for the next start.

    Raises
    ------
    InputError
        Volume and mask differ in shape or voxel size, or the mask is empty.
    """

    def __init__(self, pair: Pair, *, normalize_method: NormalizeMethod, facts_folder: Path) -> None:
        self.pair = pair
        self._volume = open_volume(pair.volume)
        self._mask = open_volume(pair.mask_uri)
        _check_alike(self._volume, self._mask)
        self.shape: Shape3 = self._volume.info.shape
        self.facts = _facts(self._volume, self._mask, facts_folder)
        self._normalize: Callable[[npt.NDArray[Any]], Image] = normalizer(normalize_method, self.facts.limits)
        self._stage1: tuple[zarr.Array[Any], LogitBounds] | None = None

    def use_stage1(self, native_logits: Path, bounds: LogitBounds) -> None:
        """Give stage 1's native logits, a Zarr array (z, native, native): slices are then stage 2's input."""
        self._stage1 = (zarr.open_array(native_logits, mode="r"), bounds)

    @property
    def digest(self) -> str:
        """SHA-256 of what identifies volume and mask."""
        return hashlib.sha256(f"{self._volume.digest()} {self._mask.digest()}".encode()).hexdigest()

    def planes(self, z: Span) -> tuple[list[Image], list[Mask]]:
        """Return whole slices: the model's input as a run computes it, and the truth."""
        normalized = [self._normalize(plane) for plane in self._volume.read(z)]
        truth = [plane > 0 for plane in self._mask.read(z)]
        if self._stage1 is not None:
            bounds = self._stage1[1]
            normalized = [
                fuse(plane, logits, bounds) for plane, logits in zip(normalized, self.stage1_logits(z), strict=True)
            ]
        return normalized, truth

    def input_planes(self, z: Span) -> list[Image]:
        """Return whole slices of the model's input alone."""
        return self.planes(z)[0]

    def stage1_logits(self, z: Span) -> Image:
        """Return stage 1's logits at the volume's own resolution, shape (z, y, x)."""
        import torch

        if self._stage1 is None:
            raise ValueError("stage 1's output was not given")
        native = torch.from_numpy(np.asarray(self._stage1[0][z.as_slice()], dtype=np.float32))
        full = torch.nn.functional.interpolate(
            native[:, None], size=self.shape[1:], mode="bilinear", align_corners=False
        )
        logits: Image = full[:, 0].numpy()
        return logits


def _check_alike(volume: Volume, mask: Volume) -> None:
    if volume.info.shape != mask.info.shape:
        raise InputError(
            f"{mask.info.uri} has {_by(mask.info.shape)} voxels and its volume {volume.info.uri} has "
            f"{_by(volume.info.shape)}. A mask must cover its volume voxel by voxel: give the mask at the same binning."
        )
    ours, theirs = volume.info.voxel_size, mask.info.voxel_size
    if ours is None or theirs is None:
        return
    if any(abs(a - b) > _VOXEL_SIZE_TOLERANCE * a for a, b in zip(ours, theirs, strict=True)):
        raise InputError(
            f"The mask {mask.info.uri} has a voxel size of {_sizes(theirs)} A and its volume {volume.info.uri} of "
            f"{_sizes(ours)} A; they may differ by 2 %. Give the mask that belongs to this volume, or correct the "
            "header that is wrong."
        )


def _facts(volume: Volume, mask: Volume, folder: Path) -> PairFacts:
    """Measure intensity and truth in one streamed pass, or recall an earlier one."""
    key = hashlib.sha256(f"{volume.digest()} {mask.digest()}".encode()).hexdigest()[:24]
    path = folder / f"{key}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        return PairFacts(IntensityRange(**stored["limits"]), stored["membrane_voxels"])
    meter = IntensityMeter(volume.info.shape)
    count = 0
    for span in cut(Span(0, volume.info.shape[0]), _SLAB):
        meter.add(span.start, volume.read(span))
        count += int(np.count_nonzero(mask.read(span)))
    if count == 0:
        raise InputError(
            f"The mask {mask.info.uri} is empty: none of its {_by(mask.info.shape)} voxels is above 0. There is "
            "nothing to learn from it; leave this pair out or give the right mask."
        )
    facts = PairFacts(meter.result(), count)
    record = {"limits": dataclasses.asdict(facts.limits), "membrane_voxels": count, "volume": volume.info.uri}
    write_atomically(path, json.dumps(record, indent=1).encode())
    return facts


def _by(shape: Shape3) -> str:
    return " x ".join(str(n) for n in shape)


def _sizes(voxel_size: tuple[float, float, float]) -> str:
    return " x ".join(f"{edge:g}" for edge in voxel_size)
