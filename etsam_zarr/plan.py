"""What a run will do, in integers: tiles, windows, slabs, prompts and memory tokens. Knows no store and no device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from etsam_zarr.config import Settings
from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Shape3, Span, ceil_div, cut
from etsam_zarr.model_config import ModelConfig
from etsam_zarr.prompts import prompted_slices
from etsam_zarr.tiling import Tile, TileGrid, lay_tiles

DEFAULT_SLAB = 16
# Measured by benchmarks/seams.py: a slice of context costs as much as a slice of repair, and only the latter is right.
DEFAULT_CONTEXT = 0
DEFAULT_TOLERANCE = 0.1
# Slabs are made thinner than the default when the raw voxels of one would take more than this.
_SLAB_BYTES = 512 * 2**20
# Of whole slices two such runs are held at once.
_PASS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StagePlan:
    """One stage: its prompts, and how many memory tokens a slice attends to."""

    stage: int
    prompt: str
    prompted: tuple[int, ...]
    """The prompted slices."""
    conditioning: int
    """How many of them one slice reads."""
    first_tokens: int
    """Memory tokens that an early slice attends to (the prompted slices' and one recent one's)."""
    last_tokens: int
    """Memory tokens that a late slice attends to."""
    attention_growth: float
    """Tokens of a late slice, relative to those it would attend to if one slice were prompted."""


@dataclass(frozen=True)
class Seams:
    """How windows that are computed at once are brought to agree: parallel mode."""

    context: int
    """Slices that a window is begun early, as a better guess of what came before; they are not stored."""
    tolerance: float
    """Difference at which a repair counts a slice as agreeing: mean absolute difference of its logits, and of its
    object pointer, and difference of its object score."""

    def __post_init__(self) -> None:
        if self.context < 0:
            raise SettingsError(f"A context of {self.context} slices is not possible; give --context 0 or more.")
        if not 0 <= self.tolerance < float("inf"):
            raise SettingsError(
                f"A seam tolerance of {self.tolerance:g} is not possible; give --seam-tolerance 0 or more."
            )


@dataclass(frozen=True)
class RunPlan:
    """The work of a run."""

    shape: Shape3
    image_size: int
    grid: TileGrid
    """Its tiles are walked one by one: each has its own stages, slabs and state."""
    windows: tuple[Span, ...]
    slab: int
    slabs: int
    """Per stage and tile."""
    pass_slab: int
    """Slices that passes over whole slices read at once."""
    stages: tuple[StagePlan, StagePlan]
    squeezed: float
    """How many voxels one pixel of the model's image stands for along the longer axis of a tile; above 1 the tile is
    squeezed."""
    seams: Seams | None = None
    """What is done where windows meet; None in stream mode, which has one window."""

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles, in order."""
        return self.grid.tiles

    @property
    def follow_obstacle(self) -> str | None:
        """Why stage 2 cannot follow stage 1 a slab behind, in words that go on after "since"; None where it can."""
        prompt, count = self.stages[1].prompt, len(self.stages[1].prompted)
        if self.seams is not None:
            return "windows, which are computed at the same time, may change when they are repaired"
        if len(self.tiles) > 1:
            return "it needs all tiles of a slice, and tiles are computed at the same time as it is"
        if count > 1:
            return f"its prompt {prompt} lies on {count} slices of the whole depth, which it reads before slice 1"
        return None

    def of_windows(self) -> dict[str, Any]:
        """Return what stored logits depend on besides the settings, as JSON values by name."""
        if self.seams is None:
            return {"mode": "stream"}
        return {
            "mode": "parallel",
            "windows": [[span.start, span.stop] for span in self.windows],
            "context": self.seams.context,
            "seam_tolerance": self.seams.tolerance,
        }

    def settled(self, settings: Settings) -> Settings:
        """Return the settings as this volume and model make them: tiling no longer ``auto``, overlap in voxels."""
        return dataclasses.replace(settings, tiling=self.grid.tiling, overlap=self.grid.overlap)


def cut_windows(depth: int, count: int, *, unit: int) -> tuple[Span, ...]:
    """Cut a depth into windows of about equal size that begin on multiples of ``unit``; fewer where it is too thin.

    Windows begin with a stored chunk of their own, so ``unit`` is the depth of one.

    Raises
    ------
    SettingsError
        The count is not positive.

    >>> [str(window) for window in cut_windows(100, 3, unit=16)]
    ['0:32', '32:64', '64:100']
    >>> [str(window) for window in cut_windows(20, 4, unit=16)]
    ['0:16', '16:20']
    """
    if count < 1:
        raise SettingsError(f"{count} windows are not possible; give --windows 1 or more.")
    chunks = ceil_div(depth, unit)
    count = min(count, chunks)
    starts = [index * chunks // count * unit for index in range(count)]
    return tuple(Span(start, stop) for start, stop in zip(starts, [*starts[1:], depth], strict=True))


def plan_run(
    shape: Shape3, settings: Settings, model: ModelConfig, *, voxel_bytes: int, slab: int | None = None,
    windows: tuple[Span, ...] | None = None, seams: Seams | None = None,
) -> RunPlan:  # fmt: skip
    """Lay out a run.

    Parameters
    ----------
    voxel_bytes
        Size of a stored voxel.
    slab
        Slices per slab; None chooses :data:`DEFAULT_SLAB`, fewer where tiles are very large.
    windows
        As :func:`cut_windows` makes them; None is one, the whole depth.
    seams
        What is done where windows meet: parallel mode; None is stream mode, which has one window.

    Raises
    ------
    SettingsError
        The slab is not positive, or tiles cannot be laid as the settings say.
    """
    depth, height, width = shape
    if slab is not None and slab < 1:
        raise SettingsError(f"A slab of {slab} slices is not possible; give --slab 1 or more.")
    windows = windows or (Span(0, depth),)
    if seams is None and len(windows) > 1:
        raise SettingsError(f"Stream mode has one window, not {len(windows)}. Give --mode parallel for several.")
    grid = lay_tiles(settings.tiling, height, width, image_size=model.image_size, overlap=settings.overlap)
    if slab is None:
        slab = _slices_within(_SLAB_BYTES, max(tile.y.size * tile.x.size for tile in grid.tiles) * voxel_bytes)
    return RunPlan(
        shape=shape,
        image_size=model.image_size,
        grid=grid,
        windows=windows,
        slab=slab,
        slabs=sum(len(cut(window, slab)) for window in windows),
        pass_slab=min(slab, _slices_within(_PASS_BYTES, height * width * voxel_bytes)),
        stages=(_stage(1, settings.stage1_prompt, shape, settings, model),
                _stage(2, settings.stage2_prompt, shape, settings, model)),
        squeezed=max(max(tile.height, tile.width) for tile in grid.tiles) / model.image_size,
        seams=seams,
    )  # fmt: skip


def _slices_within(limit: int, slice_bytes: int) -> int:
    """Return the default slab, halved until it takes at most ``limit`` bytes, or is one slice."""
    slab = DEFAULT_SLAB
    while slab > 1 and slab * slice_bytes > limit:
        slab //= 2
    return slab


def _stage(stage: int, prompt: str, shape: Shape3, settings: Settings, model: ModelConfig) -> StagePlan:
    prompted = prompted_slices(prompt, shape[0], settings.grid_interval)  # type: ignore[arg-type]
    conditioning = len(prompted)
    if model.max_conditioning >= 0:
        conditioning = min(conditioning, model.max_conditioning)
    # A pointer is split into tokens as wide as a memory feature.
    pointer_tokens = max(1, model.hidden_dim // model.memory_dim)
    pointers = min(shape[0] - 1, model.recent_pointers)
    recent = min(model.recent_memories, shape[0] - 1)
    last = (conditioning + recent) * model.memory_tokens + (conditioning + pointers) * pointer_tokens
    single = (1 + recent) * model.memory_tokens + (1 + pointers) * pointer_tokens
    return StagePlan(
        stage=stage,
        prompt=prompt,
        prompted=prompted,
        conditioning=conditioning,
        first_tokens=conditioning * model.memory_tokens + pointer_tokens,
        last_tokens=last,
        attention_growth=last / single,
    )
