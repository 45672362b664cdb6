"""Starts worker processes on this machine, or finds those of an existing dask.distributed cluster and looks them over.

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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam_zarr.errors import ClusterError, SettingsError, in_one_line
from etsam_zarr.events import Notice, OnEvent

if TYPE_CHECKING:
    from distributed import Client

_PACKAGE = "etsam-zarr"
_START_SECONDS = 120.0
ALLOWED_FAILURES = 3
"""How many workers a job may take along before it is given up."""


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker process says of itself."""

    host: str
    threads: int
    """Of dask: how many jobs it would compute at once."""
    gpu: str | None
    """Identity of the first GPU that it sees."""
    bfloat16: bool
    """Whether its device computes bfloat16 fast."""
    missing: tuple[str, ...]
    """Which of the files asked for it cannot see."""


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
    with _answering():
        present = client.nthreads()
    if present:
        return
    on_event(Notice(f"The cluster has no workers yet; waiting up to {seconds:g} s for the first."))
    with _answering():
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError as error:
            raise ClusterError(
                f"The cluster has had no workers for {seconds:g} s. Start some ('dask worker --nthreads 1', or scale "
                "your dask-jobqueue cluster), look at the batch system's queue, and give the command again."
            ) from error


def dashboard_of(client: Client) -> str:
    """Say where to watch the workers."""
    try:
        import bokeh  # noqa: F401 - what the dashboard is drawn with
    except ImportError:
        return f"dashboard {client.dashboard_link} (its plots need the package bokeh)"
    return f"dashboard {client.dashboard_link}"


def look_over(client: Client, *, files: Sequence[Path], device: str = "auto") -> dict[str, WorkerFacts]:
    """Ask all workers whether they can do the work, before any is begun.

    Parameters
    ----------
    files
        What all of them must see under the same path.
    device
        ``"auto"``, ``"cpu"`` or a GPU: whether it matters what GPUs they see.

    Returns
    -------
    What they say, by address.

    Raises
    ------
    ClusterError
        A worker has another version of this package or none, does not see the files, or computes several jobs at once;
        or some have GPUs and others not; or the scheduler went away.
    """
    version = _own_version()
    with _answering():
        found = client.run(metadata.version, _PACKAGE, on_error="return")
    other = sorted(f"{address} ({_version(answer)})" for address, answer in found.items() if answer != version)
    if other:
        raise ClusterError(
            f"The workers {', '.join(other)} do not have {_PACKAGE} {version}, which runs here. Install the same "
            "version in the workers' environment, or start them from this one."
        )
    with _answering():
        facts: dict[str, WorkerFacts] = client.run(describe_worker, tuple(str(path) for path in files), device)
    for address, fact in sorted(facts.items()):
        if fact.missing:
            raise ClusterError(
                f"The worker {address} on {fact.host} does not see {', '.join(fact.missing)}. Workers read the volume "
                "and write the run store themselves: put both where all machines have them under the same path."
            )
        if fact.threads != 1:
            raise ClusterError(
                f"The worker {address} has {fact.threads} threads, so that it would compute several blocks at once "
                "with one model. Start workers with --nthreads 1 (dask-jobqueue: cores=1), one per device."
            )
    gpus = Counter(fact.gpu for fact in facts.values())
    if device == "auto" and None in gpus and len(gpus) > 1:
        raise ClusterError(
            f"{gpus[None]} of {len(facts)} workers see no GPU, the others do, and results of the two differ in the "
            "last bits. Give --device cpu, or stop the workers without a GPU."
        )
    shared = [gpu for gpu, count in gpus.items() if gpu is not None and count > 1]
    if shared and device != "cpu":
        raise ClusterError(
            f"{gpus[shared[0]]} workers see the same first GPU ({shared[0]}). Start each worker with a "
            "CUDA_VISIBLE_DEVICES of its own."
        )
    return facts


def describe_worker(files: tuple[str, ...], device: str, dask_worker: Any = None) -> WorkerFacts:  # noqa: ANN401
    """Describe the process that calls; dask.distributed passes itself as ``dask_worker``."""
    import socket

    import torch

    from etsam_zarr.device import choose_precision

    missing = tuple(path for path in files if not Path(path).exists())
    gpu = str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None
    where = torch.device("cpu" if gpu is None or device == "cpu" else "cuda:0")
    fast = choose_precision("auto", where) == "bfloat16"
    return WorkerFacts(socket.gethostname(), dask_worker.state.nthreads, gpu, fast, missing)


def devices_for(devices: str | None, workers: int | None, device: str) -> tuple[str, ...]:
    """Return the device of each worker on this machine, from what the command line says; empty for no workers.

    Parameters
    ----------
    devices
        A list with commas, such as ``"cuda:0,cuda:1"``, or ``"all"`` for all GPUs.
    workers
        How many workers; they get the first GPUs, or all the CPU.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda:N"``.

    Raises
    ------
    SettingsError
        They contradict, name a device that is not there, or mix kinds.
    """
    if devices is None and workers is None:
        return ()
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices is not None:
        if workers is not None or device != "auto":
            raise SettingsError("--devices says already how many workers there are and where. Leave --workers and "
                                "--device out.")  # fmt: skip
        chosen = tuple(f"cuda:{n}" for n in range(gpus)) if devices == "all" else tuple(devices.split(","))
    else:
        assert workers is not None
        if workers < 1:
            raise SettingsError(f"{workers} workers cannot compute anything; give --workers 1 or more.")
        if device not in ("auto", "cpu"):
            raise SettingsError(f"--workers chooses devices itself, and --device names {device}. Use --devices to name "
                                "several, or --device cpu.")  # fmt: skip
        on_cpu = device == "cpu" or not gpus
        chosen = ("cpu",) * workers if on_cpu else tuple(f"cuda:{n}" for n in range(workers))
    absent = [name for name in chosen if name != "cpu" and name not in {f"cuda:{n}" for n in range(gpus)}]
    if absent or not chosen:
        raise SettingsError(
            f"{absent[0] if absent else 'A GPU'} is not there: this machine has {gpus} GPUs that PyTorch can use. Give "
            "devices as cuda:0,cuda:1 or cpu,cpu, or --workers with --device cpu."
        )
    if len({name.partition(":")[0] for name in chosen}) > 1:
        raise SettingsError(f"--devices {devices} mixes CPU and GPU, whose results differ in the last bits. Take one.")
    twice = [name for name, count in Counter(chosen).items() if count > 1 and name != "cpu"]
    if twice:
        raise SettingsError(f"{twice[0]} is named twice; two workers on one GPU are no faster. Name each GPU once.")
    return chosen


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


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Say so where the scheduler goes away while something is asked of it, before any work is begun."""
    try:
        yield
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"The scheduler went away before any work was begun ({in_one_line(error)}). Start the cluster again, or "
            "compute on this machine, and give the same command."
        ) from error


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


def _own_version() -> str:
    return metadata.version(_PACKAGE)


def _version(answer: object) -> str:
    return answer if isinstance(answer, str) else "does not have it"
