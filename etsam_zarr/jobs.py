"""What a process is told to compute: everything it needs to open for itself, and no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etsam_zarr.config import Precision, Settings
from etsam_zarr.fuse import CLIP, LogitBounds
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange
from etsam_zarr.lease import Fence
from etsam_zarr.ledger import Block
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.plan import RunPlan
from etsam_zarr.remote.address import is_remote
from etsam_zarr.remote.volumes import RemoteOptions, keep_chunks
from etsam_zarr.roi import RoiVolume
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import Volume, VolumeInfo

Work = Literal["conditioning", "window", "repair"]
"""Giving a tile's prompts; computing a window; making its beginning agree with the window before it."""


ASSUMED_BOUNDS = LogitBounds(-float(CLIP), float(CLIP))
"""What stage 2 takes the bounds of stage 1's logits to be where it follows stage 1 before that has ended."""


@dataclass(frozen=True)
class VolumeAddress:
    """How a volume is opened again, in any process."""

    uri: str
    level: int = 0
    voxel_size: tuple[float, float, float] | None = None
    roi: str | None = None
    """The region of it, as :attr:`VolumeInfo.roi` has it; None is the whole."""
    remote: RemoteOptions | None = None

    @classmethod
    def of(cls, info: VolumeInfo, *, level: int = 0, remote: RemoteOptions | None = None) -> VolumeAddress:
        """Return the address of a volume that is open, good in any folder of this machine."""
        uri = info.uri if is_remote(info.uri) else str(Path(info.uri).absolute())
        return cls(uri, level, info.voxel_size, info.roi, remote)

    def open(self) -> Volume:
        """Open the volume.

        Raises
        ------
        InputError
            It is not there or cannot be read.
        """
        volume = open_volume(self.uri, level=self.level, voxel_size=self.voxel_size, remote=self.remote)
        if self.roi is not None:
            z, y, x = (Span(*map(int, part.split(":"))) for part in self.roi.split(","))
            volume = RoiVolume(volume, (z, y, x))
        if self.remote is not None:
            keep_chunks(volume, self.remote.cache)
        return volume


@dataclass(frozen=True)
class RunFacts:
    """What all jobs of a run share."""

    store: Path
    volume: VolumeAddress
    model: ModelSpec
    settings: Settings
    plan: RunPlan
    limits: IntensityRange
    """Of the intensities, over the whole volume."""
    precision: Precision


@dataclass(frozen=True)
class BlockJob:
    """One piece of work on one device; it can be pickled, and done again after a crash."""

    run: RunFacts
    block: Block
    """For ``conditioning`` the tile's first block."""
    work: Work
    device: str
    slab: int
    """Slices per slab: read at once, and saved at its end."""
    fence: Fence | None = None
    """What is checked before anything is written."""
    generation: int = 0
    """Of a repair: 1, 2, ..."""
    base: int = 0
    """Of a repair: the generation of the left neighbour's end state from which it sets out."""
    assumed: LogitBounds | None = None
    """Of stage 2 while it follows stage 1: the bounds of stage 1's logits, not yet known. None takes the known ones."""
    begins: int = 0
    """Of stage 2 while it follows stage 1: the slice it goes on from, and may not get to the window's end."""

    @property
    def name(self) -> str:
        """Names the job to people, and uniquely within a run.

        Not by the base of a repair: the same block is never to be repaired twice at the same time.
        """
        block = self.block
        where = f"stage {block.stage}, tile {block.tile}"
        if self.work == "conditioning":
            return f"{where}, prompts"
        if self.work == "repair":
            return f"{where}, repair {self.generation} of slices {block.span}"
        return where if len(self.run.plan.windows) == 1 else f"{where}, slices {block.span}"

    def check_fence(self) -> None:
        """Return if the job may still write.

        Raises
        ------
        LeaseLostError
            Its run has ended, or another one has taken over.
        """
        if self.fence is not None:
            self.fence.check()


@dataclass(frozen=True)
class JobResult:
    """What a finished job says about itself; all else is in the store."""

    slices: int
    """Slices that were computed, stored or not."""
    seconds: float
    """Time in the model."""
