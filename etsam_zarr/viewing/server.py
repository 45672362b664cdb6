"""Serves a folder to viewers in the browser of this machine: read-only, with CORS headers and byte ranges."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from urllib.parse import unquote

from etsam_zarr.errors import SettingsError

HOST = "127.0.0.1"

_log = logging.getLogger(__name__)
_PIECE = 1 << 20
_IDLE_SECONDS = 60.0
_JSON = (".zattrs", ".zgroup", ".zarray", ".zmetadata", "zarr.json")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class RunServer(ThreadingHTTPServer):
    """A web server for one folder, reachable from this machine only.

    Any page that the browser of this machine shows may read the folder while it is served: the viewer's page comes
    from elsewhere, so the files must be readable across origins.

    Parameters
    ----------
    root
        The folder.
    port
        0 takes a free one.

    Raises
    ------
    SettingsError
        The port cannot be used.
    """

    # A browser keeps connections open; closing the server does not wait for them.
    daemon_threads = True

    def __init__(self, root: Path, *, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), partial(_Handler, root=root.resolve()))
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"Port {port} cannot be used ({error}). Give another --port, or 0 to take a free one."
            ) from error

    @property
    def address(self) -> str:
        """Where the folder is to be found, without a slash at the end."""
        return f"http://{HOST}:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[RunServer]:
        """Serve in a thread of its own until the block ends."""
        thread = Thread(target=self.serve_forever, name="view-server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "etsam-zarr"
    timeout = _IDLE_SECONDS

    def __init__(self, *args: object, root: Path) -> None:
        self._root = root
        super().__init__(*args)  # type: ignore[arg-type] # what socketserver passes on

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_OPTIONS(self) -> None:
        """Answer a browser that asks whether a page may send a request."""
        self.send_response(HTTPStatus.NO_CONTENT)
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Range, If-None-Match, Cache-Control")
        # Chromium asks this where a public page wants something from this machine.
        self.send_header("Access-Control-Allow-Private-Network", "true")
        self.send_header("Access-Control-Max-Age", "86400")
        self.end_headers()

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "Accept-Ranges, Content-Length, Content-Range")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)

    def _answer(self, *, with_body: bool) -> None:
        path = file_within(self._root, self.path)
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            with path.open("rb") as file:
                self._send(file, path.name, with_body=with_body)
        except (ConnectionError, TimeoutError):
            # The browser no longer wants it, as when the user scrolls on.
            self.close_connection = True
        except OSError as error:
            _log.warning("%s cannot be read: %s", path, error)
            self._refuse(HTTPStatus.NOT_FOUND)

    def _send(self, file: BinaryIO, name: str, *, with_body: bool) -> None:
        size = file.seek(0, 2)
        start, stop = 0, size
        asked = _RANGE.fullmatch(self.headers.get("Range", "").strip())
        if asked is not None and any(asked.groups()):
            found = byte_range(asked[1], asked[2], size)
            if found is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, content_range=f"bytes */{size}")
                return
            start, stop = found
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            # Also for several ranges at once and for units other than bytes, which a server may ignore.
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json" if name in _JSON else "application/octet-stream")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        # A run may be computed further, or its mask made again, while it is looked at.
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if with_body:
            self._copy(file, start, stop)

    def _copy(self, file: BinaryIO, start: int, stop: int) -> None:
        file.seek(start)
        left = stop - start
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                # It was cut short meanwhile: the promised length cannot be kept, so the connection ends.
                self.close_connection = True
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _refuse(self, status: HTTPStatus, *, content_range: str | None = None) -> None:
        self.send_response(status)
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.end_headers()


def file_within(root: Path, target: str) -> Path | None:
    """Return the file that a request's target names; None if there is none, or it lies outside ``root``.

    Parameters
    ----------
    root
        The served folder, resolved.
    target
        As the browser sends it: path, percent-encoded, with or without a query.
    """
    parts = unquote(target.partition("?")[0]).removeprefix("/").split("/")
    # Names that walk up or hide a separator are refused before the disk is asked, and links out of the folder after.
    if any(part in ("", ".", "..") or "\\" in part or "\x00" in part for part in parts):
        return None
    try:
        path = root.joinpath(*parts).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def byte_range(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return start and stop of a range as HTTP writes it (last byte included); None if it holds no byte of the file.

    >>> byte_range("2", "4", 10), byte_range("8", "", 10), byte_range("", "3", 10), byte_range("10", "", 10)
    ((2, 5), (8, 10), (7, 10), None)
    """
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    return (start, stop) if start < stop else None
