"""Whole runs on tomograms at an address: the result is that from the disk, and each chunk is fetched once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tiny
import zarr
from etsam_zarr_cli.amounts import bytes_text
from etsam_zarr_cli.main import main
from http_server import WebServer, serving
from portal_store import stored_bytes, write_portal_store

SHAPE = (18, 192, 256)
CHUNKS = (8, 128, 128)
CHUNK_COUNT = 3 * 2 * 2


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return tiny.texture(SHAPE)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Path:
    """A folder with a store of the portal's kind, and a local run of it."""
    folder = tmp_path_factory.mktemp("stored")
    write_portal_store(folder / "tomo.zarr", voxels, chunks=CHUNKS)
    assert main(["run", str(folder / "tomo.zarr"), *tiny.OPTIONS, "-o", str(folder / "local.etsam.zarr")]) == 0
    return folder


@pytest.fixture
def web(stored: Path) -> Iterator[WebServer]:
    with serving(stored) as server:
        yield server


def run(web: WebServer, store: Path, *more: str) -> int:
    return main(["run", f"{web.url}/tomo.zarr", *tiny.OPTIONS, "-o", str(store), *more])


def chunks(web: WebServer) -> Counter[str]:
    return Counter(request.key for request in web.chunk_requests() if request.method == "GET")


def test_each_chunk_is_fetched_once_in_all_and_the_result_is_that_of_the_local_run(
    web: WebServer, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(web, tmp_path / "run.etsam.zarr") == 0
    tiny.assert_same_results(tmp_path / "run.etsam.zarr", stored / "local.etsam.zarr")
    found = chunks(web)
    assert len(found) == CHUNK_COUNT
    assert set(found.values()) == {1}
    # All but metadata: chunks, and the samples of the digest.
    data = sum(request.sent for request in web.requests if request.key[-1].isdigit())
    assert data <= 1.05 * stored_bytes(stored / "tomo.zarr")
    printed = capsys.readouterr()
    assert f"{CHUNK_COUNT} chunks, as the server says; fetched once, kept in {tmp_path}" in printed.err
    (line,) = [line for line in printed.out.splitlines() if line.startswith("traffic")]
    assert line.endswith(f"read in {len(web.requests)} requests")
    # The scratch folder goes with the end of the run.
    assert [path.name for path in tmp_path.iterdir()] == ["run.etsam.zarr"]


@pytest.mark.parametrize(("cache", "passes"), [("memory", 1), ("none", 3)])
def test_other_caches_give_the_same(cache: str, passes: int, web: WebServer, stored: Path, tmp_path: Path) -> None:
    assert run(web, tmp_path / "run.etsam.zarr", "--cache", cache) == 0
    tiny.assert_same_results(tmp_path / "run.etsam.zarr", stored / "local.etsam.zarr")
    # Prompted slices are read before the walk begins, so with none a stage starts anew at the first layer.
    assert max(chunks(web).values()) <= passes + (2 if cache == "none" else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["run.etsam.zarr"]


def test_a_cache_that_was_named_stays_for_the_next_run(web: WebServer, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "kept"))
    assert run(web, tmp_path / "a.etsam.zarr", *cache) == 0
    web.forget()
    assert run(web, tmp_path / "b.etsam.zarr", *cache) == 0
    assert not chunks(web)


def test_a_region_is_a_run_of_its_own(
    web: WebServer, voxels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    region = voxels[1:15, 64:96, 10:60]
    write_portal_store(tmp_path / "region.zarr", np.ascontiguousarray(region), levels=1)
    assert main(["run", str(tmp_path / "region.zarr"), *tiny.OPTIONS]) == 0
    store = tmp_path / "roi.etsam.zarr"
    assert run(web, store, "--roi", "1:15,64:96,10:60") == 0
    tiny.assert_same_results(store, tmp_path / "region.etsam.zarr")
    asked = {request.key for request in web.requests if request.key[-1].isdigit()}
    assert asked == {f"tomo.zarr/0/{z}/0/0" for z in (0, 1)}
    record = json.loads((store / "run.json").read_text())
    assert record["roi"] == "1:15,64:96,10:60"
    assert record["origin"] == [10, 640, 100]
    # The same in angstrom goes on with it; another region is refused.
    assert run(web, store, "--roi-angstrom", "10:150,640:960,100:600") == 0
    assert "finished already" in capsys.readouterr().out
    assert run(web, store, "--roi", "1:15,64:96,10:61") == 1
    assert "roi (" in capsys.readouterr().err


def test_regions_of_local_volumes(voxels: np.ndarray, web: WebServer, tmp_path: Path) -> None:
    mrc = tiny.write_tomogram(tmp_path / "tomo.mrc", voxels)
    assert main(["run", str(mrc), *tiny.OPTIONS, "--roi", "1:15,64:96,10:60"]) == 0
    assert run(web, tmp_path / "roi.etsam.zarr", "--roi", "1:15,64:96,10:60") == 0
    tiny.assert_same_results(tmp_path / "tomo.etsam.zarr", tmp_path / "roi.etsam.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--roi", "0:19,0:9,0:9"], "goes to z = 19, and http"),
        (["--roi", "3:4,0:9,0:9"], "at least 2 slices"),
        (["--roi", "0:9,0:9,0:9", "--roi-angstrom", "0:9,0:9,0:9"], "Give one of them"),
    ],
)
def test_regions_that_cannot_be(
    options: list[str], message: str, web: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(web, tmp_path / "a.etsam.zarr", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_network_that_fails_for_good_says_how_to_go_on_and_then_goes_on(
    web: WebServer, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam_zarr.remote.store.RetryPolicy.wait", lambda policy, retry: 0.001)
    store = tmp_path / "run.etsam.zarr"
    web.fault = lambda key, nth: 503 if key.endswith("0/2/1/1") and nth > 1 else None
    assert run(web, store) == 1
    error = capsys.readouterr().err
    assert "chunk 0/2/1/1 cannot be read after 6 tries: the server answers 503 (not available now)" in error
    assert "give the same command again to go on from there" in error
    web.fault = lambda key, nth: None
    web.forget()
    assert run(web, store) == 0
    assert set(chunks(web)) == {"tomo.zarr/0/2/1/1"}
    tiny.assert_same_results(store, stored / "local.etsam.zarr")


@pytest.mark.parametrize("record", ["run.json", "stage1", "stage2"])
def test_killed_while_running_goes_on_with_what_was_fetched(
    record: str, web: WebServer, stored: Path, tmp_path: Path
) -> None:
    store = tmp_path / "run.etsam.zarr"
    # Slow enough to be killed in the middle of fetching.
    web.latency = 0.05 if record == "run.json" else 0
    program = "import sys; from etsam_zarr_cli.main import main; sys.exit(main())"
    command = [
        sys.executable, "-c", program, "run", f"{web.url}/tomo.zarr", *tiny.OPTIONS, "-o", str(store), "--threads", "1"
    ]  # fmt: skip
    awaited = store / record if record == "run.json" else store / "ledger" / record / "tile00000"
    with subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (awaited.exists() and (awaited.is_file() or any(awaited.glob("*.json")))):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = {path.name for path in (tmp_path / "run.etsam.zarr.cache").rglob("*.chunk")}
    web.forget()
    web.latency = 0
    subprocess.run(command, check=True, capture_output=True)
    # Threads may change the last bit, so the undisturbed run is one of the same command.
    again = [*command[:5], *command[5:-4], "-o", str(tmp_path / "undisturbed.etsam.zarr"), *command[-2:]]
    fetched_after_kill = {key.removeprefix("tomo.zarr/").replace("/", "%2F") + ".chunk" for key in chunks(web)}
    subprocess.run(again, check=True, capture_output=True)
    tiny.assert_same_results(store, tmp_path / "undisturbed.etsam.zarr")
    assert not fetched_after_kill & kept
    assert len(fetched_after_kill | kept) == CHUNK_COUNT
    if record != "run.json":
        assert len(kept) == CHUNK_COUNT


def test_secrets_stay_out_of_records_and_output(
    web: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam_zarr.remote.store.RetryPolicy.wait", lambda policy, retry: 0.001)
    address = web.url.replace("//", "//me:hush@") + "/tomo.zarr?token=sesame"
    store = tmp_path / "run.etsam.zarr"
    assert main(["-v", "run", address, *tiny.OPTIONS, "-o", str(store)]) == 0
    web.fault = lambda key, nth: 500
    assert main(["-v", "plan", address]) == 1
    printed = capfd.readouterr()
    written = [path.read_bytes().decode("latin1") for path in store.rglob("*.json")]
    for text in (printed.out, printed.err, *written):
        assert "sesame" not in text
        assert "hush" not in text
    assert json.loads((store / "run.json").read_text())["source"] == f"{web.url}/tomo.zarr"
    assert all(request.query == "token=sesame" for request in web.requests)


def test_convert_fetches_each_chunk_once_and_cleans_up(
    web: WebServer, voxels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", f"{web.url}/tomo.zarr", str(tmp_path / "a.zarr"), "--chunks", "4,32,32"]) == 0
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[...], voxels)
    assert set(chunks(web).values()) == {1}
    assert "traffic" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    region = ["--roi", "2:9,0:50,64:128", "--cache", "none"]
    assert main(["convert", f"{web.url}/tomo.zarr", str(tmp_path / "b.mrc"), *region]) == 0
    with mrcfile.open(tmp_path / "b.mrc") as file:
        np.testing.assert_array_equal(file.data, voxels[2:9, :50, 64:128])


def test_preview_and_evaluate_take_addresses(
    web: WebServer, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["preview", f"{web.url}/tomo.zarr", "-o", str(sheet), "--roi", "0:8,0:64,0:64", "--panel", "64"]) == 0
    assert sheet.stat().st_size > 1000
    assert {request.key for request in web.requests if request.key[-1].isdigit()} == {"tomo.zarr/0/0/0/0"}
    mask = web.url + "/local.etsam.zarr/labels/membranes"
    capsys.readouterr()
    assert main(["evaluate", str(stored / "local.etsam.zarr"), mask, "--no-curve", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["masks"][0]["dice"] == 1
    assert main(["evaluate", mask, mask, "--json", "--roi", "0:5,0:9,0:9"]) == 0


def test_plan_says_what_would_be_read_and_reads_none_of_it(
    web: WebServer, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", f"{web.url}/tomo.zarr", *tiny.OPTIONS, "-o", str(tmp_path / "a.etsam.zarr")]) == 0
    size = bytes_text(stored_bytes(stored / "tomo.zarr"))
    assert f"traffic    {size} in {CHUNK_COUNT} chunks, as the server says" in capsys.readouterr().out
    assert not chunks(web)
    assert not list(tmp_path.iterdir())
