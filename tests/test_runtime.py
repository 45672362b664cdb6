"""What one job meets does not stop the others, and nothing that is missing passes for a success: in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dummy_jobs
import pytest
import torch
from dummy_jobs import DummyJob, compute, is_done, trace_of, undone

from etsam_zarr.errors import BlocksFailedError, DeviceMemoryError, InputError, LeaseLostError, RunStoreError
from etsam_zarr.events import Advanced, Event, Notice, OnEvent, ignore
from etsam_zarr.lease import Lease
from etsam_zarr.runtime import SerialRuntime, attempt


def jobs_in(folder: Path, **trouble: str) -> list[DummyJob]:
    return [DummyJob(name, folder, trouble=trouble.get(name, "")) for name in ("a", "b", "c", "d")]


def execute(jobs: list[DummyJob], on_event: OnEvent = ignore) -> None:
    SerialRuntime().execute(lambda: undone(jobs), compute, on_event=on_event)


def test_jobs_are_done_in_the_planner_s_order(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path)
    events: list[Event] = []
    SerialRuntime().execute(lambda: undone(jobs)[::-1], compute, on_event=events.append)
    assert all(is_done(job) for job in jobs)
    ends = [(job.folder / job.name / "4").stat().st_mtime_ns for job in jobs]
    assert ends == sorted(ends, reverse=True)
    assert events == [Advanced("stage 1")] * 20


def test_a_job_may_open_the_way_for_others(tmp_path: Path) -> None:
    first, second = jobs_in(tmp_path)[:2]
    SerialRuntime().execute(
        lambda: undone([first, second] if is_done(first) else [first]), compute, on_event=ignore
    )  # fmt: skip
    assert is_done(second)


def test_a_failed_job_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, b="raises", c="crashes")
    with pytest.raises(BlocksFailedError) as caught:
        execute(jobs)
    assert str(caught.value) == (
        "2 of 4 blocks failed. b: The chunk of b cannot be read. c: ZeroDivisionError: division by zero. The other "
        "blocks were computed and everything finished is kept; give the same command again to compute what is missing."
    )
    assert [is_done(job) for job in jobs] == [True, False, False, True]
    # The same again, without the trouble, computes what is missing and nothing else.
    execute(jobs_in(tmp_path))
    assert [[z for z, _ in trace_of(job)] for job in jobs] == [[0, 1, 2, 3, 4]] * 4


def test_the_error_of_an_only_failure_keeps_its_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^b: The chunk of b cannot be read"):
        execute(jobs_in(tmp_path, b="raises"))
    with pytest.raises(ZeroDivisionError) as caught:
        execute(jobs_in(tmp_path, b="crashes"))
    assert caught.value.__notes__ == ["b"]


def test_a_job_that_leaves_no_result_has_failed(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, d="forgets")
    with pytest.raises(RunStoreError, match=r"^d: .*its results are not in the run store"):
        execute(jobs)


def test_a_job_that_does_a_part_is_asked_for_again(tmp_path: Path) -> None:
    (job,) = jobs_in(tmp_path)[:1]
    begun: list[int] = []

    def planned() -> list[DummyJob]:
        # As stage 2 behind stage 1: the same job, from where it has come to.
        return [] if len(begun) == 3 else [replace(job, slab=8 + len(begun))]

    SerialRuntime().execute(planned, lambda part, _: begun.append(part.slab), on_event=ignore)
    assert begun == [8, 9, 10]


def test_memory_that_runs_out_once(tmp_path: Path) -> None:
    events: list[Event] = []
    job = DummyJob("a", tmp_path, trouble="runs out of memory once")
    execute([job], on_event=events.append)
    assert is_done(job)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice == Notice(
        "Memory ran out in a; trying again with emptied caches and slabs of 4 slices.", warning=True
    )  # fmt: skip
    # What was finished before is not computed again.
    assert [z for z, _ in trace_of(job)] == [0, 1, 2, 3, 4]


def test_memory_that_runs_out_twice(tmp_path: Path) -> None:
    with pytest.raises(DeviceMemoryError) as caught:
        execute([DummyJob("a", tmp_path, trouble="runs out of memory")])
    for part in ("Memory ran out twice in a", "Tried to allocate 2.00 GiB", "--precision bfloat16", "etsam-zarr plan"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_all_ways_to_say_that_memory_ran_out(error: Exception, tmp_path: Path) -> None:
    slabs = []

    def work(job: DummyJob, on_event: OnEvent) -> None:
        slabs.append(job.slab)
        if len(slabs) == 1:
            raise error

    attempt(DummyJob("a", tmp_path, slab=1), work, ignore)
    assert slabs == [1, 1]


def test_who_lost_the_store_begins_nothing_more(tmp_path: Path) -> None:
    with Lease(tmp_path) as lease:
        fence = lease.fence
    jobs = [DummyJob(name, tmp_path, fence=fence) for name in ("a", "b")]
    with pytest.raises(LeaseLostError):
        SerialRuntime().execute(lambda: undone(jobs), compute, on_event=ignore)
    assert not dummy_jobs.trace_of(jobs[1])
