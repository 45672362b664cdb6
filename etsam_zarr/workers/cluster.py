"""Starts worker processes on this machine, or finds those of an existing dask.distributed cluster.

Every worker computes one job at a time on one device: with more threads two jobs would share a model, and with more
devices a process would hold a context on each.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam_zarr.errors import ClusterError, in_one_line
from etsam_zarr.events import Notice, OnEvent

if TYPE_CHECKING:
    from distributed import Client

_START_SECONDS = 120.0
ALLOWED_FAILURES = 3
"""How many workers a job may take along before it is given up."""


@contextlib.contextmanager
def local_cluster(devices: Sequence[str], *, threads: int) -> Iterator[Client]:
    """Start one worker process per device; they end with the context, and also if this process is killed.

    Parameters
    ----------
    devices
        ``"cpu"`` or ``"cuda:N"``, each for one worker. A worker sees no other GPU than its own, as ``cuda:0``.
    threads
        CPU threads of PyTorch in each worker.

    Raises
    ------
    ClusterError
        The workers did not start.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster

    level = _log_level()
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "host": "127.0.0.1", "nthreads": 1, "env": _visible(device),
                # Tasks hold no data that could be spilled, and a worker that is killed for its memory says less.
                "memory_limit": 0, "dashboard": False, "silence_logs": level,
            },
        }
        for number, device in enumerate(devices)
    }  # fmt: skip
    address = "127.0.0.1:0"
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1", "port": 0, "dashboard_address": address, "allowed_failures": ALLOWED_FAILURES
        },
    }  # fmt: skip
    # This takes the place of a default by which workers give memory back to the system so eagerly
    # (MALLOC_TRIM_THRESHOLD_) that a model, which takes it again for every slice, spends much time on that.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    spawn = {"distributed.nanny.pre-spawn-environ": dict.fromkeys(names, str(threads))}
    with _quiet(level), dask.config.set(spawn), _start_errors(), contextlib.ExitStack() as stack:
        with _without(names):
            cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=level)
        stack.callback(_close, cluster)
        client = stack.enter_context(Client(cluster, timeout=_START_SECONDS, set_as_default=False))
        client.wait_for_workers(len(devices), timeout=_START_SECONDS)
        client.register_plugin(_plugin())
        keep = stack.pop_all()
    with _quiet(level), keep:
        yield client


@contextlib.contextmanager
def existing_cluster(scheduler: str) -> Iterator[Client]:
    """Connect to a cluster.

    Parameters
    ----------
    scheduler
        Its address (``tcp://host:port``), or the path of a scheduler file.

    Raises
    ------
    ClusterError
        There is no scheduler.
    """
    from distributed import Client

    is_file = "://" not in scheduler and Path(scheduler).exists()
    where: dict[str, Any] = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    if not is_file and ":" not in scheduler:
        raise ClusterError(
            f"There is no scheduler file {scheduler}. Give the address of a scheduler (tcp://host:port), or the file "
            "that 'dask scheduler --scheduler-file' wrote."
        )
    with _quiet(_log_level()):
        try:
            client = Client(**where, timeout=20, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"No scheduler answers at {scheduler} ({in_one_line(error)}). Start one with 'dask scheduler', or take "
                "--workers or --devices for workers on this machine."
            ) from error
        with client:
            yield client


def wait_for_worker(client: Client, *, seconds: float, on_event: OnEvent) -> None:
    """Return as soon as there is a worker.

    Raises
    ------
    ClusterError
        There is none after so many seconds, or the scheduler went away.
    """
    with answering():
        present = client.nthreads()
    if present:
        return
    on_event(Notice(f"The cluster has no workers yet; waiting up to {seconds:g} s for the first."))
    with answering():
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError as error:
            raise ClusterError(
                f"The cluster has had no workers for {seconds:g} s. Start some ('dask worker --nthreads 1', or scale "
                "your dask-jobqueue cluster), look at the batch system's queue, and give the command again."
            ) from error


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Say so where the scheduler goes away while something is asked of it, before any work is begun."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"The scheduler went away before any work was begun ({in_one_line(error)}). Start the cluster again, or "
            "compute on this machine, and give the same command."
        ) from error


def dashboard_of(client: Client) -> str:
    """Say where to watch the workers."""
    try:
        import bokeh  # noqa: F401 - what the dashboard is drawn with
    except ImportError:
        return f"dashboard {client.dashboard_link} (its plots need the package bokeh)"
    return f"dashboard {client.dashboard_link}"


def _visible(device: str) -> dict[str, str]:
    """Return the environment in which a process sees this device only."""
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    # cuda:N counts what this process sees, which may be a part of what there is.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = device.partition(":")[2] or "0"
    return {"CUDA_VISIBLE_DEVICES": seen.split(",")[int(number)] if seen else number}


def _plugin() -> Any:  # noqa: ANN401 - a class of a package that is imported late
    from distributed import WorkerPlugin

    class EndQuietly(WorkerPlugin):  # type: ignore[misc] # untyped
        """Lets a worker be ended at any moment without a word."""

        def setup(self, worker: object) -> None:
            # Ctrl-C reaches all processes of a terminal; the run then ends its workers itself.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if sys.platform == "linux":
                # Nothing is started from here. But a library's locks (numcodecs has one) are then made without a name
                # that has to be given back, which a killed worker cannot do, and Python would complain.
                multiprocessing.set_start_method("fork", force=True)

    return EndQuietly()


def _close(cluster: Any) -> None:  # noqa: ANN401
    """End the workers without waiting for what they compute: what they had finished is stored."""
    for nanny in cluster.workers.values():
        process = getattr(nanny, "process", None)
        if process is not None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    cluster.close(timeout=20)


def _log_level() -> int:
    """Return from which level on dask.distributed may log: what matters of it reaches the user as events and errors."""
    return logging.INFO if logging.getLogger().level in range(1, logging.INFO + 1) else logging.CRITICAL


@contextlib.contextmanager
def _quiet(level: int) -> Iterator[None]:
    # The last two tell, with tracebacks, of tasks of dask's that nobody waits for when its scheduler is lost.
    names = ("distributed", "distributed.client", "asyncio", "tornado.application")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Hide environment variables, which workers would prefer to what they are told."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, RuntimeError) as error:
        raise ClusterError(
            f"The worker processes did not start ({in_one_line(error)}). A program of your own that runs the pipeline "
            "with workers must do so under: if __name__ == '__main__'."
        ) from error
