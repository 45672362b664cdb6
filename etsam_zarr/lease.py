"""Who may write a run store: a lease on disk that its holder keeps alive, and that others take over once it is dead.

A lock of the operating system goes with its process, but not every network file system carries it to another machine.
A lease is a small file, so it works wherever the store does. Leases are numbered and only the highest number counts:
taking over is creating the next number, which the file system lets exactly one process do (``link`` fails where the
name is taken). Numbers never come back, so a holder that slept through its own end cannot pass for the present one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from etsam_zarr.atomic import disk_errors, write_atomically
from etsam_zarr.errors import LeaseLostError, RunStoreError
from etsam_zarr.lease_file import (
    Holder,
    UnreadableLease,
    last_sign_of_life,
    lease_file,
    newest_lease,
    publish,
    read_holder,
)

BEAT_SECONDS = 5.0
"""How often a holder gives a sign of life."""
PATIENCE_SECONDS = 60.0
"""After how long without one a holder on another machine counts as dead: watched, since clocks differ."""
_CLOCKS_AGREE_SECONDS = 600.0
"""No two machines of a cluster differ by more: a last sign of life that is older needs no watching."""
_FOLDER = ".lease"
_RELEASED = ".released"
_STARTING = "one that is only starting"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fence:
    """Lets a worker ask whether it may still write: small, and can be pickled."""

    folder: Path
    number: int
    token: str
    claim: tuple[str, str] | None = None
    """File and token of the claim on a piece of work."""

    def claiming(self, work: str) -> Fence:
        """Claim a piece of work; whoever claimed it before, and may only have seemed dead, finds itself fenced off.

        Parameters
        ----------
        work
            Its name.

        Raises
        ------
        LeaseLostError
            The lease does not hold any more.
        """
        self.check()
        token = secrets.token_hex(8)
        name = f"{hashlib.sha256(work.encode()).hexdigest()[:16]}.claim"
        write_atomically(self.folder / name, token.encode())
        return replace(self, claim=(name, token))

    def check(self) -> None:
        """Return if the lease, and the claim if there is one, still hold.

        Raises
        ------
        LeaseLostError
            The run has ended, another one took the store over, or another worker the work.
        """
        path, store = lease_file(self.folder, self.number), self.folder.parent
        if newest_lease(self.folder) > self.number:
            raise LeaseLostError(f"Another run took over the run store {store}: {_LOST}")
        try:
            mine = read_holder(path).token == self.token
            claimed = self.claim is None or (self.folder / self.claim[0]).read_text() == self.claim[1]
        except (OSError, UnreadableLease) as error:
            raise LeaseLostError(f"The run store {store} is gone or damaged ({error}): {_LOST}") from error
        if not mine or path.with_suffix(_RELEASED).exists():
            raise LeaseLostError(f"The run that started this work on {store} has ended: {_LOST}")
        if not claimed:
            raise LeaseLostError(f"Another worker has taken over this work on {store}: {_LOST}")


_LOST = "this process stops writing. What it had finished before is kept; give the run command again to go on."


class Lease:
    """Holds a folder for writing as long as the context lasts.

    Parameters
    ----------
    store
        The folder.
    beat, patience
        Seconds between signs of life, and how long a holder on another machine may go without one. Everybody who
        writes a store must use the same.
    """

    def __init__(self, store: Path, *, beat: float = BEAT_SECONDS, patience: float = PATIENCE_SECONDS) -> None:
        self._store, self._folder = store, store / _FOLDER
        self._beat, self._patience = beat, patience
        self._holder = Holder.this_process()
        self._number = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises
        ------
        RunStoreError
            Another process holds it.
        OutputError
            The folder cannot be written.
        """
        with disk_errors("locking the run store", self._store):
            self._folder.mkdir(exist_ok=True)
            while not self._take():
                pass
            self._tidy()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        # Not there any more if the store was deleted; and if the disk is full, the holder is seen to be gone anyway.
        try:
            self._path.with_suffix(_RELEASED).touch()
        except OSError as problem:
            _log.info("The lease %s could not be released: %s", self._path, problem)

    @property
    def fence(self) -> Fence:
        """What workers of this run check before they write."""
        return Fence(self._folder, self._number, self._holder.token)

    @property
    def _path(self) -> Path:
        return lease_file(self._folder, self._number)

    def _take(self) -> bool:
        """Try for the number after the newest; return False if somebody else got it."""
        draft = self._folder / f"{self._holder.token}.draft"
        draft.write_text(json.dumps(asdict(self._holder)))
        try:
            newest = newest_lease(self._folder)
            if newest:
                self._await_end_of(lease_file(self._folder, newest), now=draft.stat().st_mtime)
            self._number = newest + 1
            publish(draft, self._path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        # The newest may have been cleared away between the look and the link, by the holder of a higher number.
        if newest_lease(self._folder) != self._number or read_holder(self._path) != self._holder:
            self._path.unlink(missing_ok=True)
            return False
        return True

    def _await_end_of(self, path: Path, *, now: float) -> None:
        """Return when the lease at ``path`` is released, or its holder is dead; raise as soon as it is seen to live.

        ``now`` is the time on the clock of the file system, seconds since the epoch.
        """
        first_beat = last_sign_of_life(path)
        silent_since = time.monotonic()
        said = False
        while not path.with_suffix(_RELEASED).exists():
            if newest_lease(self._folder) != int(path.stem):
                return  # somebody else took over: the caller looks again
            try:
                holder = read_holder(path)
            except FileNotFoundError:
                return
            except UnreadableLease:
                holder = None  # being written, or written by a machine that died while it did: time will tell
            if holder is not None and holder.is_near:
                if holder.is_gone:
                    return
                raise self._refusal(holder)
            # The file was just opened, so a network file system shows its present time, not one it remembers.
            beat = last_sign_of_life(path)
            if beat != first_beat:
                raise self._refusal(holder)
            long_ago = beat is not None and now - beat > self._patience + _CLOCKS_AGREE_SECONDS
            if long_ago or time.monotonic() - silent_since >= self._patience:
                return
            if not said:
                said = True
                _log.warning(
                    "The run store %s was being written by %s. Waiting up to %g s for a sign of life of it.",
                    self._store, holder or _STARTING, self._patience,
                )  # fmt: skip
            time.sleep(min(0.5, self._beat / 4))

    def _refusal(self, holder: Holder | None) -> RunStoreError:
        return RunStoreError(
            f"Another process is writing the run store {self._store}: {holder or _STARTING}. Wait for it to end, or "
            "give another -o."
        )

    def _tidy(self) -> None:
        """Clear away what older leases left; the one before stays, for those that are just reading it."""
        for path in self._folder.iterdir():
            old = path.stem.isdecimal() and int(path.stem) < self._number - 1
            if old or path.suffix == ".claim":
                path.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        # Only the time of the file changes: were it written anew, a holder that wakes up from a long sleep could undo
        # what happened meanwhile.
        while not self._over.wait(self._beat):
            try:
                os.utime(self._path)
            except OSError as error:
                _log.info("No sign of life at %s: %s", self._path, error)
