"""Encodes the next slice's image beside the slice under way, in a thread of its own.

SAM 2's image encoder needs no other slice, and takes more than half of a slice's time. Its operations, and those of the
tracking, are too small to keep all cores of a CPU busy; two at a time do better.

Each still computes with as many threads as it would alone, so that its result is the same to the last bit: with fewer,
some operations (1 x 1 convolutions among them) add in another order. GNU's OpenMP, which PyTorch brings along on Linux,
notices that there are more threads than cores, and lets those that wait sleep instead of spin. That also keeps a run
from crawling where other programs take some of the cores: a spinning team waits for its preempted members.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_info, threadpool_limits

MOST_THREADS = 4
"""With more nothing was measured; the time in which threads wake each other up may outweigh the gain."""

Features = tuple[torch.Tensor, dict[str, Any]]
"""A slice's image, shape (1, 3, image size, image size), and what sam2's encoder makes of it."""


class Frames(Protocol):
    """The slices as the model's image encoder wants them, made when asked for."""

    def __len__(self) -> int:
        """Return the depth of the volume."""
        ...

    def __getitem__(self, z: int) -> torch.Tensor:
        """Return slice ``z`` as float32 of shape (3, image size, image size)."""
        ...


def worth_encoding_ahead(device: torch.device | str) -> bool:
    """Say whether encoding ahead is faster: on a CPU all of whose cores the model may use, two to four of them.

    Not where fewer threads are wanted than there are cores (``--threads``; workers): it would take more of them. Not
    with another OpenMP, or one that was told how to wait: its threads might spin beside each other.
    """
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or not max(2, _cores()) <= threads <= MOST_THREADS:
        return False
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active" or "GOMP_SPINCOUNT" in os.environ:
        return False
    runtimes = {library["prefix"] for library in threadpool_info() if library["user_api"] == "openmp"}
    return runtimes == {"libgomp"}


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
        self._threads = torch.get_num_threads()
        self._next: tuple[int, Future[tuple[Features, Sequence[float]]]] | None = None
        self._thread = ThreadPoolExecutor(1, "encode-slices", initializer=torch.get_num_threads)
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
        # OpenMP counts by thread: this one gets as many as the one that walks has.
        with threadpool_limits(self._threads, user_api="openmp"):
            return self._encode(frame), (begun, there)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
