"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal

# One thread per process, set before torch is imported: the models are small, tests run in several processes, and
# OpenMP teams that share cores spin against each other. Subprocesses of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import portal_stub
import pytest
import tiny
from etsam_zarr_cli.main import main

from etsam_zarr.model_config import BUNDLED_MODEL
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.phantom.store import write_phantom
from etsam_zarr.phantom.volume import PhantomSettings
from etsam_zarr.portal import query
from etsam_zarr.runstore import RunStore

# A shell lets what it starts in the background ignore Ctrl-C, which subprocesses inherit; tests send them one.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real tomograms; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("ETSAM_ZARR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real tomograms at {folder}: set ETSAM_ZARR_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture
def encoding_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets runs in this process encode ahead, whatever the machine; lists how many threads each such walk used."""
    import torch

    from etsam_zarr import desk
    from etsam_zarr.sam import propagation

    used = []

    class Noted(propagation.EncodedAhead):
        def __enter__(self) -> Noted:
            used.append(self._thread.submit(torch.get_num_threads).result())
            super().__enter__()
            return self

    monkeypatch.setattr(desk, "worth_encoding_ahead", lambda device: True)
    monkeypatch.setattr(propagation, "EncodedAhead", Noted)
    return used


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end undisturbed. Copy the store before changing anything in it."""

    source: Path
    voxels: tiny.Floats
    store: Path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run of the tiny tomogram with the options of ``tiny.OPTIONS``."""
    folder = tmp_path_factory.mktemp("finished")
    voxels = tiny.texture()
    source = tiny.write_tomogram(folder / "tomo_10A.mrc", voxels)
    assert main(["run", str(source), *tiny.OPTIONS]) == 0
    return FinishedRun(source, voxels, folder / "tomo_10A.etsam.zarr")


@pytest.fixture(scope="session")
def seeded_spec() -> ModelSpec:
    """The untrained model whose logits depend on its memory."""
    return choose_model("seeded-256")


@pytest.fixture(scope="session")
def seeded_predictor(seeded_spec: ModelSpec) -> Any:
    """Its predictor, with the weights of stage 1; nothing of a walk stays in it."""
    predictor = seeded_spec.build("cpu")
    seeded_spec.load(predictor, 1)
    return predictor


@pytest.fixture(scope="session")
def bundled_model() -> ModelSpec:
    """The trained model that comes with the package."""
    return choose_model(BUNDLED_MODEL)


@pytest.fixture(scope="session")
def small_phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated tomogram of 16 x 256 x 256 that no model was trained on, with its truth (5.8 %) as a label."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.zarr"
    return write_phantom(path, PhantomSettings((16, 256, 256), seed=800_007, snr=0.5))


@pytest.fixture
def no_etsam_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without ETSAM's weights."""
    monkeypatch.setenv("ETSAM_ZARR_WEIGHTS", str(tmp_path / "no-weights"))


@pytest.fixture
def run_store(tmp_path: Path) -> RunStore:
    """A finished run whose native logits are noise that knows something of membranes."""
    from made_run import make_run

    return make_run(tmp_path)


@pytest.fixture
def portal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[portal_stub.Stub]:
    """A CryoET Data Portal on this machine, which this process and its children ask."""
    with portal_stub.serving(tmp_path / "portal") as stub:
        monkeypatch.setenv(query.URL_VARIABLE, f"{stub.url}/graphql")
        # Waiting between attempts is not what is tested.
        monkeypatch.setattr(query, "_BACKOFF", 0.0)
        # An earlier portal may have had the same port.
        query.forget()
        yield stub
