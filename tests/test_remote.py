"""Opening and reading volumes on web servers and in S3, against real servers on localhost."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from http_server import WebServer, serving
from portal_store import write_portal_store

from etsam_zarr.errors import InputError, NoZarrError, RemoteError
from etsam_zarr.geometry import Span
from etsam_zarr.remote.address import RemoteAddress
from etsam_zarr.remote.store import RetryPolicy
from etsam_zarr.remote.volumes import RemoteOptions, secrets_of
from etsam_zarr.sources import open_volume

SHAPE = (20, 24, 28)
FAST = RemoteOptions(retry=RetryPolicy(retries=3, first_wait=0.01))


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def web(tmp_path: Path, voxels: np.ndarray) -> Iterator[WebServer]:
    write_portal_store(tmp_path / "web" / "tomo.zarr", voxels, chunks=(8, 16, 16))
    with serving(tmp_path / "web") as server:
        yield server


def test_reads_what_lies_on_a_web_server(web: WebServer, voxels: np.ndarray) -> None:
    with open_volume(f"{web.url}/tomo.zarr", remote=FAST) as volume:
        assert (volume.info.name, volume.info.uri) == ("tomo", f"{web.url}/tomo.zarr")
        assert volume.info.format == "ome-zarr 0.4"
        assert volume.info.voxel_size == (10, 10, 10)
        np.testing.assert_array_equal(volume.read(Span(3, 17), Span(1, 20)), voxels[3:17, 1:20])


def test_digest_is_that_of_the_local_store(web: WebServer) -> None:
    with open_volume(f"{web.url}/tomo.zarr", remote=FAST) as remote, open_volume(web.folder / "tomo.zarr") as local:
        assert remote.digest() == local.digest()


def test_coarser_level_and_older_layout(web: WebServer, voxels: np.ndarray) -> None:
    write_portal_store(web.folder / "old.zarr", voxels, old=True)
    with open_volume(f"{web.url}/old.zarr/", level=1, remote=FAST) as volume:
        assert volume.info.voxel_size == (20, 20, 20)
        assert any("listed as x, y, z" in warning for warning in volume.info.warnings)
        np.testing.assert_array_equal(volume.read(Span(0, 10)), voxels[::2, ::2, ::2])


@pytest.mark.parametrize("trouble", [503, 500, 429, 408, "reset", "truncate"])
def test_passing_troubles_are_sat_out(trouble: str | int, web: WebServer, voxels: np.ndarray) -> None:
    web.fault = lambda key, nth: trouble if nth < 2 else None
    with open_volume(f"{web.url}/tomo.zarr", remote=FAST) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 20)), voxels)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(503, "503"), ("reset", "breaks off"), ("truncate", "ends before"), (403, "403"), (400, "400")],
)
def test_lasting_troubles_name_the_chunk(trouble: str | int, words: str, web: WebServer) -> None:
    web.fault = lambda key, nth: trouble if key.endswith("0/1/0/1") else None
    with (
        open_volume(f"{web.url}/tomo.zarr?signature=secret", remote=FAST) as volume,
        pytest.raises(RemoteError, match=r"chunk 0/1/0/1 cannot be read") as caught,
    ):
        volume.read(Span(8, 16))  # one layer: nothing is fetched ahead
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    tries = sum(request.key.endswith("0/1/0/1") for request in web.requests)
    assert tries == (1 if trouble in (400, 403) else 4)


def test_forbidden_metadata_is_missing_metadata(web: WebServer, voxels: np.ndarray) -> None:
    web.forbid_missing = True
    with open_volume(f"{web.url}/tomo.zarr", remote=FAST) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 20)), voxels)


def test_nothing_there(web: WebServer) -> None:
    with pytest.raises(NoZarrError, match=r"There is no Zarr at .*other\.zarr: none of"):
        open_volume(f"{web.url}/other.zarr", remote=FAST)
    web.forbid_missing = True
    with pytest.raises(NoZarrError, match="403"):
        open_volume(f"{web.url}/other.zarr", remote=FAST)


def test_something_else_there(web: WebServer) -> None:
    (web.folder / "page.html").write_text("<!doctype html><p>Hello")
    (web.folder / "tomo.mrc").write_bytes(bytes(2048))
    with pytest.raises(NoZarrError, match="is a web page, not a Zarr"):
        open_volume(f"{web.url}/page.html", remote=FAST)
    with pytest.raises(NoZarrError, match="MRC files cannot be read chunk by chunk over a network"):
        open_volume(f"{web.url}/tomo.mrc", remote=FAST)
    (web.folder / "portal.zarr").mkdir()
    (web.folder / "portal.zarr" / ".zarray").write_text("<html>Please log in</html>")
    with pytest.raises(RemoteError, match="answers with a web page"):
        open_volume(f"{web.url}/portal.zarr", remote=FAST)


def test_host_down() -> None:
    with pytest.raises(RemoteError, match=r"no connection to the host can be made\. Check the address"):
        open_volume("http://127.0.0.1:9/tomo.zarr", remote=FAST)


def test_unknown_scheme() -> None:
    with pytest.raises(InputError, match="kind ftp://"):
        open_volume("ftp://me:secret@host/tomo.zarr")


def test_credentials_are_sent_but_not_to_other_hosts_and_never_shown(web: WebServer, voxels: np.ndarray) -> None:
    with serving(web.folder, host="127.0.0.2") as other:
        address = web.url.replace("//", "//me:pass@") + "/tomo.zarr?signature=secret"
        web.fault = lambda key, nth: f"redirect:{other.url}/{key}" if key[-1].isdigit() else None
        with open_volume(address, remote=FAST) as volume:
            np.testing.assert_array_equal(volume.read(Span(0, 20)), voxels)
            for text in (volume.info.uri, repr(volume), repr(volume.info)):
                assert "secret" not in text
                assert "pass" not in text
        assert all(request.headers["authorization"].startswith("Basic ") for request in web.requests)
        assert all(request.query == "signature=secret" for request in web.requests)
        assert other.requests
        for request in other.requests:
            assert "authorization" not in request.headers
            assert not request.query
            assert "secret" not in repr(request)


def test_another_process_opens_a_signed_address_by_its_shown_form(web: WebServer, voxels: np.ndarray) -> None:
    given = web.url.replace("//", "//me:pass@") + "/tomo.zarr?signature=secret"
    options = replace(FAST, secrets=secrets_of(given))
    assert "secret" not in repr(options)
    assert "pass" not in repr(options)
    there = pickle.loads(pickle.dumps(options))
    with open_volume(f"{web.url}/tomo.zarr", remote=there) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 20)), voxels)
    assert all(r.query == "signature=secret" and "authorization" in r.headers for r in web.requests)
    # Not for other hosts, nor is there anything to keep of an open address.
    assert not RemoteAddress.parse("https://elsewhere/a.zarr").with_secrets_of(options.secrets).query
    assert secrets_of(f"{web.url}/tomo.zarr") is None
    assert secrets_of("tomo.mrc") is None
    assert secrets_of("portal:8354") is None


def test_silence_is_waited_for_only_so_long(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etsam_zarr.remote.http_store._PATIENCE", (1, 0.2))
    web.fault = lambda key, nth: "stall" if key.endswith("0/0/0/0") and nth < 2 else None
    with open_volume(f"{web.url}/tomo.zarr", remote=FAST) as volume:
        volume.read(Span(0, 8))
    web.fault = lambda key, nth: "stall" if key.endswith("0/1/0/0") else None
    with (
        open_volume(f"{web.url}/tomo.zarr", remote=FAST) as volume,
        pytest.raises(RemoteError, match="takes too long to answer"),
    ):
        volume.read(Span(8, 16))
