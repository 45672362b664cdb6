"""The files of leases: who holds one, and when its holder last gave a sign of life, which is the time of the file."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Holder:
    """A process that holds, or held, a lease."""

    host: str
    pid: int
    started: float
    """When the process started, seconds since the epoch as its system counts them: numbers of processes come back."""
    space: str
    """Boot and process namespace within which ``pid`` means something; empty where the system does not say."""
    token: str
    """Random; tells two leases of one process apart."""
    since: str
    """When the lease was taken, ISO 8601, UTC."""

    @classmethod
    def this_process(cls) -> Holder:
        """Describe the process that calls, with a new token."""
        return cls(
            host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time(), space=_process_space(),
            token=secrets.token_hex(8), since=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_near(self) -> bool:
        """Whether this process can see the holder's process, or that it is gone."""
        return (self.host, self.space) == (socket.gethostname(), _process_space())

    @property
    def is_gone(self) -> bool:
        """Whether the process of a near holder has ended; a killed one that nobody has waited for counts as ended."""
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() != self.started) or bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class UnreadableLease(Exception):
    """The file of a lease does not hold a whole holder."""


def lease_file(folder: Path, number: int) -> Path:
    """Return where the lease of this number is."""
    return folder / f"{number:07d}.json"


def newest_lease(folder: Path) -> int:
    """Return the highest number in the folder, 0 if there is none."""
    return max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()), default=0)


def publish(draft: Path, path: Path) -> None:
    """Give a whole file a name that must be free.

    Raises
    ------
    FileExistsError
        It is taken.
    """
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links. Whoever reads the file half written waits until it is whole.
        with path.open("x") as file:
            file.write(draft.read_text())
            file.flush()
            os.fsync(file.fileno())


def read_holder(path: Path) -> Holder:
    """Return who holds the lease in this file.

    Raises
    ------
    UnreadableLease
        The file does not hold a whole holder.
    FileNotFoundError
        It is not there any more.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return Holder(**content)
    except (ValueError, TypeError) as error:
        raise UnreadableLease(f"{path}: {error}") from error


def last_sign_of_life(path: Path) -> float | None:
    """Return when the lease's holder gave the last one, on the clock of the file system; None if the file is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


@cache
def _process_space() -> str:
    """Tell machines, boots and containers apart where the system lets us."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
