"""One job on a worker of a dask.distributed cluster: how it is computed and told of there, and what comes back."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from etsam_zarr import errors
from etsam_zarr.errors import ClusterError, EtsamZarrError, UnexpectedError, in_one_line
from etsam_zarr.events import Advanced, Event, Finished, Notice, Started
from etsam_zarr.runtime import J, R, Work, attempt

if TYPE_CHECKING:
    from distributed import Future

_EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Started, Advanced, Finished, Notice)}
_CHECK_SECONDS = 2.0
"""How often a worker that computes asks whether its work is still wanted."""

_log = logging.getLogger(__name__)


def compute_job(job: J, work: Work[J, R], topic: str, version: str) -> R | _Trouble:
    """Do a job in a worker, telling the run how it goes; return what it returns, or what went wrong.

    Parameters
    ----------
    topic
        Under which the run listens. Told are dicts with ``job``, its name, and ``from``, the worker's address; the
        first with ``begins``, the others with what :func:`event_from` reads.
    version
        Of etsam-zarr where the run is; the worker must have the same.
    """
    from distributed import get_worker

    worker = get_worker()

    def tell(**facts: Any) -> None:  # noqa: ANN401 - what msgpack carries
        worker.log_event(topic, {"job": job.name, "from": worker.address, **facts})

    tell(begins=True)
    fence = job.fence
    checked = time.monotonic()

    def on_event(event: Event) -> None:
        nonlocal checked
        tell(event=type(event).__name__, facts=asdict(event))
        if fence is not None and time.monotonic() - checked > _CHECK_SECONDS:
            fence.check()
            checked = time.monotonic()

    try:
        mine = metadata.version("etsam-zarr")
        if mine != version:
            # One that joined after the others had been looked over.
            raise ClusterError(
                f"The worker {worker.address} has etsam-zarr {mine}, the run has {version}. Install the same there."
            )
        if fence is not None:
            # From here on a worker that was thought dead and computes the same job cannot write any more.
            fence = fence.claiming(job.name)
        return attempt(replace(job, fence=fence), work, on_event)
    except Exception as error:  # noqa: BLE001 - handed to the run
        kind = type(error).__name__
        message = str(error) if isinstance(error, EtsamZarrError) else f"{kind}: {error}"
        return _Trouble(kind, message, "".join(traceback.format_exception(error)))


def event_from(told: Mapping[str, Any]) -> Event:
    """Return the event that a worker told of."""
    return _EVENTS[told["event"]](**told["facts"])


def outcome_of(name: str, future: Future) -> tuple[Any, Exception | None]:
    """Return what a job returned, or why it failed.

    Raises
    ------
    ClusterError
        The scheduler, which passes results on, went away before this one was fetched.
    """
    from distributed import KilledWorker

    if future.status != "error":
        try:
            result = future.result()
        except (OSError, TimeoutError, RuntimeError, ValueError, CancelledError) as lost:
            # Not what the job raised, which comes as a _Trouble.
            raise ClusterError(f"The scheduler went away: a result did not arrive ({in_one_line(lost)}).") from lost
        if not isinstance(result, _Trouble):
            return result, None
        _log.info("%s failed: %s", name, result.traceback)
        kind: type[Exception] = getattr(errors, result.kind, UnexpectedError)
        return None, kind(result.message)
    error: Exception = future.exception()
    if isinstance(error, KilledWorker):
        error = ClusterError(
            f"It took {error.allowed_failures + 1} workers along, which died while they computed it: killed by "
            "somebody, by the system for want of memory (see dmesg), or crashed in a library."
        )
    return None, error


@dataclass(frozen=True)
class _Trouble:
    """What a job raised, in words: some errors cannot be pickled."""

    kind: str
    message: str
    traceback: str
