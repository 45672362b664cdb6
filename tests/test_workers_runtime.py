"""Workers die, hang and lose their scheduler: what is finished stays, the others go on, nothing missing is a success.

With jobs that compute nothing (``dummy_jobs``), so that the whole file needs one cluster and seconds. Jobs of the real
thing: ``test_workers``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import Cluster
from distributed import Future
from distributed.comm import CommClosedError
from dummy_jobs import DummyJob, compute, is_done, trace_of, undone

from etsam_zarr.errors import BlocksFailedError, ClusterError, LeaseLostError
from etsam_zarr.events import Event, Notice, OnEvent, ignore
from etsam_zarr.lease import Lease
from etsam_zarr.workers.cluster import existing_cluster, local_cluster
from etsam_zarr.workers.facts import look_over
from etsam_zarr.workers.runtime import DaskRuntime

TESTS = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def importable_by_workers() -> Iterator[None]:
    """Workers import the jobs from this folder; they inherit the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with local_cluster(["cpu", "cpu"], threads=1) as client:
        yield client


def jobs_in(folder: Path, count: int = 4, seconds: float = 0.0, **trouble: str) -> list[DummyJob]:
    return [DummyJob(name, folder, trouble=trouble.get(name, ""), slice_seconds=seconds) for name in "abcdefgh"[:count]]


def execute(client: Any, jobs: list[DummyJob], on_event: OnEvent = ignore, **options: Any) -> None:
    DaskRuntime(client, **options).execute(lambda: undone(jobs), compute, on_event=on_event)


def messages(events: list[Event]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Notice))


def slices(job: DummyJob) -> list[int]:
    return [z for z, _ in trace_of(job)]


def test_several_workers_share_the_jobs(client: Any, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, 6, seconds=0.05)
    events: list[Event] = []
    execute(client, jobs, events.append)
    assert all(slices(job) == [0, 1, 2, 3, 4] for job in jobs)
    processes = {pid for job in jobs for _, pid in trace_of(job)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    # Every slice is told of, so that a progress bar is right.
    assert len(events) == 30


def test_a_worker_that_dies_is_replaced_and_the_job_goes_on_where_it_was(client: Any, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, seconds=0.02, b="dies once")
    execute(client, jobs)
    assert all(slices(job) == [0, 1, 2, 3, 4] for job in jobs)
    assert len({pid for _, pid in trace_of(jobs[1])}) == 2


def test_a_killed_worker_is_told_of(client: Any, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, seconds=0.3)
    killed: list[int] = []

    def kill() -> None:
        while len(trace_of(jobs[0])) < 2:
            time.sleep(0.01)
        killed.append(trace_of(jobs[0])[-1][1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    events: list[Event] = []
    execute(client, jobs, events.append)
    thread.join()
    assert "The worker that computed a was lost; another one goes on at the last finished slab." in messages(events)
    # Only the slice in flight was computed twice.
    assert sorted(set(slices(jobs[0]))) == [0, 1, 2, 3, 4]
    assert len(slices(jobs[0])) <= 6
    assert all(slices(job) == [0, 1, 2, 3, 4] for job in jobs[2:])


def test_a_worker_that_hangs_is_restarted(client: Any, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, b="hangs once")
    events: list[Event] = []
    execute(client, jobs, events.append, block_timeout=2.0)
    assert all(slices(job) == [0, 1, 2, 3, 4] for job in jobs)
    assert "finished no slice of b for 2 s: it is restarted" in messages(events)


def test_failed_jobs_are_named_and_the_others_are_done(client: Any, tmp_path: Path) -> None:
    trouble = {"b": "raises", "c": "crashes", "d": "runs out of memory", "e": "forgets"}
    jobs = jobs_in(tmp_path, 6, **trouble)
    with pytest.raises(BlocksFailedError) as caught:
        execute(client, jobs)
    message = str(caught.value)
    assert message.startswith("4 of 6 blocks failed. ")
    for part in (
        "b: The chunk of b cannot be read. ",
        "c: ZeroDivisionError: division by zero. ",
        "d: Memory ran out twice in d, the second time with emptied caches and slabs of 4 slices",
        "e: It ended as if all were well, but its results are not in the run store. ",
        "give the same command again",
    ):
        assert part in message
    assert [is_done(job) for job in jobs] == [True, False, False, False, False, True]
    execute(client, jobs_in(tmp_path, 6))
    assert all(is_done(job) for job in jobs)


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "says"), [
    ("dies", "b: It took 4 workers along"), ("hangs", "b: 3 workers in a row finished no slice of it for 2 s each"),
])  # fmt: skip
def test_a_job_that_ends_every_worker_is_given_up(trouble: str, says: str, client: Any, tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, b=trouble)
    with pytest.raises(ClusterError) as caught:
        execute(client, jobs, block_timeout=2.0)
    assert says in str(caught.value)
    assert [is_done(job) for job in jobs] == [True, False, True, True]


def test_workers_stop_when_the_store_was_taken_over(client: Any, tmp_path: Path) -> None:
    with Lease(tmp_path) as lease:
        jobs = [DummyJob(name, tmp_path, lease.fence, slice_seconds=0.3) for name in ("a", "b", "c")]

        def take_over() -> None:
            while len(trace_of(jobs[0])) < 2:
                time.sleep(0.01)
            # As another machine does that has not heard of this one for long.
            (tmp_path / ".lease" / "0000002.json").write_text("{}")

        thread = threading.Thread(target=take_over)
        thread.start()
        with pytest.raises(LeaseLostError, match="Another run took over"):
            execute(client, jobs)
        thread.join()
    assert not any(is_done(job) for job in jobs)
    assert not trace_of(jobs[2])


def test_a_worker_that_was_thought_dead_writes_nothing_more(client: Any, tmp_path: Path) -> None:
    """A stopped process gives no sign of life, its job goes to another one, and then it wakes up."""
    with Lease(tmp_path) as lease:
        first = lease.fence.claiming("a")
        jobs = [DummyJob("a", tmp_path, lease.fence)]
        execute(client, jobs)
        assert is_done(jobs[0])
        with pytest.raises(LeaseLostError, match="Another worker has taken over"):
            first.check()


# Clusters that are there already


def test_an_existing_cluster_that_loses_its_scheduler(tmp_path: Path) -> None:
    jobs = jobs_in(tmp_path, 3, seconds=0.3)
    with Cluster(tmp_path) as cluster, existing_cluster(str(cluster.file)) as client:
        client.wait_for_workers(1, timeout=120)
        assert len(look_over(client, files=[tmp_path])) == 1
        with pytest.raises(ClusterError, match=r"does not see .*absent. Workers read the volume"):
            look_over(client, files=[tmp_path / "absent"])

        def kill() -> None:
            while len(trace_of(jobs[1])) < 2:
                time.sleep(0.01)
            cluster.scheduler.kill()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(BlocksFailedError) as caught:
            execute(client, jobs)
        thread.join()
    message = str(caught.value)
    assert "scheduler went away" in message
    assert "Under way were b. Everything finished is kept" in message
    assert is_done(jobs[0])
    assert not is_done(jobs[2])


def test_a_result_that_is_lost_with_the_scheduler_says_so_and_names_its_job(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler passes results on: it may go away between saying that a job has ended and that."""

    def lost(*_: object, **__: object) -> None:
        raise CommClosedError("in <TCP (closed) ConnectionPool.gather>:\n\nConnection reset by peer.\nTry again.")

    monkeypatch.setattr(Future, "result", lost)
    with pytest.raises(BlocksFailedError) as raised:
        execute(client, jobs_in(tmp_path, 1))
    message = str(raised.value)
    assert message.startswith("The scheduler went away: a result did not arrive")
    assert "Connection reset by peer. Try again.). Under way were a." in message, "in one paragraph"


def test_a_scheduler_that_goes_away_between_two_jobs(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has ended and the second was not handed out yet: none was under way, and the error says so."""
    runtime, (first, second) = DaskRuntime(client), jobs_in(tmp_path, 2)
    nthreads = client.nthreads

    def gone_after_the_first() -> Any:
        if is_done(first):
            raise CommClosedError("in <TCP (closed) ConnectionPool.ncores>: Stream is closed")
        return nthreads()

    monkeypatch.setattr(client, "nthreads", gone_after_the_first)
    with pytest.raises(BlocksFailedError, match=r"does not answer any more \(.+\)\. No block was under way\. "):
        runtime.execute(lambda: undone([first] if not is_done(first) else [second]), compute, on_event=ignore)
    assert not is_done(second)
