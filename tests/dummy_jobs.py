"""Jobs that compute nothing and leave a trace in a folder: what happened, where, and how often.

Each has slices; a slice is a file ``<job>/<slice>`` that is written once it is "computed", so a job that is tried again
goes on where it was. ``trouble`` says what happens at its third slice.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from etsam_zarr.errors import InputError
from etsam_zarr.events import Advanced, OnEvent
from etsam_zarr.lease import Fence

SLICES = 5


@dataclass(frozen=True)
class DummyJob:
    name: str
    folder: Path
    fence: Fence | None = None
    slab: int = 8
    trouble: str = ""
    slice_seconds: float = 0.0


def slices_of(job: DummyJob) -> list[Path]:
    return [job.folder / job.name / f"{z}" for z in range(SLICES)]


def trace_of(job: DummyJob) -> list[tuple[int, int]]:
    """Slice and process of everything that was computed, in order."""
    path = job.folder / job.name / "trace"
    if not path.exists():
        return []
    return [(int(z), int(pid)) for z, pid in (line.split() for line in path.read_text().splitlines())]


def is_done(job: DummyJob) -> bool:
    return all(path.exists() for path in slices_of(job))


def undone(jobs: list[DummyJob]) -> list[DummyJob]:
    return [job for job in jobs if not is_done(job)]


def first_time(job: DummyJob, what: str) -> bool:
    """Whether this is asked for the first time, by any process."""
    try:
        (job.folder / job.name / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def compute(job: DummyJob, on_event: OnEvent) -> None:
    (job.folder / job.name).mkdir(exist_ok=True)
    for z, path in enumerate(slices_of(job)):
        if path.exists():
            continue
        if z == 2:
            get_into_trouble(job)
        with (job.folder / job.name / "trace").open("a") as file:
            file.write(f"{z} {os.getpid()}\n")
        time.sleep(job.slice_seconds)
        if job.fence is not None:
            job.fence.check()
        if not (job.trouble == "forgets" and z == SLICES - 1):
            path.touch()
        on_event(Advanced("stage 1"))


def get_into_trouble(job: DummyJob) -> None:
    match job.trouble:
        case "raises":
            raise InputError(f"The chunk of {job.name} cannot be read.")
        case "crashes":
            raise ZeroDivisionError("division by zero")
        case "runs out of memory once" if first_time(job, "memory"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "runs out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "dies once" if first_time(job, "death"):
            os._exit(1)
        case "dies":
            os._exit(1)
        case "hangs once" if first_time(job, "hang"):
            time.sleep(3600)
        case "hangs":
            time.sleep(3600)
