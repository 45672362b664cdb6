"""Encodes the next slice's image beside the slice under way, in a thread of its own, where the cores are crowded.

PyTorch's small operations on a CPU are shared out to a team of threads that wait for each other by spinning. Where
other programs take some of the cores, a team waits most of the time for its preempted member: one busy program beside a
run was seen to slow the model down many times over. With two teams GNU's OpenMP, which PyTorch brings along on Linux,
notices that there are more threads than cores, and lets those that wait sleep. Then the encoder of the next slice,
which needs no other slice, and the tracking of this one fill each other's gaps. On quiet cores waking threads costs
more than the gaps are worth, so it is decided anew for each slab.

Each operation still computes with as many threads as it would alone, so that its result is the same to the last bit:
with fewer, some (1 x 1 convolutions among them) add in another order.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import psutil
import torch
from threadpoolctl import ThreadpoolController

from etsam_zarr.sam.frames import Frames

MOST_THREADS = 4
"""With more nothing was measured; the time in which threads wake each other up may outweigh the gain."""
CROWDED = 0.25
"""Cores that other programs must take for the gain to outweigh the loss."""
SHORTEST_LOOK = 0.2
"""Seconds: the system counts in hundredths."""

Features = tuple[torch.Tensor, dict[str, Any]]
"""A slice's image, shape (1, 3, image size, image size), and what sam2's encoder makes of it."""


def _cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _clocks() -> tuple[float, float, float]:
    """Return the time, how long this process's cores have been busy, and for how long with it; in seconds."""
    each = psutil.cpu_times(percpu=True)
    busy = 0.0
    for core in _cores():
        if core < len(each):
            times = each[core]
            # Guests' time is part of the user's.
            not_busy = (getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
            busy += sum(times) - sum(not_busy)
    return time.perf_counter(), busy, time.process_time()


@functools.cache
def _libraries() -> ThreadpoolController:
    """Find the libraries with threads of their own; kept, since that takes a hundredth of a second."""
    return ThreadpoolController()


def _compute_with(threads: int) -> None:
    """Let PyTorch compute with so many threads where this thread calls it: OpenMP's number is one per thread."""
    torch.get_num_threads()  # on its first use in a thread PyTorch sets the number itself
    _libraries().limit(limits=threads, user_api="openmp")


class OtherPrograms:
    """How much of this process's cores other programs take."""

    def __init__(self) -> None:
        self._before = _clocks()
        self._cores = 0.0

    def cores(self) -> float:
        """Return how many cores they took on average since this was last asked; if just now, what it was then."""
        now = _clocks()
        wall, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        if wall >= SHORTEST_LOOK:
            self._before, self._cores = now, max(0.0, busy - own) / wall
        return self._cores


OTHERS = OtherPrograms()
"""Asked from time to time by all walks of this process."""


def takes_all_cores(device: torch.device | str) -> bool:
    """Say whether a model on this device leaves no core of this process's idle."""
    return torch.device(device).type == "cpu" and torch.get_num_threads() >= len(_cores())


def worth_encoding_ahead(device: torch.device | str, *, others: OtherPrograms = OTHERS) -> bool:
    """Say whether encoding ahead is faster just now: on a CPU with two to four crowded cores, all for the model to use.

    Not where fewer threads are wanted than there are cores (``--threads``; workers): it would take more of them. Not
    with another OpenMP, or one that was told how to wait: its threads might spin beside each other.
    """
    if not takes_all_cores(device) or not 2 <= torch.get_num_threads() <= MOST_THREADS:
        return False
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active" or "GOMP_SPINCOUNT" in os.environ:
        return False
    runtimes = {library["prefix"] for library in _libraries().info() if library["user_api"] == "openmp"}
    return runtimes == {"libgomp"} and others.cores() > CROWDED


class EncodedAhead:
    """Slices whose images are encoded one ahead of the one that was taken last.

    Parameters
    ----------
    encode
        Makes the features of a frame; called in a thread of its own, one slice after the other, with as many threads
        of PyTorch's as the caller has.
    frames
        Where the slices come from; also asked in that thread.
    order
        The slices, in the order in which they are taken.
    """

    def __init__(self, encode: Callable[[torch.Tensor], Features], frames: Frames, order: Iterable[int]) -> None:
        self._encode, self._frames, self._order = encode, frames, iter(order)
        threads = torch.get_num_threads()
        self._next: tuple[int, Future[tuple[Features, Sequence[float]]]] | None = None
        self._thread = ThreadPoolExecutor(1, "encode-slices", initializer=_compute_with, initargs=(threads,))
        self.seconds_waited = 0.0
        """Time that the taker spent waiting for a slice that was not there to be encoded."""

    def __enter__(self) -> EncodedAhead:
        self._begin_next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self, z: int) -> Features:
        """Return the features of slice ``z``, the next one of the order, and begin with the one after it.

        What went wrong in the thread is raised here.
        """
        if self._next is None or self._next[0] != z:
            raise RuntimeError(f"slice {z} was asked for where {self._next and self._next[0]} comes next")
        asked = time.perf_counter()
        features, (begun, there) = self._next[1].result()
        self.seconds_waited += max(0.0, there - max(begun, asked))
        self._begin_next()
        return features

    def _begin_next(self) -> None:
        z = next(self._order, None)
        self._next = None if z is None else (z, self._thread.submit(self._encoded, z))

    def _encoded(self, z: int) -> tuple[Features, Sequence[float]]:
        begun = time.perf_counter()
        frame = self._frames[z]
        there = time.perf_counter()
        return self._encode(frame), (begun, there)
