"""The link that opens a run in neuroglancer, and what its sources answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from etsam_zarr_cli.main import main
from made_run import make_run

from etsam_zarr.runstore import RunStore
from etsam_zarr.viewing.neuroglancer import VIEWER, neuroglancer_link, neuroglancer_state
from etsam_zarr.viewing.server import RunServer

# neuroglancer, src/datasource/zarr/index.rst
READABLE = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"}


def fetch(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as response:
        return json.load(response)


def state_in(link: str) -> dict[str, Any]:
    assert link.startswith(f"{VIEWER}#!")
    state: dict[str, Any] = json.loads(unquote(link.removeprefix(f"{VIEWER}#!")))
    return state


def complete(store: RunStore) -> RunStore:
    assert main(["postprocess", str(store.path), "--min-slices", "4"]) == 0
    assert main(["label", str(store.path)]) == 0
    # The overview of the made run is empty.
    overview = zarr.open_array(store.path / "0", mode="r+")
    overview[:] = np.broadcast_to(np.arange(overview.shape[2], dtype=overview.dtype), overview.shape)
    return store


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_sources_answer_with_zarr_metadata(version: Any, tmp_path: Path) -> None:
    store = complete(make_run(tmp_path, version=version))
    with RunServer(store.path).running() as server:
        state = state_in(neuroglancer_link(neuroglancer_state(store, server.address)))
        kinds = {layer["name"]: layer["type"] for layer in state["layers"]}
        assert kinds == {
            "tomogram": "image", "membranes": "segmentation", "membranes_processed": "segmentation",
            "components": "segmentation",
        }  # fmt: skip
        for layer in state["layers"]:
            folder, suffix = layer["source"].split("|")
            assert folder.startswith(server.address + "/")
            assert folder.endswith("/")
            if version == "0.4":
                assert suffix == "zarr2:"
                multiscale = fetch(f"{folder}.zattrs")["multiscales"][0]
                array = fetch(f"{folder}{multiscale['datasets'][0]['path']}/.zarray")
                stored = np.dtype(array["dtype"]).name
                assert array["compressor"]["id"] == "blosc"
                assert not array["filters"]
            else:
                assert suffix == "zarr3:"
                multiscale = fetch(f"{folder}zarr.json")["attributes"]["ome"]["multiscales"][0]
                stored = fetch(f"{folder}{multiscale['datasets'][0]['path']}/zarr.json")["data_type"]
            assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
            assert stored in READABLE


def test_what_is_shown_first(run_store: RunStore) -> None:
    state = neuroglancer_state(complete(run_store), "http://127.0.0.1:1")
    # Panels span x and y first; metres.
    assert list(state["dimensions"]) == ["x", "y", "z"]
    sizes = [size for size, unit in state["dimensions"].values() if unit == "m"]
    assert sizes == pytest.approx([5e-10, 5e-10, 10e-10])
    # The middle of 36 x 40 x 24 voxels; y starts 100 angstrom, 20 voxels, further on.
    assert state["position"] == [18, 40, 12]
    tomogram, membranes, _, components = state["layers"]
    low, high = tomogram["shaderControls"]["normalized"]["range"]
    assert low < high
    assert membranes["segments"] == ["1"]
    assert [layer.get("visible", True) for layer in state["layers"]] == [True, False, False, True]
    assert "segments" not in components


def test_a_run_without_voxel_size_or_contrast(run_store: RunStore) -> None:
    run_store.revise(voxel_size=None)
    state = neuroglancer_state(run_store, "http://127.0.0.1:1")
    assert state["dimensions"]["z"] == [1.0, ""]
    assert "shaderControls" not in state["layers"][0]
    assert [layer["name"] for layer in state["layers"]] == ["tomogram", "membranes"]


def test_the_command_serves_until_it_is_interrupted(run_store: RunStore) -> None:
    command = [sys.executable, "-m", "etsam_zarr_cli.main", "view", str(run_store.path), "--neuroglancer"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        serving, link = process.stdout.readline(), process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", serving)
        assert address is not None
        source = state_in(link.removeprefix("link").strip())["layers"][1]["source"]
        assert source == f"{address[0]}labels/membranes/|zarr2:"
        assert "multiscales" in fetch(f"{source.split('|')[0]}.zattrs")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "stopped\n")


def test_the_browser_is_opened_on_request(run_store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("etsam_zarr_cli.view.wait_for_interrupt", interrupt)
    assert main(["view", str(run_store.path), "--neuroglancer", "--open"]) == 0
    assert [layer["name"] for layer in state_in(opened[0])["layers"]] == ["tomogram", "membranes"]


def test_a_taken_port_is_an_error(run_store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    with RunServer(run_store.path).running() as server:
        port = str(server.server_address[1])
        assert main(["view", str(run_store.path), "--neuroglancer", "--port", port]) == 1
    assert f"Port {port} cannot be used" in capsys.readouterr().err
