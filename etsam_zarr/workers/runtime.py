"""Carries out the jobs of a stage on the workers of a dask.distributed cluster, and outlives what befalls them.

What can happen, and what is done:

- a worker dies: the scheduler gives its job to another worker, which goes on at the last finished slab; a job that
  takes several workers along is given up;
- a worker gives no sign of life for too long: it is restarted, which is the same as dying;
- a job raises: it has failed, and the others go on;
- the scheduler goes away: the run ends, naming what was under way; what is finished is on disk, not in the scheduler.

A worker that only seemed dead, or that outlives its run, is kept from writing by the job's fence.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from etsam_zarr.errors import (
    BlocksFailedError,
    ClusterError,
    LeaseLostError,
    in_one_line,
)
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.runtime import J, NextJobs, R, Tally, Work
from etsam_zarr.workers.job import compute_job, event_from, outcome_of

if TYPE_CHECKING:
    from distributed import Client, Future

_LOOK_SECONDS = 1.0
"""How often workers are looked after while nothing is heard."""
HANGS = 3
"""After how many workers that hung in it a job is given up."""

_log = logging.getLogger(__name__)


@dataclass
class _Flight:
    """A job that was handed to the scheduler."""

    job: Any
    future: Future
    heard: float
    """When the last sign of life came, on this process's monotonic clock."""
    worker: str | None = None
    """Who computes it, once it has said so."""
    hangs: int = 0


class DaskRuntime:
    """As many jobs at a time as there are workers, on the workers of a cluster.

    Parameters
    ----------
    client
        Connected to the cluster.
    block_timeout
        Seconds without a finished slice after which a worker counts as hung; None waits for ever.
    patience
        Seconds to wait for a worker while there is none.
    """

    def __init__(self, client: Client, *, block_timeout: float | None = None, patience: float = 600.0) -> None:
        self._client = client
        self._block_timeout = block_timeout
        self._patience = patience
        self._present: tuple[str, ...] = ()
        self._find_workers()

    in_process = False

    @property
    def workers(self) -> int:
        """How many there were a moment ago."""
        return len(self._present)

    def execute(self, next_jobs: NextJobs[J], work: Work[J, R], *, on_event: OnEvent) -> list[R]:
        """Carry out jobs until the planner names none; see :class:`etsam_zarr.runtime.Runtime`.

        Raises
        ------
        ClusterError
            The scheduler went away, or there are no workers any more.
        """
        with self._inbox() as (topic, inbox):
            return _Round(self, topic, inbox, work, on_event).run(next_jobs)

    @contextlib.contextmanager
    def _inbox(self) -> Iterator[tuple[str, queue.Queue[tuple[str, Any]]]]:
        """Collect what workers tell under a topic of its own."""
        topic = f"etsam-zarr-{secrets.token_hex(8)}"
        inbox: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._client.subscribe_topic(topic, lambda event: inbox.put(("told", event[1])))
        try:
            yield topic, inbox
        finally:
            # The scheduler may be gone.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._client.unsubscribe_topic(topic)

    def _find_workers(self) -> tuple[str, ...]:
        """Ask the scheduler for the addresses of the workers.

        Raises
        ------
        ClusterError
            It does not answer.
        """
        try:
            self._present = tuple(self._client.nthreads())
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"The scheduler went away: it does not answer any more ({in_one_line(error)})."
            ) from error
        return self._present

    def _restart(self, worker: str) -> None:
        # A KeyError says that it is gone already.
        with contextlib.suppress(OSError, TimeoutError, RuntimeError, ValueError, KeyError):
            self._client.restart_workers([worker], timeout=15, raise_for_error=False)


class _Round:
    """One call of :meth:`DaskRuntime.execute`."""

    def __init__(
        self, runtime: DaskRuntime, topic: str, inbox: queue.Queue[tuple[str, Any]], work: Work[Any, Any],
        on_event: OnEvent,
    ) -> None:  # fmt: skip
        self._runtime, self._topic, self._inbox, self._work, self._on_event = runtime, topic, inbox, work, on_event
        self._client = runtime._client
        self._flights: dict[str, _Flight] = {}
        self._tally = Tally()
        self._results: list[Any] = []
        self._looked = self._workers_seen = time.monotonic()
        self._said_waiting = False

    def run(self, next_jobs: NextJobs[Any]) -> list[Any]:
        """Hand out jobs, listen, and look after workers until nothing is left."""
        try:
            self._fill(next_jobs)
            while self._flights:
                ended = len(self._results) + len(self._tally.failed)
                with contextlib.suppress(queue.Empty):
                    self._take(*self._inbox.get(timeout=_LOOK_SECONDS))
                    while True:
                        self._take(*self._inbox.get_nowait())
                if time.monotonic() - self._looked >= _LOOK_SECONDS:
                    self._looked = time.monotonic()
                    self._look_after_workers()
                elif ended == len(self._results) + len(self._tally.failed):
                    continue  # the planner has nothing new to say, and reads the ledger to say it
                self._fill(next_jobs)
        except ClusterError as error:
            self._give_up(error)
        finally:
            self._cancel_all()
        self._tally.conclude()
        return self._results

    def _fill(self, next_jobs: NextJobs[Any]) -> None:
        """Hand out as many jobs as there are workers.

        The rest waits here, where its order can still change, and where it is not counted among the jobs that took a
        worker along because it was queued behind one that did.
        """
        while len(self._flights) < max(1, self._runtime.workers):
            job = self._tally.next_of(next_jobs(), under_way=self._flights)
            if job is None or len(self._flights) >= max(1, len(self._runtime._find_workers())):
                return
            self._submit(job)

    def _submit(self, job: Any) -> None:  # noqa: ANN401 - a Job
        try:
            # The scheduler picks an idle worker. (Naming one is no use: a task whose worker dies while there is no
            # other is never run again, even where others are allowed.)
            future = self._client.submit(
                compute_job,
                job,
                self._work,
                self._topic,
                metadata.version("etsam-zarr"),
                key=f"{job.name} {secrets.token_hex(4)}",
                pure=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"The scheduler takes no more work ({in_one_line(error)}).") from error
        self._flights[job.name] = _Flight(job, future, time.monotonic())
        future.add_done_callback(lambda done: self._inbox.put(("ended", (job.name, done))))

    def _take(self, kind: str, content: Any) -> None:  # noqa: ANN401 - depends on the kind
        """Take in one message."""
        if kind == "ended":
            name, future = content
            flight = self._flights.get(name)
            if flight is not None and flight.future is future:
                self._end(name, flight)
            return
        flight = self._flights.get(content["job"])
        if flight is None:
            return  # from a worker that was given up
        if "begins" in content:
            if flight.worker is not None:
                self._on_event(Notice(
                    f"The worker that computed {flight.job.name} was lost; another one goes on at the last finished "
                    "slab.", warning=True,
                ))  # fmt: skip
            flight.worker = content["from"]
        elif content["from"] != flight.worker:
            return  # an orphan
        flight.heard = time.monotonic()
        if "event" in content:
            self._on_event(event_from(content))

    def _end(self, name: str, flight: _Flight) -> None:
        """Note how a job ended.

        Raises
        ------
        ClusterError
            The scheduler went away, and took the result along; the job stays under way.
        """
        if flight.future.cancelled():
            # Nobody here cancelled it: the client does so when it loses the scheduler.
            raise ClusterError("The scheduler went away.")
        result, error = outcome_of(name, flight.future)
        del self._flights[name]
        if error is None:
            self._tally.done.add(name)
            self._results.append(result)
            return
        if isinstance(error, LeaseLostError) and flight.job.fence is not None:
            flight.job.fence.check()  # raises if it is the run that lost the store, not just that worker the job
        self._tally.failed[name] = error

    def _look_after_workers(self) -> None:
        """Restart who hangs; give up if there is nobody left."""
        now = time.monotonic()
        if self._runtime._find_workers():
            self._workers_seen, self._said_waiting = now, False
        elif now - self._workers_seen > self._runtime._patience:
            raise ClusterError(f"There has been no worker for {self._runtime._patience:g} s.")
        elif not self._said_waiting and now - self._workers_seen > 10:
            self._said_waiting = True
            self._on_event(Notice(f"Waiting up to {self._runtime._patience:g} s for a worker: there is none."))
        limit = self._runtime._block_timeout
        silent = [] if limit is None else [f for f in self._flights.values() if now - f.heard > limit]
        for flight in silent:
            flight.heard = now
            # One that has not begun waits for a worker, which is nobody's fault; one whose worker is gone is about to
            # be given to another.
            if flight.worker in self._runtime._present:
                self._end_hang(flight)

    def _end_hang(self, flight: _Flight) -> None:
        worker = str(flight.worker)
        flight.hangs += 1
        limit = self._runtime._block_timeout
        name = flight.job.name
        self._on_event(Notice(
            f"The worker {worker} finished no slice of {name} for {limit:g} s: it is restarted.", warning=True
        ))  # fmt: skip
        if flight.hangs >= HANGS:
            del self._flights[name]
            flight.future.cancel(force=True)
            self._tally.failed[name] = ClusterError(
                f"{flight.hangs} workers in a row finished no slice of it for {limit:g} s each. Raise --block-timeout "
                "if slices take that long, else look at the storage that the workers read from and write to."
            )
        self._runtime._restart(worker)

    def _cancel_all(self) -> None:
        """Take back what is under way; workers that go on with it are stopped by the fence."""
        if self._flights:
            with contextlib.suppress(OSError, RuntimeError, ValueError, TimeoutError):
                self._client.cancel([flight.future for flight in self._flights.values()], force=True)

    def _give_up(self, error: ClusterError) -> None:
        under_way = f"Under way were {'; '.join(self._flights)}." if self._flights else "No block was under way."
        failed = "".join(f" {name}: {problem}" for name, problem in self._tally.failed.items())
        raise BlocksFailedError(
            f"{error} {under_way}{failed} Everything finished is kept: start the cluster again, or compute on this "
            "machine, and give the same command to compute what is missing."
        ) from error
