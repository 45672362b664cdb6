"""What the server of a run answers, to whom, and what it keeps to itself."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from etsam_zarr.errors import SettingsError
from etsam_zarr.viewing.server import RunServer, file_within

CHUNK = bytes(range(256)) * 20
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder to serve, with a secret beside it."""
    folder = tmp_path / "run.zarr"
    (folder / "0").mkdir(parents=True)
    (folder / ".zattrs").write_text('{"a": 1}')
    (folder / "0" / "0.0").write_bytes(CHUNK)
    (folder / "empty").write_bytes(b"")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret.txt")
    (folder / "folder-link").symlink_to(tmp_path)
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[RunServer]:
    with RunServer(root).running() as running:
        yield running


def ask(server: RunServer, target: str, method: str = "GET", **headers: str) -> Answer:
    """Send a request as it is: http.client does not tidy up the path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, target, headers=headers)
    response = connection.getresponse()
    answer = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_files_come_whole_with_headers_for_other_origins(server: RunServer) -> None:
    status, headers, body = ask(server, "/0/0.0", Origin="https://neuroglancer-demo.appspot.com")
    assert (status, body) == (200, CHUNK)
    assert headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in headers["access-control-expose-headers"]
    assert headers["content-length"] == str(len(CHUNK))
    assert headers["accept-ranges"] == "bytes"
    status, headers, body = ask(server, "/.zattrs?v=1")
    assert (status, body, headers["content-type"]) == (200, b'{"a": 1}', "application/json")
    assert ask(server, "/empty")[0::2] == (200, b"")


def test_head_has_no_body(server: RunServer) -> None:
    status, headers, body = ask(server, "/0/0.0", "HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(CHUNK)), b"")
    status, headers, body = ask(server, "/0/0.0", "HEAD", Range="bytes=2-4")
    assert (status, headers["content-length"], body) == (206, "3", b"")


def test_preflight(server: RunServer) -> None:
    status, headers, _ = ask(server, "/0/0.0", "OPTIONS", **{"Access-Control-Request-Headers": "range"})
    assert status == 204
    assert headers["access-control-allow-origin"] == "*"
    assert "Range" in headers["access-control-allow-headers"]
    assert headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(
    ("asked", "part", "told"),
    [
        ("bytes=0-0", slice(0, 1), "bytes 0-0/5120"),
        ("bytes=100-299", slice(100, 300), "bytes 100-299/5120"),
        ("bytes=5000-", slice(5000, None), "bytes 5000-5119/5120"),
        ("bytes=-16", slice(-16, None), "bytes 5104-5119/5120"),
        ("bytes=-9999", slice(None), "bytes 0-5119/5120"),
        ("bytes=5119-9999999999999999999999", slice(5119, None), "bytes 5119-5119/5120"),
    ],
)
def test_byte_ranges(asked: str, part: slice, told: str, server: RunServer) -> None:
    status, headers, body = ask(server, "/0/0.0", Range=asked)
    assert (status, headers["content-range"], body) == (206, told, CHUNK[part])


@pytest.mark.parametrize("asked", ["bytes=5120-", "bytes=6000-7000", "bytes=-0", "bytes=9-3"])
def test_ranges_outside_of_the_file(asked: str, server: RunServer) -> None:
    status, headers, body = ask(server, "/0/0.0", Range=asked)
    assert (status, headers["content-range"], body) == (416, "bytes */5120", b"")
    assert headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "items=0-1", "bytes=-", "nonsense"])
def test_ranges_that_are_not_understood_bring_the_whole_file(asked: str, server: RunServer) -> None:
    assert ask(server, "/0/0.0", Range=asked)[0::2] == (200, CHUNK)


@pytest.mark.parametrize(
    "target",
    [
        "/0/0.1", "/0", "/", "/0/", "/0//0.0", "/../secret.txt", "/0/../../secret.txt", "/%2e%2e/secret.txt",
        "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/0/%2e%2e/.zattrs", "/..\\secret.txt", "/..%5csecret.txt",
        "/link", "/folder-link/secret.txt", "/.zattrs%00", "/%00", "/./.zattrs", "/" + "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_to_be_had(target: str, server: RunServer) -> None:
    status, headers, body = ask(server, target)
    assert (status, body) == (404, b"")
    # A viewer must be able to see that a chunk is missing, which stands for zeros.
    assert headers["access-control-allow-origin"] == "*"


def test_the_whole_path_of_a_file_is_no_way_in(server: RunServer, root: Path) -> None:
    assert ask(server, str(root.parent / "secret.txt"))[0] == 404
    assert ask(server, "/" + str(root.parent / "secret.txt"))[0] == 404
    assert file_within(root, str(root / ".zattrs")) is None


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_it_is_read_only(method: str, server: RunServer, root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert ask(server, "/.zattrs", method)[0] == 501
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_many_requests_at_once_and_several_over_one_connection(server: RunServer) -> None:
    def some(number: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        parts = []
        for start in range(number, number + 10):
            connection.request("GET", "/0/0.0", headers={"Range": f"bytes={start}-{start + 99}"})
            parts.append(connection.getresponse().read())
        connection.close()
        return parts

    with ThreadPoolExecutor(16) as threads:
        for number, parts in enumerate(threads.map(some, range(32))):
            assert parts == [CHUNK[start : start + 100] for start in range(number, number + 10)]


def test_a_client_that_stays_silent_does_not_hold_up_others(server: RunServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1])) as silent:
        silent.send(b"GET /0/0.0 HTTP/1.1\r\n")
        assert ask(server, "/.zattrs")[0] == 200


def test_it_is_reachable_from_this_machine_only(server: RunServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_named(server: RunServer, root: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(SettingsError, match=f"Port {port} cannot be used .* --port"):
        RunServer(root, port=port)


PAGE = """<!doctype html><title>waiting</title><script>
(async () => {{
  const attributes = await (await fetch("{address}/.zattrs")).json();
  const part = await fetch("{address}/0/0.0", {{headers: {{Range: "bytes=100-103"}}}});
  const bytes = Array.from(new Uint8Array(await part.arrayBuffer()));
  const missing = await fetch("{address}/0/9.9");
  document.body.textContent = ["RESULT", attributes.a, part.status, part.headers.get("Content-Range"), bytes,
    missing.status].join(" ");
}})().catch(error => {{ document.body.textContent = "RESULT failed " + error; }});
</script><body></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_page_of_another_origin_reads_it_in_a_real_browser(server: RunServer, tmp_path: Path) -> None:
    page = PAGE.format(address=server.address).encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"http://localhost:{other.server_address[1]}/",
        ]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        other.shutdown()
    assert "RESULT 1 206 bytes 100-103/5120 100,101,102,103 404" in shown
