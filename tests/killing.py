"""Kills processes for real, and looks that nothing that was finished is computed again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

Records = dict[Path, tuple[int, bytes]]
"""Records of finished slabs by their paths: when they were written, and their content."""


def kill_when(process: subprocess.Popen[bytes], there: Path) -> None:
    """Kill -9 a process as soon as a file appears."""
    deadline = time.monotonic() + 300
    while not there.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def records(store: Path) -> Records:
    """The records of the finished slabs of a run."""
    found = (store / "ledger").rglob("[0-9]*-[0-9]*.json")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def kept(before: Records, store: Path) -> Records:
    """Return the records of now, after a look that none of those before was written again: a slab is noted each time
    it is computed."""
    now = records(store)
    assert {path: now.get(path) for path in before} == before
    return now


def still_running_at_a_random_moment(
    process: subprocess.Popen[str], store: Path, chance: random.Random, *, slabs: int
) -> bool:
    """Wait for any moment of what is left of a run, its start included, until some of so many more slabs are there and
    a second longer; say whether it has not ended."""
    there = len(records(store))
    wanted = there + chance.randint(0, slabs)
    while process.poll() is None and len(records(store)) < wanted:
        time.sleep(0.01)
    # Before its first slab a run imports, starts or finds workers, and looks at what is there.
    time.sleep(chance.uniform(0, 5 if wanted == there else 1))
    return process.poll() is None
