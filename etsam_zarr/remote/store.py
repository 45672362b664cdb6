"""Reads keys of a remote store patiently: retries with back-off, counts what is read, explains what fails."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from etsam_zarr.errors import RemoteError
from etsam_zarr.remote.trouble import Trouble

METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
_MARKUP = b"<"
_NOT_HERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is repeated, and how long to wait before."""

    retries: int = 5
    first_wait: float = 0.25
    """Seconds before the first repetition; each later wait is twice as long."""
    longest_wait: float = 8.0

    def wait(self, retry: int) -> float:
        """Return the seconds to wait before repetition ``retry``, 0 being the first.

        A random part (up to a quarter) keeps parallel requests from coming back all at once.
        """
        return min(self.longest_wait, self.first_wait * 2.0**retry) * random.uniform(0.75, 1.0)


@dataclass(frozen=True)
class TrafficCount:
    """What has been read from a remote store."""

    requests: int = 0
    """Requests that were sent, repetitions among them."""
    retries: int = 0
    """Of these, repetitions."""
    bytes: int = 0
    """Bytes of the bodies that arrived."""
    metadata_requests: int = 0
    """Requests for metadata, most of them for files that one Zarr version has and another has not."""
    metadata_bytes: int = 0


class Traffic:
    """Counts requests and bytes; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = TrafficCount()

    @property
    def count(self) -> TrafficCount:
        """What was counted so far."""
        return self._count

    def sent(self, *, metadata: bool, again: bool) -> None:
        """Count a request."""
        with self._lock:
            count = self._count
            self._count = replace(
                count,
                requests=count.requests + 1,
                retries=count.retries + again,
                metadata_requests=count.metadata_requests + metadata,
            )

    def arrived(self, size: int, *, metadata: bool) -> None:
        """Count the bytes of an answer."""
        with self._lock:
            count = self._count
            self._count = replace(
                count, bytes=count.bytes + size, metadata_bytes=count.metadata_bytes + size * metadata
            )


@dataclass
class _Seen:
    """What the store has answered so far, to explain failures with."""

    answers: int = 0
    forbidden: set[str] = field(default_factory=set)


class RemoteStore(WrapperStore[Store]):
    """A read-only store of one remote address.

    - Time-outs, broken connections, truncated answers and the statuses 408, 429 and 5xx are asked for again, a fixed
      number of times.
    - A 403 for metadata means "not there": hosts that cannot be listed answer so for missing files, and Zarr asks for
      files that one of its versions has and another has not. For a chunk it is an error.
    - Everything else is a :class:`~etsam_zarr.errors.RemoteError`.

    Parameters
    ----------
    store
        The store that makes the requests; it must not retry by itself.
    shown
        The address without secrets, for messages.
    retry
        How patient to be.
    """

    def __init__(self, store: Store, shown: str, *, retry: RetryPolicy | None = None) -> None:
        super().__init__(store)
        self.shown = shown
        self.traffic = Traffic()
        self._retry = retry or RetryPolicy()
        self._seen = _Seen()

    def _with_store(self, store: Store) -> RemoteStore:
        # zarr makes read-only copies of a store: they count together.
        copy = RemoteStore(store, self.shown, retry=self._retry)
        copy.traffic, copy._seen = self.traffic, self._seen
        return copy

    @property
    def supports_listing(self) -> bool:
        """No: web servers cannot list, and nothing here relies on it."""
        return False

    @property
    def below(self) -> Store:
        """The store that makes the requests."""
        return self._store

    @property
    def forbidden(self) -> bool:
        """Whether a 403 was taken for "not there"."""
        return bool(self._seen.forbidden)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the value of a key, or a part of it; None if it is not there.

        Raises
        ------
        RemoteError
            It cannot be had.
        """
        metadata = is_metadata(key)

        async def once() -> Buffer | None:
            found = await self._store.get(key, prototype, byte_range)
            if found is not None:
                self.traffic.arrived(len(found), metadata=metadata)
            return found

        value: Buffer | None = await self._patiently(key, once, metadata=metadata)
        if value is not None and metadata and value.to_bytes().lstrip()[:1] == _MARKUP:
            raise RemoteError(
                f"{self.shown} answers with a web page where Zarr metadata ({key}) is asked for: it is the address of "
                "a site, or of a log-in page, not of the data. Give the address of the .zarr folder itself."
            )
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several values; see :meth:`get`."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Say whether there is a key; raises as :meth:`get` does."""
        return await self.size_of(key) is not None

    async def size_of(self, key: str) -> int | None:
        """Return the stored bytes of a key without reading them; None if it is not there. Raises as :meth:`get`."""

        async def once() -> int | None:
            return await self._store.getsize(key)

        size: int | None = await self._patiently(key, once, metadata=is_metadata(key))
        return size

    async def getsize(self, key: str) -> int:
        """Return the stored bytes of a key; raises FileNotFoundError if it is not there."""
        size = await self.size_of(key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def _patiently(self, key: str, once: Callable[[], Awaitable[Any]], *, metadata: bool) -> Any:  # noqa: ANN401 - whatever is asked for
        for retry in range(self._retry.retries + 1):
            self.traffic.sent(metadata=metadata, again=retry > 0)
            try:
                answer = await once()
            except _NOT_HERE:
                self._seen.answers += 1
                return None
            except Trouble as error:
                trouble = error
            except Exception as error:  # noqa: BLE001 - obstore has no common class for them
                trouble = Trouble.of_text(type(error).__name__, str(error))
            else:
                self._seen.answers += 1
                return answer
            if trouble.status is not None:
                self._seen.answers += 1
            if trouble.status == 403 and metadata:
                self._seen.forbidden.add(key)
                return None
            # An address that never answered is likely mistyped: that shall not take long to say.
            hopeless = trouble.unreachable and not self._seen.answers and retry > 0
            if not trouble.temporary or hopeless or retry == self._retry.retries:
                # Not "from error": tracebacks would show the whole address.
                raise RemoteError(self._failure(key, trouble, retry)) from None
            await asyncio.sleep(self._retry.wait(retry))
        raise AssertionError("the loop above ends by return or raise")

    def _failure(self, key: str, trouble: Trouble, retries: int) -> str:
        what = f"metadata ({key})" if is_metadata(key) else f"chunk {key}"
        if trouble.status in (401, 403):
            advice = (
                "It is private, or (on hosts that cannot be listed) this file is missing. Give credentials: for s3:// "
                "by --s3-profile or the usual variables, for https:// in the address"
            )
        elif trouble.unreachable and not self._seen.answers:
            advice = "Check the address and your network"
        elif trouble.temporary:
            advice = "What was read and computed so far is kept: give the same command again to go on from there"
        else:
            advice = "Check the address"
        tries = f" after {retries + 1} tries" if retries else ""
        return f"{self.shown}: {what} cannot be read{tries}: {trouble.words}. {advice}."


def is_metadata(key: str) -> bool:
    """Say whether a key is that of Zarr metadata.

    >>> is_metadata("0/.zarray"), is_metadata("zarr.json"), is_metadata("0/c/1/2/3")
    (True, True, False)
    """
    return key.rpartition("/")[2] in METADATA_NAMES
