"""Published weights: fetched, resumed, verified, against a server on this machine that also misbehaves."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from etsam_zarr_cli.main import main

from etsam_zarr import download
from etsam_zarr.errors import InputError, InputNotFoundError
from etsam_zarr.weights import ETSAM_FILES, WeightsSource, fetch, find_etsam_weights, list_weights, verify

NAMES = ("one.pt", "two.pt")
CONTENT = {name: bytes([number]) * 3_000_000 + name.encode() for number, name in enumerate(NAMES, 1)}


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    url: str = ""
    html_for: str = ""
    break_after: int | None = None
    """Bytes after which the next answer breaks off, once."""
    corrupt: str = ""
    status: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    behaviour = Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            asked = self.headers.get("Range")
            behaviour.requests.append((name, asked))
            if behaviour.status:
                self.send_error(behaviour.status)
                return
            if self.path.startswith("/api/records/"):
                self._send(json.dumps(record(behaviour.url)).encode(), "application/json")
                return
            if name == behaviour.html_for:
                self._send(b"<!DOCTYPE html><title>Sign in</title>", "text/html; charset=utf-8")
                return
            content = CONTENT[name]
            if name == behaviour.corrupt:
                content = content[:-1] + b"?"
            self._send(content, "application/octet-stream", first=int(asked[6:-1]) if asked else 0)

        def _send(self, content: bytes, kind: str, *, first: int = 0) -> None:
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            part = content[first:]
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if behaviour.break_after is not None and kind != "application/json":
                part, behaviour.break_after = part[: behaviour.break_after], None
                self.close_connection = True
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    # Waiting between attempts is not what is tested.
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        behaviour.url = f"http://127.0.0.1:{instance.server_address[1]}"
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield behaviour
        instance.shutdown()
        thread.join()


def record(url: str) -> dict[str, object]:
    """What Zenodo's API says about a record."""
    return {
        "id": 17571925,
        "files": [
            {
                "key": name,
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{url}/files/{name}"},
            }
            for name, content in CONTENT.items()
        ],
    }


def source_at(behaviour: Behaviour) -> WeightsSource:
    sums = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in CONTENT.items()}
    return WeightsSource(NAMES, f"{behaviour.url}/files", sums)


def test_fetch_list_verify(server: Behaviour, tmp_path: Path) -> None:
    source = source_at(server)
    assert [file.state for file in list_weights(source, folder=tmp_path)] == ["absent", "absent"]
    paths = fetch(source, folder=tmp_path)
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert [file.state for file in list_weights(source, folder=tmp_path)] == ["unverified", "unverified"]
    assert [file.state for file in verify(source, folder=tmp_path)] == ["whole", "whole"]
    asked = len(server.requests)
    fetch(source, folder=tmp_path)
    assert len(server.requests) == asked, "files that are whole are not downloaded again"


def test_a_broken_download_goes_on_where_it_was(server: Behaviour, tmp_path: Path) -> None:
    server.break_after = 1_500_000
    (path, _) = fetch(source_at(server), folder=tmp_path)
    assert path.read_bytes() == CONTENT["one.pt"]
    ranges = [asked for name, asked in server.requests if name == "one.pt"]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert 0 < int(ranges[1][6:-1]) <= 1_500_000


def test_an_interrupted_fetch_goes_on_in_the_next(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / ".one.pt.partial").write_bytes(CONTENT["one.pt"][:1000])
    assert list_weights(source_at(server), folder=tmp_path)[0].state == "partial"
    (path, _) = fetch(source_at(server), folder=tmp_path)
    assert path.read_bytes() == CONTENT["one.pt"]
    assert server.requests[0] == ("one.pt", "bytes=1000-")


def test_a_web_page_is_called_one(server: Behaviour, tmp_path: Path) -> None:
    server.html_for = "two.pt"
    with pytest.raises(InputError, match="web page"):
        fetch(source_at(server), folder=tmp_path)
    assert (tmp_path / "one.pt").exists()
    assert not (tmp_path / "two.pt").exists()


def test_a_wrong_checksum_keeps_nothing(server: Behaviour, tmp_path: Path) -> None:
    server.corrupt = "one.pt"
    with pytest.raises(InputError, match="checksum"):
        fetch(source_at(server), folder=tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_says_its_number(server: Behaviour, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(InputError, match=f"HTTP {status}"):
        fetch(source_at(server), folder=tmp_path)


def test_no_server_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    source = WeightsSource(NAMES, "http://127.0.0.1:9/none", dict.fromkeys(NAMES, "sha256:0"))
    with pytest.raises(InputError, match="copy them to"):
        fetch(source, folder=tmp_path)


def test_verify_finds_damage_and_absence(server: Behaviour, tmp_path: Path) -> None:
    source = source_at(server)
    with pytest.raises(InputNotFoundError, match=r"one\.pt and two\.pt"):
        verify(source, folder=tmp_path)
    fetch(source, folder=tmp_path)
    (tmp_path / "two.pt").write_bytes(CONTENT["two.pt"][:-1])
    assert [file.state for file in verify(source, folder=tmp_path)] == ["whole", "damaged"]


def test_the_record_of_a_doi_gives_addresses_and_checksums(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch.downloaders

    monkeypatch.setattr(pooch.downloaders, "doi_to_url", lambda *_, **__: "https://zenodo.org/records/17571925")
    monkeypatch.setattr(pooch.downloaders.ZenodoRepository, "base_api_url", f"{server.url}/api/records")
    source = WeightsSource(NAMES)
    assert [path.name for path in fetch(source, folder=tmp_path)] == list(NAMES)
    assert [file.state for file in verify(source, folder=tmp_path)] == ["whole", "whole"]
    with pytest.raises(InputError, match="does not hold other"):
        fetch(WeightsSource(("other.pt",)), folder=tmp_path)


def test_copied_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETSAM_ZARR_WEIGHTS", str(tmp_path))
    assert find_etsam_weights() is None
    paths = tuple(tmp_path / name for name in ETSAM_FILES)
    for path in paths:
        path.write_bytes(b"PK" + bytes(2 << 20))
    assert find_etsam_weights() == paths
    paths[1].write_bytes(b"<html>" + bytes(2 << 20))
    assert find_etsam_weights() is None
    assert list_weights()[1].state == "damaged"


def test_commands(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETSAM_ZARR_WEIGHTS", str(tmp_path))
    for function in (fetch, list_weights, verify):
        defaults = dict(function.__kwdefaults__)
        monkeypatch.setattr(function, "__defaults__", (source_at(server),))
        monkeypatch.setattr(function, "__kwdefaults__", defaults)
    monkeypatch.setattr("etsam_zarr.bundled.bundled_state", lambda: {tmp_path / "ours.pt": "whole"})
    assert main(["weights", "verify"]) == 1
    assert "weights fetch" in capsys.readouterr().err
    assert main(["weights", "fetch"]) == 0
    assert main(["weights", "list"]) == 0
    assert "one.pt: unverified, 3 MB" in capsys.readouterr().out
    assert main(["weights", "verify"]) == 0
    (tmp_path / "one.pt").write_bytes(b"x" * 2_000_000)
    assert main(["weights", "verify"]) == 1
    assert "damaged" in capsys.readouterr().err
    assert main(["weights", "verify", "--bundled"]) == 0
    monkeypatch.setattr("etsam_zarr.bundled.bundled_state", lambda: {tmp_path / "ours.pt": "damaged"})
    assert main(["weights", "verify", "--bundled"]) == 1
    said = capsys.readouterr()
    assert "ours.pt: damaged" in said.out
    assert "Install etsam-zarr again" in said.err
