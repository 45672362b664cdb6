"""A read-only Zarr store on a web server.

Not obstore's: it sends the whole address, signature included, as the "Referer" of a redirect to another host. The
requests library sends no such header, and takes user and password away where a redirect leads elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from etsam_zarr.remote.address import RemoteAddress
from etsam_zarr.remote.trouble import Trouble

if TYPE_CHECKING:
    import requests

PARALLEL_REQUESTS = 32
# Seconds to wait for a connection, and for the next bytes: a whole chunk may take as long as it needs.
_PATIENCE = (10, 60)
_MISSING = (404, 410)


class HttpStore(Store):
    """What lies below an address of the kind ``https://`` or ``http://``.

    Requests are made once each, in threads; what fails is a :class:`~etsam_zarr.remote.trouble.Trouble`.
    """

    def __init__(self, address: RemoteAddress) -> None:
        super().__init__(read_only=True)
        self._address = address
        self._threads = ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._opened: requests.Session | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HttpStore) and other._address == self._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        return f"HttpStore({self._address.shown!r})"

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._threads.shutdown(wait=False)
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value, or a part of it; None if it is not there."""
        body = await asyncio.get_running_loop().run_in_executor(self._threads, self._get, key, byte_range)
        return None if body is None else prototype.buffer.from_bytes(body)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several values."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def getsize(self, key: str) -> int:
        """Return the length of a value as the server announces it; raises FileNotFoundError if it is not there."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._head, key)

    async def exists(self, key: str) -> bool:
        """Say whether there is a value."""
        try:
            await self.getsize(key)
        except FileNotFoundError:
            return False
        return True

    def _get(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        import requests
        import urllib3

        headers = {} if byte_range is None else {"Range": _header(byte_range)}
        try:
            with self._session.get(self._url(key), headers=headers, timeout=_PATIENCE, stream=True) as answer:
                if answer.status_code in _MISSING:
                    return None
                if answer.status_code not in (200, 206):
                    raise Trouble.of_status(answer.status_code)
                body: bytes = answer.raw.read(decode_content=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise Trouble.of_text(type(error).__name__, str(error)) from None
        if byte_range is not None and answer.status_code == 200:
            # A server without ranges sends all of it, whatever it is asked for.
            return body[_slice(byte_range, len(body))]
        return body

    def _head(self, key: str) -> int:
        import requests

        try:
            answer = self._session.head(self._url(key), timeout=_PATIENCE, allow_redirects=True)
        except (requests.RequestException, OSError) as error:
            raise Trouble.of_text(type(error).__name__, str(error)) from None
        if answer.status_code in _MISSING:
            raise FileNotFoundError(key)
        if answer.status_code != 200 or "content-length" not in answer.headers:
            raise Trouble.of_status(answer.status_code)
        return int(answer.headers["content-length"])

    def _url(self, key: str) -> str:
        address = self._address
        return f"{address.url}{'/' if key else ''}{quote(key)}" + (f"?{address.query}" if address.query else "")

    @property
    def _session(self) -> requests.Session:
        with self._lock:
            if self._opened is None:
                import requests
                from requests.adapters import HTTPAdapter

                self._opened = requests.Session()
                self._opened.headers.update({"Accept-Encoding": "identity", "User-Agent": "etsam-zarr"})
                if self._address.user is not None:
                    self._opened.auth = (self._address.user, self._address.password or "")
                adapter = HTTPAdapter(pool_maxsize=PARALLEL_REQUESTS, max_retries=0)
                self._opened.mount("https://", adapter)
                self._opened.mount("http://", adapter)
            return self._opened

    @property
    def supports_writes(self) -> Literal[False]:
        """No."""
        return False

    @property
    def supports_deletes(self) -> Literal[False]:
        """No."""
        return False

    @property
    def supports_listing(self) -> Literal[False]:
        """No: web servers have no common way to list."""
        return False

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refuse."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refuse."""
        raise NotImplementedError


def _header(part: ByteRequest) -> str:
    match part:
        case RangeByteRequest(start, end):
            return f"bytes={start}-{end - 1}"
        case OffsetByteRequest(offset):
            return f"bytes={offset}-"
        case SuffixByteRequest(suffix):
            return f"bytes=-{suffix}"


def _slice(part: ByteRequest, size: int) -> slice:
    match part:
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(max(0, size - suffix), None)
