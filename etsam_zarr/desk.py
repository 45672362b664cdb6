"""A job with all that it works on, opened; and the walk that every job is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from etsam_zarr.allocation import keep_freed_memory
from etsam_zarr.events import Advanced, OnEvent
from etsam_zarr.geometry import Span, cut
from etsam_zarr.jobs import BlockJob
from etsam_zarr.ledger import Ledger
from etsam_zarr.predictors import Predictors
from etsam_zarr.remote.address import is_remote
from etsam_zarr.runstore import RunStore
from etsam_zarr.sam.encode_ahead import takes_all_cores, worth_encoding_ahead
from etsam_zarr.sam.frames import StreamedFrames
from etsam_zarr.sam.propagation import Propagation, SliceOutput
from etsam_zarr.sam.walk_state import Tensors
from etsam_zarr.slabs import BackwardPredictions, Slab, SlabWriter
from etsam_zarr.stage_arrays import StageArrays
from etsam_zarr.stage_inputs import StageInputs, stage_inputs
from etsam_zarr.statefile import read_state
from etsam_zarr.volume import Volume


@dataclass(frozen=True)
class Desk:
    """A job with all that it works on, opened."""

    job: BlockJob
    store: RunStore
    ledger: Ledger
    inputs: StageInputs
    frames: StreamedFrames
    walk: Propagation
    on_event: OnEvent
    beside: bool
    """Whether slices are prepared beside the model, in a thread of their own."""

    @property
    def name(self) -> str:
        """What the progress is shown as."""
        return f"stage {self.job.block.stage}"

    @property
    def accepted(self) -> StageArrays:
        """The arrays that hold what counts."""
        return self.store.stage(self.job.block.stage)

    def restore(self, recent: Tensors) -> None:
        """Let the walk go on from a state, with the tile's prompts."""
        block = self.job.block
        conditioning = read_state(self.store.conditioning_file(block.stage, block.tile))
        self.walk.restore(conditioning=conditioning, recent=recent)

    def writer(self, arrays: StageArrays, *, generation: int = 0) -> SlabWriter:
        """Return a writer of the job's slabs into these arrays."""
        return SlabWriter(
            self.job.block, arrays, self.store, self.ledger, generation=generation, check=self.job.check_fence
        )

    def predictions(self, arrays: StageArrays) -> BackwardPredictions:
        """Return the predictions that the job makes backwards, if the run was asked for them."""
        prompts = self.inputs.prompts if self.job.run.settings.prompted_slices == "predict" else ()
        return BackwardPredictions(prompts, self.job.block.span, self.walk, arrays, tile=self.job.block.tile)


@contextlib.contextmanager
def opened_desk(job: BlockJob, on_event: OnEvent, volume: Volume | None, predictors: Predictors) -> Iterator[Desk]:
    """Open all that a job works on; what is handed over open stays open."""
    with contextlib.ExitStack() as opened:
        if volume is None:
            volume = opened.enter_context(job.run.volume.open())
        run, block = job.run, job.block
        store = RunStore.open(run.store)
        ledger = Ledger(store.path / "ledger")
        inputs = stage_inputs(
            block.stage, block.tile, volume=volume, store=store, ledger=ledger, settings=run.settings, plan=run.plan,
            limits=run.limits, assumed=job.assumed,
        )  # fmt: skip
        frames = StreamedFrames(inputs.read_planes, depth=store.shape[0], image_size=run.plan.image_size, slab=job.slab)
        predictor = predictors.get(run.model, block.stage, job.device)
        if job.device == "cpu":
            # Not before: what is freed of the intensity pass and of loading would then stay as well.
            keep_freed_memory()
        walk = Propagation(predictor, frames, height=inputs.height, width=inputs.width, precision=run.precision)
        # Where the model takes all cores, only what is waited for can be done beside it.
        beside = is_remote(volume.info.uri) or not takes_all_cores(job.device)
        yield Desk(job, store, ledger, inputs, frames, walk, on_event, beside)


def walked_slabs(
    desk: Desk, start: int, predictions: BackwardPredictions, *, slab: int, stop: int | None = None, lead: int = 0,
    name: str | None = None,
) -> Generator[tuple[Slab, Tensors, float]]:  # fmt: skip
    """Walk through a window from a slice on; yield each slab, the state at its end, and its seconds in the model.

    Past the window's end the walk goes on for the slices that backward predictions of its last prompted slices look at,
    and nothing of them is kept.

    Parameters
    ----------
    slab
        Slices per slab.
    stop
        Where to stop; None is the window's end.
    lead
        Slices to be walked before, of which nothing is kept.
    name
        What the progress is shown as, if not as the stage.
    """
    plan, block, walk, frames = desk.job.run.plan, desk.job.block, desk.walk, desk.frames
    end = block.span.stop
    stop = end if stop is None else stop
    beyond = Span(stop, max(stop, predictions.stop) if stop == end else stop)
    counted = walk.seconds
    with frames.in_order(Span(start - lead, beyond.stop), skipping=frozenset(desk.inputs.prompts), beside=desk.beside):
        if lead:
            walk.walk(Span(start - lead, start), _ignore)
        for span in cut(Span(start, stop), slab):
            outputs = Slab(span, native=plan.image_size // 4, measure_bounds=block.stage == 1)

            def take(output: SliceOutput, outputs: Slab = outputs) -> None:
                outputs.take(output)
                predictions.after(output)
                desk.on_event(Advanced(name or desk.name))

            with walk.encoding(span, ahead=worth_encoding_ahead(desk.job.device)):
                walk.walk(span, take)
            state = walk.recent_state()
            if span.stop == stop and beyond.size:
                walk.walk(beyond, predictions.after)
            seconds, counted = walk.seconds - counted, walk.seconds
            yield outputs, state, seconds


def _ignore(output: SliceOutput) -> None:
    """Take a slice's output and do nothing."""
