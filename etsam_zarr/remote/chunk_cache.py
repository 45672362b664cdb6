"""Fetches each stored chunk of a remote array once, and keeps it, compressed as it is, while it serves.

A run reads a tomogram three times (intensities, stage 1, stage 2), slab by slab through chunks that are much deeper
than a slab. Layers of decoded chunks do not fit in memory for wide slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from etsam_zarr.errors import RemoteError
from etsam_zarr.remote.chunk_shelf import DiskShelf, Shelf
from etsam_zarr.remote.store import RemoteStore, is_metadata

MissingChunks = Literal["fill", "error"]

# What may be on its way at once: a few of the portal's 64 MiB chunks, or many small ones against latency.
FLYING_BYTES = 256 << 20
"""Most bytes of chunks that are on their way at once, if they do not compress."""
_MOST_FLYING = 32


class ChunkStore(WrapperStore[RemoteStore]):
    """A remote store whose chunks are fetched once and kept on a shelf.

    Parameters
    ----------
    store
        Where chunks come from.
    shelf
        Where they are kept.
    missing
        What to do about a chunk that is not there: Zarr leaves out chunks that hold only the fill value.
    """

    def __init__(self, store: RemoteStore, shelf: Shelf, *, missing: MissingChunks = "fill") -> None:
        super().__init__(store)
        self.shelf = shelf
        self.missing: set[str] = set()
        """Chunks that were asked for and are not there."""
        self._policy = missing
        self._flying: dict[str, asyncio.Task[Buffer | None]] = {}
        self._gate: asyncio.Semaphore | None = None
        self._parallel = _MOST_FLYING

    @property
    def remote(self) -> RemoteStore:
        """The store below, which keeps nothing."""
        return self._store

    def expect_chunks_of(self, size: int) -> None:
        """Set how many chunks may be on their way at once, from the bytes of a decoded one."""
        self._parallel = max(2, min(_MOST_FLYING, FLYING_BYTES // max(1, size)))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value, or a part of it, from the shelf or from afar; None if it is not there.

        Raises
        ------
        RemoteError
            It cannot be had, or it is missing and that is an error.
        """
        if is_metadata(key):
            return await self._store.get(key, prototype, byte_range)
        name = key if byte_range is None else f"{key}@{_text(byte_range)}"
        return await self._flown(name, lambda: self._fetch(name, key, prototype, byte_range))

    async def fetch(self, keys: Iterable[str]) -> None:
        """Bring whole chunks to the shelf that are not there."""
        prototype = default_buffer_prototype()
        wanted = [key for key in keys if key not in self.missing and not self.shelf.has(key)]

        async def one(key: str) -> None:
            # Nothing is returned: what came is on the shelf, and shall not stay in memory besides.
            await self._flown(key, lambda: self._fetch(key, key, prototype, None))

        await asyncio.gather(*(one(key) for key in wanted))

    async def _flown(self, name: str, fetch: Callable[[], Awaitable[Buffer | None]]) -> Buffer | None:
        """Wait for a value that is on its way already, or set it going."""
        task = self._flying.get(name)
        if task is None:
            task = asyncio.ensure_future(fetch())
            self._flying[name] = task
            task.add_done_callback(lambda done: self._landed(name, done))
        return await asyncio.shield(task)

    def _landed(self, name: str, task: asyncio.Task[Buffer | None]) -> None:
        self._flying.pop(name, None)
        if not task.cancelled():
            task.exception()  # else asyncio complains where nobody waits any more

    async def samples(self, keys: Iterable[str], size: int) -> list[bytes | None]:
        """Return the first bytes of chunks as they are stored now, and forget kept ones that begin otherwise."""
        prototype, keys = default_buffer_prototype(), list(keys)
        part = RangeByteRequest(0, size)
        found = await asyncio.gather(*(self._store.get(key, prototype, part) for key in keys))
        fresh = [None if value is None else value.to_bytes() for value in found]
        if isinstance(self.shelf, DiskShelf) and any(
            self.shelf.has(key) and self.shelf.take_start(key, size) != sample
            for key, sample in zip(keys, fresh, strict=True)
        ):
            self.shelf.drop(lambda name: False)
        return fresh

    async def sizes(self, keys: Iterable[str]) -> list[int] | None:
        """Return the stored bytes of chunks, 0 where there is none; None if the server does not say."""
        try:
            found = await asyncio.gather(*(self._store.size_of(key) for key in keys))
        except RemoteError:
            return None
        return [size or 0 for size in found]

    async def _fetch(
        self, name: str, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        if key in self.missing:
            return None
        kept = await asyncio.to_thread(self.shelf.take, name)
        if kept is not None:
            return prototype.buffer.from_bytes(kept)
        if self._gate is None:
            self._gate = asyncio.Semaphore(self._parallel)
        async with self._gate:
            found = await self._store.get(key, prototype, byte_range)
            if found is None:
                self.missing.add(key)
                if self._policy == "error":
                    raise RemoteError(
                        f"{self._store.shown}: chunk {key} is not there, and --missing-chunks is error. Zarr leaves "
                        "out chunks that hold only the fill value: if that is meant, give --missing-chunks fill; "
                        "otherwise the store is incomplete."
                    )
                return None
            await asyncio.to_thread(self.shelf.put, name, found.to_bytes())
        return found


def _text(part: ByteRequest) -> str:
    match part:
        case RangeByteRequest(start, end):
            return f"{start}-{end}"
        case OffsetByteRequest(offset):
            return f"{offset}-"
        case SuffixByteRequest(suffix):
            return f"-{suffix}"
