"""A run that is stopped anywhere goes on and ends with exactly what an undisturbed run ends with.

Compared: every array of the store, to the last bit (logits, object scores and pointers, masks, pyramid levels).
Three sets of settings with the untrained model on noise, and the bundled model with its own on a phantom.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
import zarr
from killing import kill_when

from etsam_zarr.bundled import BUNDLED_SETTINGS
from etsam_zarr.config import Settings, resolve_settings
from etsam_zarr.events import Advanced, Event, Notice, OnEvent, Started, ignore
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.pipeline import run
from etsam_zarr.plan import plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.sources import open_volume

SHAPE = (14, 30, 41)
SLAB = 4
BOUNDARIES = [4, 8, 12]
# Prompted slices inside slabs and at their ends, and backward predictions that reach over slab boundaries.
SETTINGS = {
    "etsam-v1": resolve_settings("etsam-v1", grid_interval=5),
    "etsam-v2": resolve_settings("etsam-v2"),
    "predicted": resolve_settings("etsam-v1", grid_interval=5, prompted_slices="predict"),
    "bundled": resolve_settings(model_settings=BUNDLED_SETTINGS, grid_interval=5),
}
CASES = [
    *itertools.product(["etsam-v1", "etsam-v2", "predicted"], [1, 2], BOUNDARIES),
    ("bundled", 1, 8),
    ("bundled", 2, 4),
]


class Stop(Exception):
    """What a test stops a run with."""


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return choose_model("seeded-256")


@pytest.fixture(scope="module")
def volume_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("volume") / "tomo.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
        mrc.voxel_size = 10.0
    return path


@dataclass(frozen=True)
class Case:
    """What is run."""

    spec: ModelSpec
    volume: Path
    settings: Settings


@pytest.fixture(scope="module")
def case_of(request: pytest.FixtureRequest) -> Callable[[str], Case]:
    """Model, volume and settings by the name of the settings."""

    def case(name: str) -> Case:
        model, volume = ("bundled_model", "small_phantom") if name == "bundled" else ("spec", "volume_path")
        return Case(request.getfixturevalue(model), request.getfixturevalue(volume), SETTINGS[name])

    return case


@pytest.fixture(scope="module")
def undisturbed(
    case_of: Callable[[str], Case], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """All arrays of an undisturbed run, by the name of its settings."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def contents(name: str) -> dict[str, Any]:
        case, store = case_of(name), folder / f"{name}.etsam.zarr"
        stream(case.volume, store, case.spec, case.settings)
        return arrays_of(store)

    return contents


def stream(
    path: Path, destination: Path, spec: ModelSpec, settings: Settings, *, on_event: OnEvent = ignore, slab: int = SLAB
) -> None:
    with open_volume(path) as volume:
        plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4, slab=slab)
        request = RunRequest(plan, settings, spec, "float32", torch.device("cpu"))
        run(volume, destination, request, on_event=on_event)


def arrays_of(store: Path) -> dict[str, np.ndarray]:
    """All arrays of a store by path."""
    metadata = [path.parent for path in store.rglob(".zarray")]
    return {str(path.relative_to(store)): np.asarray(zarr.open_array(path, mode="r")[...]) for path in metadata}


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    assert "stages/2/logits" in got
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def stop_after(stage: int, slices: int) -> OnEvent:
    """Listen until a stage has advanced by so many slices, then raise."""
    advanced = 0

    def listen(event: Event) -> None:
        nonlocal advanced
        if isinstance(event, Advanced) and event.name == f"stage {stage}":
            advanced += event.count
            if advanced == slices:
                raise Stop

    return listen


@pytest.mark.parametrize(("name", "stage", "boundary"), CASES)
def test_stopped_at_a_slab_boundary(
    name: str, stage: int, boundary: int, case_of: Callable[[str], Case], tmp_path: Path,
    undisturbed: Callable[[str], dict[str, Any]],
) -> None:  # fmt: skip
    case, store = case_of(name), tmp_path / "run.etsam.zarr"
    with pytest.raises(Stop):
        stream(case.volume, store, case.spec, case.settings, on_event=stop_after(stage, boundary + 1))
    begun: dict[str, int] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Started):
            begun[event.name] = event.done
        assert not (isinstance(event, Notice) and event.warning), event.message

    stream(case.volume, store, case.spec, case.settings, on_event=listen)
    # The finished slabs were not computed again.
    assert begun[f"stage {stage}"] == boundary
    assert_same(arrays_of(store), undisturbed(name))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("stage", [1, 2])
def test_stopped_while_the_next_slice_is_encoded(
    stage: int, boundary: int, case_of: Callable[[str], Case], tmp_path: Path, encoding_ahead: list[int],
    undisturbed: Callable[[str], dict[str, Any]],
) -> None:  # fmt: skip
    """Stopped and continued with an image under way in its own thread, the run ends as one without such a thread."""
    begun = len(encoding_ahead)
    test_stopped_at_a_slab_boundary("predicted", stage, boundary, case_of, tmp_path, undisturbed)
    assert len(encoding_ahead) - begun >= 3


def test_another_slab_goes_on(
    spec: ModelSpec, volume_path: Path, tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    store = tmp_path / "run.etsam.zarr"
    with pytest.raises(Stop):
        stream(volume_path, store, spec, SETTINGS["etsam-v1"], on_event=stop_after(1, 6), slab=3)
    stream(volume_path, store, spec, SETTINGS["etsam-v1"], slab=100)
    assert_same(arrays_of(store), undisturbed("etsam-v1"))


@pytest.mark.parametrize("damage", ["logits", "state", "conditioning"])
def test_damage_is_noticed_and_computed_again(
    damage: str, spec: ModelSpec, volume_path: Path, tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    store = tmp_path / "run.etsam.zarr"
    with pytest.raises(Stop):
        stream(volume_path, store, spec, SETTINGS["etsam-v2"], on_event=stop_after(1, 9))
    if damage == "logits":
        logits = zarr.open_array(store / "stages" / "1" / "logits", mode="r+")
        logits[0, 2, 5, 5] = 1.25
    elif damage == "state":
        (state,) = (store / "state" / "stage1").rglob("recent-*.safetensors")
        state.write_bytes(state.read_bytes()[:-100])
    else:
        (state,) = (store / "state" / "stage1").rglob("conditioning.safetensors")
        state.unlink()
    warnings: list[str] = []
    stream(
        volume_path, store, spec, SETTINGS["etsam-v2"],
        on_event=lambda event: warnings.append(event.message) if isinstance(event, Notice) else None,
    )  # fmt: skip
    assert len(warnings) == 1
    assert "computed again" in warnings[0]
    assert_same(arrays_of(store), undisturbed("etsam-v2"))


@pytest.mark.parametrize("name", ["etsam-v1", "etsam-v2"])
@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_damage_of_a_finished_stage_1_is_noticed_before_stage_2_goes_on(
    damage: str, name: str, case_of: Callable[[str], Case], tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    case, store = case_of(name), tmp_path / "run.etsam.zarr"
    with pytest.raises(Stop):
        stream(case.volume, store, case.spec, case.settings, on_event=stop_after(2, 6))
    chunk = store / "stages" / "1" / "logits" / "0" / "0" / "0" / "0"
    if damage == "lost":
        chunk.unlink()  # Zarr takes a chunk that is not there for zeros
    else:
        zarr.open_array(store / "stages" / "1" / "logits", mode="r+")[0, 9, 5, 5] = 1.25
    events: list[Event] = []
    stream(case.volume, store, case.spec, case.settings, on_event=events.append)
    told = [event.message for event in events if isinstance(event, Notice)]
    slice_ = 0 if damage == "lost" else 9
    assert told[0] == f"Stage 1 is computed again from its start. Slice {slice_} of stage 1 is damaged."
    assert_same(arrays_of(store), undisturbed(name))


def command(volume: Path, store: Path) -> list[str]:
    program = "import sys; from etsam_zarr_cli.main import main; sys.exit(main())"
    return [
        sys.executable, "-c", program, "run", str(volume), "-o", str(store), "--model", "seeded-256",
        "--precision", "float32", "--grid-interval", "5", "--slab", str(SLAB), "--threads", "1",
    ]  # fmt: skip


def killed_run_ends_the_same(volume: Path, store: Path, wanted: dict[str, Any], records: list[Path]) -> None:
    """Kill a run at each of the records in turn, then let it end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for record in records:
        with subprocess.Popen(command(volume, store), env=environment, stderr=subprocess.DEVNULL) as process:
            kill_when(process, store / record)
    subprocess.run(command(volume, store), check=True, env=environment, capture_output=True)
    assert_same(arrays_of(store), wanted)


@pytest.fixture
def wanted(volume_path: Path, tmp_path: Path) -> dict[str, Any]:
    """The store of an undisturbed run of the same command (threads may change the last bit)."""
    store = tmp_path / "undisturbed.etsam.zarr"
    subprocess.run(command(volume_path, store), check=True, capture_output=True)
    return arrays_of(store)


def slab_record(stage: int, start: int, stop: int) -> Path:
    name = f"{start:07d}-{stop:07d}.json"
    return Path("ledger") / f"stage{stage}" / "tile00000" / "window00000" / "generation000" / name


def test_killed_once_in_each_stage(volume_path: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    records = [slab_record(1, 4, 8), slab_record(2, 0, 4)]
    killed_run_ends_the_same(volume_path, tmp_path / "run.etsam.zarr", wanted, records)


@pytest.mark.slow
def test_killed_at_every_slab(volume_path: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    spans = [(0, 4), (4, 8), (8, 12), (12, 14)]
    records = [
        Path("run.json"),
        Path("ledger/intensity.json"),
        *(slab_record(stage, *span) for stage in (1, 2) for span in spans),
        Path("labels/membranes/0/.zarray"),
    ]
    killed_run_ends_the_same(volume_path, tmp_path / "run.etsam.zarr", wanted, records)
