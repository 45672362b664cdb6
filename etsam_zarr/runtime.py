"""Carries out the jobs of a stage: here one after another in this process; on several devices see ``workers.runtime``.

A job says what is to be computed, in addresses and numbers; a planner says which jobs can be begun, from what the
ledger notes; ``work`` does one. Both runtimes keep to the same rules: what one job meets does not stop the others, and
a stage whose jobs have not all succeeded ends with an error that names each and why.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from etsam_zarr.errors import BlocksFailedError, DeviceMemoryError, EtsamZarrError, LeaseLostError, RunStoreError
from etsam_zarr.events import Notice, OnEvent
from etsam_zarr.lease import Fence


class Job(Protocol):
    """A frozen dataclass that can be pickled, with these fields among its own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Names the job to people, and uniquely within a run: ``"stage 1, tile 3"``."""

    @property
    def fence(self) -> Fence | None:
        """What to check before anything is written."""

    @property
    def slab(self) -> int:
        """Slices held at once."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")
NextJobs = Callable[[], Sequence[J]]
"""Returns, from what is noted as done, the jobs that can be begun or are under way, most urgent first."""
Work = Callable[[J, OnEvent], R]
"""Does one job and returns a small record; where ``in_process`` is false, a function of a module with a name."""


class Runtime(Protocol):
    """Something that carries out jobs."""

    @property
    def workers(self) -> int:
        """How many jobs it does at the same time."""

    @property
    def in_process(self) -> bool:
        """Whether in this process, so that what is open can be handed over."""

    def execute(self, next_jobs: NextJobs[J], work: Work[J, R], *, on_event: OnEvent) -> list[R]:
        """Carry out jobs until the planner names none; return what they returned.

        Raises
        ------
        BlocksFailedError
            Several jobs failed; all others were done. The error of an only one is raised as it is.
        LeaseLostError
            Another run took the store over; nothing more was begun.
        """


class SerialRuntime:
    """One job after the other, in this process."""

    workers = 1
    in_process = True

    def execute(self, next_jobs: NextJobs[J], work: Work[J, R], *, on_event: OnEvent) -> list[R]:
        """Carry out jobs until the planner names none; see :class:`Runtime`."""
        tally = Tally()
        results = []
        while (job := tally.next_of(next_jobs())) is not None:
            try:
                result = attempt(job, work, on_event)
            except LeaseLostError:
                raise
            except Exception as error:  # noqa: BLE001 - kept, and raised when the other jobs are done
                tally.failed[job.name] = error
            else:
                tally.done.add(job.name)
                results.append(result)
        tally.conclude()
        return results


class Tally:
    """Which jobs have ended, and how."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.failed: dict[str, Exception] = {}
        self._given: dict[str, Job] = {}

    def next_of(self, jobs: Sequence[J], *, under_way: Mapping[str, object] | None = None) -> J | None:
        """Return the first of the jobs that has neither ended nor is under way, or None.

        A job that ended well and is still asked for has not left in the store what it should have: it has failed. (One
        that may do a part only, and then is asked for from another place on, goes on.)
        """
        for job in jobs:
            if job.name in self.done:
                self.done.remove(job.name)
                if job == self._given[job.name]:
                    self.failed[job.name] = RunStoreError(
                        "It ended as if all were well, but its results are not in the run store."
                    )
            if job.name not in self.failed and job.name not in (under_way or {}):
                self._given[job.name] = job
                return job
        return None

    def conclude(self) -> None:
        """Raise if anything failed: the error of an only one, with its name; or all of them in one.

        Raises
        ------
        BlocksFailedError
            Several jobs failed.
        """
        if not self.failed:
            return
        name, first = next(iter(self.failed.items()))
        if len(self.failed) == 1:
            if isinstance(first, EtsamZarrError):
                raise type(first)(f"{name}: {first}") from first
            first.add_note(name)
            raise first
        count = len(self.failed) + len(self.done)
        reasons = " ".join(f"{name}: {_reason(error)}" for name, error in self.failed.items())
        others = "The other blocks were computed and everything" if self.done else "Everything"
        raise BlocksFailedError(
            f"{len(self.failed)} of {count} blocks failed. {reasons} {others} finished is kept; give the same command "
            "again to compute what is missing."
        ) from first


def attempt(job: J, work: Work[J, R], on_event: OnEvent) -> R:
    """Do a job in this process; if memory runs out, once more with as little as is possible.

    Finished slabs are kept, so the second attempt goes on where the first one stopped.

    Raises
    ------
    DeviceMemoryError
        Memory ran out a second time.
    """
    try:
        return work(job, on_event)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error)
    # Only now, outside the handler: there the error keeps all frames alive, and with them the tensors.
    _free_memory()
    less = replace(job, slab=max(1, job.slab // 2))
    on_event(Notice(
        f"Memory ran out in {job.name}; trying again with emptied caches and slabs of {less.slab} slices.", warning=True
    ))  # fmt: skip
    try:
        return work(less, on_event)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"Memory ran out twice in {job.name}, the second time with emptied caches and slabs of {less.slab} slices "
            f"({_first_line(said)}). Close other programs on the device, or give one with more memory; less is needed "
            "with --precision bfloat16, with a larger --grid-interval where every prompted slice is kept (prompts grid "
            "and stage1_partial), and with a smaller model. 'etsam-zarr plan' says how much."
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether a computation failed for want of memory; PyTorch and its libraries have several ways to say so."""
    import torch

    if isinstance(error, EtsamZarrError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, EtsamZarrError) else f"{type(error).__name__}: {_first_line(str(error))}"
    return text if text.endswith(".") else f"{text}."


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
