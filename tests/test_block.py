"""A job done in a process that was handed nothing but the job."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from etsam_zarr.block import run_block
from etsam_zarr.config import resolve_settings
from etsam_zarr.errors import LeaseLostError
from etsam_zarr.events import Advanced, Event
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange
from etsam_zarr.jobs import BlockJob, RunFacts, VolumeAddress
from etsam_zarr.lease import Fence
from etsam_zarr.ledger import Ledger
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.pipeline import run
from etsam_zarr.plan import RunPlan, plan_run
from etsam_zarr.roi import RoiVolume
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runstore import RunStore
from etsam_zarr.schedule import next_jobs
from etsam_zarr.sources import open_volume

SETTINGS = resolve_settings("etsam-v2")
BOX = (Span(2, 8), Span(3, 40), Span(0, 33))


def _run(source: Path, store: Path, spec: ModelSpec) -> tuple[RunStore, RunPlan, VolumeAddress]:
    """A finished run of a region of a volume."""
    with RoiVolume(open_volume(source), BOX) as volume:
        plan = plan_run(volume.info.shape, SETTINGS, spec.config, voxel_bytes=4, slab=4)
        finished = run(volume, store, RunRequest(plan, SETTINGS, spec, "float32", torch.device("cpu"))).store
        return finished, plan, VolumeAddress.of(volume.info)


@pytest.fixture(scope="module")
def finished(seeded_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, RunFacts]:
    folder = tmp_path_factory.mktemp("block")
    source = tiny.write_tomogram(folder / "tomo.mrc", tiny.texture((10, 44, 36)))
    store, plan, address = _run(source, folder / "run.etsam.zarr", seeded_spec)
    limits = IntensityRange(**(Ledger(store.path / "ledger").finished("intensity") or {})["limits"])
    return store, RunFacts(store.path, address, seeded_spec, plan.settled(SETTINGS), plan, limits, "float32")


def _do(pickled: bytes, answers: Any) -> None:
    events: list[Event] = []
    result = run_block(pickle.loads(pickled), events.append)
    answers.put((result, sum(event.count for event in events if isinstance(event, Advanced))))


def _elsewhere(job: BlockJob) -> Any:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_do, args=(pickle.dumps(job), answers))
    process.start()
    answer = answers.get(timeout=120)
    process.join()
    return answer


def test_a_process_of_its_own_computes_the_same(finished: tuple[RunStore, RunFacts]) -> None:
    store, facts = finished
    arrays, ledger = store.stage(2), Ledger(store.path / "ledger")
    wanted = [np.asarray(array[...]) for array in (arrays.logits, arrays.object_score, arrays.object_pointer)]
    ledger.forget(2, 0)
    store.forget_slices(2, 0, Span(0, 6))
    assert not np.asarray(arrays.logits[...]).any()
    done = []
    for name in ("stage 2, tile 0, prompts", "stage 2, tile 0"):
        (job,) = next_jobs(ledger, facts, 2, device="cpu")
        assert job.name == name
        result, advanced = _elsewhere(job)
        done.append((result.slices, advanced))
        assert result.seconds > 0
    assert done == [(1, 0), (6, 6)]
    assert next_jobs(ledger, facts, 2, device="cpu") == ()
    for array, values in zip((arrays.logits, arrays.object_score, arrays.object_pointer), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(array[...]), values)
    block = job.block
    assert [slab.span for slab in ledger.slabs(block)] == [Span(0, 4), Span(4, 6)]
    assert set(ledger.accepted(block)) == set(range(6))
    # Doing it again finds it done.
    assert run_block(job).slices == 0


def test_a_job_whose_run_has_ended_writes_nothing(
    finished: tuple[RunStore, RunFacts], tmp_path: Path, seeded_spec: ModelSpec
) -> None:
    source = tiny.write_tomogram(tmp_path / "tomo.mrc", tiny.texture((10, 44, 36)))
    store, plan, address = _run(source, tmp_path / "run.etsam.zarr", seeded_spec)
    _, facts = finished
    facts = RunFacts(store.path, address, seeded_spec, plan.settled(SETTINGS), plan, facts.limits, "float32")
    ledger = Ledger(store.path / "ledger")
    ledger.forget(2, 0)
    with store.locked() as fence:
        (job,) = next_jobs(ledger, facts, 2, device="cpu", fence=fence)
        assert isinstance(job.fence, Fence)
        run_block(job)
        (job,) = next_jobs(ledger, facts, 2, device="cpu", fence=fence)
    before = np.asarray(store.stage(2).logits[...])
    with pytest.raises(LeaseLostError):
        run_block(job)
    assert ledger.reached(job.block) == 0
    np.testing.assert_array_equal(np.asarray(store.stage(2).logits[...]), before)
