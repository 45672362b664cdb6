"""Where fetched chunks are kept, compressed as they are stored: in memory, or as files with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from etsam_zarr.atomic import disk_errors

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"EZC1"


class Shelf(ABC):
    """Where stored chunks are kept."""

    def __init__(self, *, lasting: bool) -> None:
        self.lasting = lasting
        """Whether chunks stay when the reading has moved on to other layers."""

    @abstractmethod
    def take(self, name: str) -> bytes | None:
        """Return what is kept under a name; None if there is nothing, or it is damaged."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Say whether something is kept under a name, without reading it."""

    @abstractmethod
    def put(self, name: str, value: bytes) -> None:
        """Keep a value."""

    @abstractmethod
    def drop(self, unless: Callable[[str], bool]) -> None:
        """Forget everything but the names for which ``unless`` is true."""

    def remove(self) -> None:
        """Forget everything and leave nothing behind."""
        self.drop(lambda name: False)


class MemoryShelf(Shelf):
    """Keeps chunks in memory."""

    def __init__(self, *, lasting: bool) -> None:
        super().__init__(lasting=lasting)
        self._lock = threading.Lock()
        self._kept: dict[str, bytes] = {}

    def take(self, name: str) -> bytes | None:
        """See :meth:`Shelf.take`."""
        return self._kept.get(name)

    def has(self, name: str) -> bool:
        """See :meth:`Shelf.has`."""
        return name in self._kept

    def put(self, name: str, value: bytes) -> None:
        """See :meth:`Shelf.put`."""
        with self._lock:
            self._kept[name] = value

    def drop(self, unless: Callable[[str], bool]) -> None:
        """See :meth:`Shelf.drop`."""
        with self._lock:
            for name in [name for name in self._kept if not unless(name)]:
                del self._kept[name]


class DiskShelf(Shelf):
    """Keeps chunks as files with a checksum; each appears whole or not at all, so they serve after a kill as well.

    Parameters
    ----------
    root
        Folder that may hold chunks of several volumes.
    identity
        What tells this volume from others.
    """

    def __init__(self, root: Path, identity: str, *, lasting: bool) -> None:
        super().__init__(lasting=lasting)
        self.root = root
        self.folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        with contextlib.suppress(FileNotFoundError):
            for leftover in self.folder.glob("*.partial"):
                leftover.unlink(missing_ok=True)

    def take(self, name: str) -> bytes | None:
        """See :meth:`Shelf.take`."""
        try:
            stored = self._file(name).read_bytes()
        except OSError:
            return None  # not there; or a failing disk, and then it is fetched again
        # After a power failure a file may be there without all of its content.
        if len(stored) < _HEADER.size:
            return None
        magic, checksum, size = _HEADER.unpack_from(stored)
        value = memoryview(stored)[_HEADER.size :]
        if magic != _MAGIC or size != len(value) or zlib.crc32(value) != checksum:
            return None
        return bytes(value)

    def take_start(self, name: str, size: int) -> bytes | None:
        """Return the first bytes of what is kept."""
        try:
            with self._file(name).open("rb") as file:
                return file.read(_HEADER.size + size)[_HEADER.size :]
        except OSError:
            return None

    def has(self, name: str) -> bool:
        """See :meth:`Shelf.has`."""
        return self._file(name).exists()

    def put(self, name: str, value: bytes) -> None:
        """See :meth:`Shelf.put`; raises OutputError if the disk is full."""
        file = self._file(name)
        partial = file.with_name(f"{file.name}.{threading.get_ident()}.partial")
        with disk_errors("keeping fetched chunks", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as out:
                    out.write(_HEADER.pack(_MAGIC, zlib.crc32(value), len(value)))
                    out.write(value)
                partial.replace(file)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    def drop(self, unless: Callable[[str], bool]) -> None:
        """See :meth:`Shelf.drop`."""
        kept = {self._file(name).name for name in self._names() if unless(name)}
        with contextlib.suppress(FileNotFoundError):
            for file in self.folder.iterdir():
                if file.name not in kept and file.suffix == ".chunk":
                    file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete this volume's chunks, and the folder above if nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def size(self) -> int:
        """Return the bytes that are kept."""
        with contextlib.suppress(FileNotFoundError):
            return sum(file.stat().st_size for file in self.folder.iterdir())
        return 0

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [unquote(file.stem) for file in self.folder.glob("*.chunk")]
        return []

    def _file(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}.chunk"
