"""What benchmarks/seams.py compares: runs of the program, in one walk or two windows, and single windows on a guess."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from etsam_zarr.config import PROFILES, Settings
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange
from etsam_zarr.ledger import Ledger
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.pipeline import run
from etsam_zarr.plan import Seams, cut_windows, plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runstore import RunStore
from etsam_zarr.sam.frames import StreamedFrames
from etsam_zarr.sam.predictor import Predictor
from etsam_zarr.sam.propagation import Propagation
from etsam_zarr.slabs import Slab, SlabValues
from etsam_zarr.sources import open_volume
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, Stage
from etsam_zarr.stage_inputs import stage_inputs


def profile_settings(profile: str, model: ModelSpec) -> Settings:
    """Return a profile, with the intensities as the model was trained for."""
    settings, own = PROFILES[profile], model.settings
    if own is None:
        return settings
    return dataclasses.replace(settings, normalize_method=own.normalize_method, logit_threshold=own.logit_threshold)


def walked(path: Path, store: Path, model: ModelSpec, settings: Settings, seams: Seams | None = None) -> RunStore:
    """Run the whole program: in stream mode, or in two windows."""
    with open_volume(path) as volume:
        depth = volume.info.shape[0]
        plan = plan_run(
            volume.info.shape, settings, model.config, voxel_bytes=4, seams=seams,
            windows=cut_windows(depth, 2 if seams else 1, unit=LOGIT_CHUNK_DEPTH),
        )  # fmt: skip
        return run(volume, store, RunRequest(plan, settings, model, "float32", torch.device("cpu"))).store


class GuessedWindows:
    """Computes the second window of a stage on a guess, in memory, from what a run in stream mode stored."""

    def __init__(self, path: Path, store: RunStore, model: ModelSpec, settings: Settings, stage: Stage) -> None:
        self._volume = open_volume(path)
        ledger = Ledger(store.path / "ledger")
        plan = plan_run(self._volume.info.shape, settings, model.config, voxel_bytes=4)
        self._plan, self._settings, self._depth = plan, plan.settled(settings), store.shape[0]
        limits = IntensityRange(**(ledger.finished("intensity") or {})["limits"])
        self._inputs = stage_inputs(
            stage, 0, volume=self._volume, store=store, ledger=ledger, settings=self._settings, plan=plan, limits=limits
        )
        self._predictor: Predictor = model.build("cpu")
        model.load(self._predictor, stage)
        walk, _ = self._begun()
        for z in self._inputs.prompts:
            walk.prompt(z, self._inputs.prompt_mask(z))
        self._conditioning = walk.conditioning_state()
        self.horizon = walk.horizon

    def compute(self, window: Span, context: int) -> SlabValues:
        """Walk through a window that is begun ``context`` slices early."""
        walk, frames = self._begun()
        walk.restore(conditioning=self._conditioning, recent={})
        slab = Slab(window, native=self._plan.image_size // 4, measure_bounds=False)
        lead = Span(window.start - context, window.start)
        with frames.in_order(Span(lead.start, window.stop), skipping=frozenset(self._inputs.prompts)):
            if lead.size:
                walk.walk(lead, lambda output: None)
            walk.walk(window, slab.take)
        return slab.values()

    def _begun(self) -> tuple[Propagation, StreamedFrames]:
        frames = StreamedFrames(self._inputs.read_planes, depth=self._depth, image_size=self._plan.image_size, slab=16)
        height, width = self._inputs.height, self._inputs.width
        return Propagation(self._predictor, frames, height=height, width=width), frames
