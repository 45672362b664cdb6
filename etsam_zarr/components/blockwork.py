"""Runs one function over many blocks with dask, in threads, and reports progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from etsam_zarr.errors import SettingsError
from etsam_zarr.events import Advanced, Finished, OnEvent, Started, ignore

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_workers() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def checked_workers(workers: int | None) -> int:
    """Return ``workers``, or the number of processors for None; at least 1.

    Raises
    ------
    SettingsError
        ``workers`` is below 1.
    """
    if workers is None:
        return available_workers()
    if workers < 1:
        raise SettingsError(f"--workers is {workers}; it takes at least 1.")
    return workers


def for_each(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    name: str,
    unit: str = "blocks",
    done: int = 0,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> list[Result]:
    """Call ``function`` on every task and return what it returned, in the order of the tasks.

    Parameters
    ----------
    function
        Must be safe to call from several threads. It should return something small.
    tasks
        Small descriptions (spans, numbers), never arrays.
    name, unit
        Of the progress events.
    done
        How many tasks of this pass were finished by an earlier process.
    workers
        Threads; None takes one for each processor. 1 runs in the calling thread, where a debugger works.

    Notes
    -----
    The first exception of a task stops the pass and is raised here as it was.
    """
    # dask is imported where work begins, so that importing the library stays fast.
    import dask.base
    import dask.callbacks
    from dask.delayed import delayed

    count = checked_workers(workers)
    begun = time.monotonic()
    on_event(Started(name, total=len(tasks) + done, done=done, unit=unit))

    # dask calls this in the thread that waits, so listeners need no lock.
    def finished(*_: object) -> None:
        on_event(Advanced(name))

    results: list[Result] = []
    if tasks:
        # dask's functions carry no types.
        compute: Any = dask.base.compute
        callback: Any = dask.callbacks.Callback
        call: Any = delayed(function, pure=False, traverse=False)
        lazy = [call(task) for task in tasks]
        scheduler = "synchronous" if count == 1 else "threads"
        with callback(posttask=finished):
            results = list(compute(*lazy, scheduler=scheduler, num_workers=count, optimize_graph=False, traverse=False))
    on_event(Finished(name, seconds=time.monotonic() - begun))
    return results
