"""A web server on localhost that serves a folder, counts what it sends, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class Request:
    """What came in, and what went out."""

    method: str
    key: str
    """Path below the served folder."""
    query: str
    headers: dict[str, str]
    status: int
    sent: int
    """Bytes of the body."""


@dataclass
class WebServer:
    """What a test may change while the server runs, and what it has seen."""

    folder: Path
    port: int = 0
    host: str = "127.0.0.1"
    latency: float = 0.0
    """Seconds before every answer."""
    fault: Callable[[str, int], str | int | None] = lambda key, nth: None
    """Called with the key and how often it was asked for before: None to serve it, a status to answer with, or one of
    ``"reset"``, ``"truncate"``, ``"stall"``, ``"redirect:ADDRESS"``."""
    forbid_missing: bool = False
    """Answer 403 for what is not there, as S3 does where listing is not allowed."""
    ranges: bool = True
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def bytes_sent(self) -> int:
        return sum(request.sent for request in self.requests)

    def chunk_requests(self) -> list[Request]:
        """The requests for chunks as a whole."""
        return [r for r in self.requests if r.key[-1:].isdigit() and "range" not in r.headers]

    def forget(self) -> None:
        with self.lock:
            self.requests.clear()
            self.asked.clear()


@contextlib.contextmanager
def serving(folder: Path, **given: Any) -> Iterator[WebServer]:
    """Serve a folder until the block ends."""
    state = WebServer(folder, **given)
    server = _Server((state.host, 0), _handler(state))
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


def _handler(state: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet, or delayed acknowledgements cost 40 ms a request.
        wbufsize = -1
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path, _, query = self.path.partition("?")
            key = unquote(path).strip("/")
            with state.lock:
                nth = state.asked.get(key, 0)
                state.asked[key] = nth + 1
            if state.latency:
                time.sleep(state.latency)
            fault = state.fault(key, nth)
            if fault == "reset":
                self._note(key, query, 0, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            if fault == "stall":
                self._note(key, query, 0, 0)
                time.sleep(1)
                self.close_connection = True
                return
            if isinstance(fault, int):
                self._send(key, query, fault, f"<Error><Message>{self.path}</Message></Error>".encode(), body=body)
                return
            if isinstance(fault, str) and fault.startswith("redirect:"):
                self._send(key, query, 302, b"", body=body, Location=fault.removeprefix("redirect:"))
                return
            file = state.folder / key
            if not file.is_file():
                self._send(key, query, 403 if state.forbid_missing else 404, b"not here", body=body)
                return
            content, status, extra = file.read_bytes(), 200, {}
            asked = self.headers.get("Range")
            if asked and state.ranges:
                start, stop = _range(asked, len(content))
                extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content, status = content[start:stop], 206
            self._send(key, query, status, content, body=body, truncate=fault == "truncate", **extra)

        def _send(
            self, key: str, query: str, status: int, content: bytes, *, body: bool, truncate: bool = False, **extra: str
        ) -> None:
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            sent = (content[: len(content) // 2] if truncate else content) if body else b""
            self._note(key, query, status, len(sent))
            self.wfile.write(sent)
            if truncate:
                self.close_connection = True

        def _note(self, key: str, query: str, status: int, sent: int) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            with state.lock:
                state.requests.append(Request(self.command, key, query, headers, status, sent))

    return Handler


def _range(text: str, size: int) -> tuple[int, int]:
    start, _, end = text.removeprefix("bytes=").partition("-")
    if not start:
        return max(0, size - int(end)), size
    return int(start), min(size, int(end) + 1) if end else size
