"""Stage 2 a slab behind stage 1: equal to one stage after the other, to the last bit, whoever is killed whenever.

Compared: logits, object scores, pointers and mask. That nothing is computed twice: records of finished slabs are never
written again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
import tiny
import torch
import zarr
from etsam_zarr_cli.main import main

from etsam_zarr import follow
from etsam_zarr.config import resolve_settings
from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import Event, Notice, OnEvent, ignore
from etsam_zarr.ledger import Ledger, assumption_of
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.pipeline import run
from etsam_zarr.plan import plan_run
from etsam_zarr.predictors import OF_PROCESS, Predictors
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runtime import J, NextJobs, R, Runtime, Tally, Work
from etsam_zarr.sources import open_volume
from etsam_zarr.status import read_status
from etsam_zarr.workers.cluster import local_cluster
from etsam_zarr.workers.runtime import DaskRuntime

SHAPE = (10, 40, 48)
SLAB = 1
OPTIONS = (
    "--model", "seeded-256", "--profile", "etsam-v2", "--precision", "float32", "--slab", str(SLAB), "--threads", "1",
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tomogram(tmp_path_factory.mktemp("source") / "tomo.mrc", tiny.texture(SHAPE))


@dataclass(frozen=True)
class Model:
    """A model, and what stage 1 followed by stage 2 makes of the tomogram in one process."""

    spec: ModelSpec
    wanted: Path
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def loud(source: Path, tmp_path_factory: pytest.TempPathFactory, seeded_spec: ModelSpec) -> Model:
    """Its stage 1 has logits above 5, as trained models have: the assumption holds."""
    store = tmp_path_factory.mktemp("loud") / "run.etsam.zarr"
    run_with(None, source, store, seeded_spec)
    assert bounds_of(store) == (-5, 5)
    return Model(seeded_spec, store, OPTIONS)


@pytest.fixture(scope="module")
def quiet(source: Path, tmp_path_factory: pytest.TempPathFactory, seeded_predictor: Any) -> Model:
    """Its stage 1 has no logit above 5: the assumption does not hold."""
    folder = tmp_path_factory.mktemp("quiet")
    weights = {name: tensor.clone() for name, tensor in seeded_predictor.state_dict().items()}
    for name, tensor in weights.items():
        if "output_hypernetworks_mlps" in name and ".layers.2." in name:
            tensor.mul_(0.2)
    torch.save({"model": weights}, folder / "weights.pt")
    given = ("--stage1-checkpoint", str(folder / "weights.pt"), "--stage2-checkpoint", str(folder / "weights.pt"))
    spec = choose_model("seeded-256", stage1_checkpoint=Path(given[1]), stage2_checkpoint=Path(given[3]))
    run_with(None, source, folder / "run.etsam.zarr", spec)
    least, greatest = bounds_of(folder / "run.etsam.zarr")
    assert least == -5
    assert 0 < greatest < 4.5
    return Model(spec, folder / "run.etsam.zarr", (*OPTIONS, *given))


def run_with(
    runtime: Runtime | None, source: Path, store: Path, spec: ModelSpec, on_event: OnEvent = ignore, *,
    follow: bool = True, **settings: Any,
) -> None:  # fmt: skip
    chosen = resolve_settings("etsam-v2", **settings)
    with open_volume(source) as volume:
        plan = plan_run(volume.info.shape, chosen, spec.config, voxel_bytes=4, slab=SLAB)
        request = RunRequest(plan, chosen, spec, "float32", torch.device("cpu"), follow=follow)
        run(volume, store, request, runtime=runtime, on_event=on_event)


def bounds_of(store: Path) -> tuple[float, float]:
    ((least, greatest),) = (Ledger(store / "ledger").finished("stage1") or {})["bounds"]
    return least, greatest


def records(store: Path, stage: int | str = "*") -> dict[Path, int]:
    """The records of finished slabs, with the time they were written."""
    return {path: path.stat().st_mtime_ns for path in store.glob(f"ledger/stage{stage}/*/*/*/[0-9]*-[0-9]*.json")}


def assert_overlap(store: Path) -> None:
    """Stage 2 had begun to store before stage 1 had ended."""
    assert min(records(store, 2).values()) < max(records(store, 1).values())


class TwoThreads:
    """Does two jobs at the same time in this process, with a model each: what workers do, without their start."""

    workers = 2
    in_process = False

    def __init__(self, before: Callable[[Any], None] = lambda job: None) -> None:
        self.names: list[str] = []
        self._before = before
        self._models: SimpleQueue[Predictors] = SimpleQueue()
        for _ in range(2):
            self._models.put(Predictors())

    def execute(self, next_jobs: NextJobs[J], work: Work[J, R], *, on_event: OnEvent) -> list[R]:
        tally, results, flights = Tally(), [], dict[str, Future[R]]()
        with ThreadPoolExecutor(2) as pool:
            while True:
                while len(flights) < 2 and (job := tally.next_of(next_jobs(), under_way=flights)) is not None:
                    self.names.append(job.name)
                    flights[job.name] = pool.submit(self._do, job, work, on_event)
                if not flights:
                    break
                wait(flights.values(), timeout=0.05, return_when=FIRST_COMPLETED)
                for name in [name for name, future in flights.items() if future.done()]:
                    results.append(flights.pop(name).result())
                    tally.done.add(name)
        tally.conclude()
        return results

    def _do(self, job: Any, work: Any, on_event: OnEvent) -> Any:
        self._before(job)
        models = self._models.get()
        try:
            return work(job, on_event, predictors=models)
        finally:
            self._models.put(models)


@pytest.mark.parametrize("prompt", ["zero", pytest.param("grid_zero", marks=pytest.mark.slow)])
def test_the_same_bits_as_one_stage_after_the_other(
    prompt: str, source: Path, tmp_path: Path, loud: Model
) -> None:  # fmt: skip
    wanted = loud.wanted
    if prompt != "zero":
        wanted = tmp_path / "wanted.etsam.zarr"
        run_with(None, source, wanted, loud.spec, stage2_prompt=prompt)
    store, events = tmp_path / "run.etsam.zarr", list[Event]()
    run_with(TwoThreads(), source, store, loud.spec, events.append, stage2_prompt=prompt)
    tiny.assert_same_results(store, wanted)
    assert_overlap(store)
    assert len(records(store)) == 2 * SHAPE[0]
    assert not any(isinstance(event, Notice) for event in events)
    assert read_status(store).redone is None
    assert Ledger(store / "ledger").finished(assumption_of(0)) == {"minimum": -5.0, "maximum": 5.0}


def test_stage_2_is_computed_again_where_stage_1_ended_otherwise(source: Path, tmp_path: Path, quiet: Model) -> None:
    store, events = tmp_path / "run.etsam.zarr", list[Event]()
    runtime = TwoThreads()
    run_with(runtime, source, store, quiet.spec, events.append)
    tiny.assert_same_results(store, quiet.wanted)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.message.startswith("Stage 1's logits, clipped to -5..5, ended within -5..")
    redone = read_status(store).redone or {}
    # All but the last, for which stage 1 must have ended.
    assert 0 < redone["slices"] < SHAPE[0]
    assert redone["assumed"] == {"minimum": -5.0, "maximum": 5.0}
    assert (redone["found"]["minimum"], redone["found"]["maximum"]) == bounds_of(store)
    assert runtime.names.count("stage 2, tile 0, prompts") == 2
    assert Ledger(store / "ledger").finished(assumption_of(0)) is None


class Stop(Exception):
    """Ends a run in its midst."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "redone"), [("loud", False), ("quiet", True)])
def test_one_process_takes_up_what_two_workers_left(
    kind: str, redone: bool, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(kind)
    store = tmp_path / "run.etsam.zarr"

    def stop_in_time(event: Event) -> None:
        if len(records(store, 2)) >= 3:
            raise Stop

    with pytest.raises(Stop):
        run_with(TwoThreads(), source, store, model.spec, stop_in_time)
    before = records(store)
    run_with(None, source, store, model.spec)
    tiny.assert_same_results(store, model.wanted)
    assert (read_status(store).redone is not None) == redone
    kept = {path: written for path, written in before.items() if not redone or "stage1" in path.parts}
    assert {path: records(store)[path] for path in kept} == kept


@pytest.mark.slow
def test_a_damaged_stage_1_takes_stage_2_along(source: Path, tmp_path: Path, loud: Model) -> None:
    store, events = tmp_path / "run.etsam.zarr", list[Event]()

    def stop_in_time(event: Event) -> None:
        if len(records(store, 2)) >= 2:
            raise Stop

    with pytest.raises(Stop):
        run_with(TwoThreads(), source, store, loud.spec, stop_in_time)
    (Ledger(store / "ledger")).reopen("stage1")
    zarr.open_array(store / "stages" / "1" / "logits")[0, 0] = 3.0
    run_with(TwoThreads(), source, store, loud.spec, events.append)
    told = [event.message for event in events if isinstance(event, Notice)]
    assert told[0] == "Stage 1 is computed again from its start. Slice 0 of stage 1 is damaged."
    assert told[1].startswith("Stage 2, which had followed stage 1, is computed again")
    tiny.assert_same_results(store, loud.wanted)


@pytest.mark.slow
def test_stage_2_that_was_begun_without_the_assumption_is_not_mixed_with_it(
    source: Path, tmp_path: Path, quiet: Model
) -> None:
    """Stage 1's end was noted, stage 2 begun with the true bounds, and then the note was lost."""
    store = tmp_path / "run.etsam.zarr"

    def stop_in_time(event: Event) -> None:
        if len(records(store, 2)) >= 2:
            raise Stop

    with pytest.raises(Stop):
        run_with(None, source, store, quiet.spec, stop_in_time)
    before = records(store)
    Ledger(store / "ledger").reopen("stage1")
    run_with(TwoThreads(), source, store, quiet.spec)
    tiny.assert_same_results(store, quiet.wanted)
    assert {path: records(store)[path] for path in before} == before


@pytest.mark.slow
def test_it_is_not_done_unless_wanted(source: Path, tmp_path: Path, loud: Model) -> None:
    store = tmp_path / "run.etsam.zarr"
    run_with(TwoThreads(), source, store, loud.spec, follow=False)
    assert min(records(store, 2).values()) > max(records(store, 1).values())
    assert Ledger(store / "ledger").finished(assumption_of(0)) is None
    tiny.assert_same_results(store, loud.wanted)


def test_a_slice_of_stage_1_that_is_not_as_noted_is_not_built_on(
    source: Path, tmp_path: Path, loud: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.3)
    store = tmp_path / "run.etsam.zarr"

    def damage(job: Any) -> None:
        if job.block.stage == 2 and job.work == "window":
            zarr.open_array(store / "stages" / "1" / "object_score")[0, job.begins] = 77.0

    with pytest.raises(RunStoreError, match=r"Slices 0:\d+ of stage 1 are not in the run store as they were noted"):
        run_with(TwoThreads(damage), source, store, loud.spec)
    assert records(store, 2) == {}


@pytest.mark.slow
def test_who_waits_in_vain_gives_the_worker_back(
    source: Path, tmp_path: Path, loud: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 stands still until the job of stage 2 has ended, as where it waits for just that worker."""
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.3)
    store, runtime = tmp_path / "run.etsam.zarr", TwoThreads()
    stood = threading.Event()

    def stand_still(event: Event) -> None:
        if getattr(event, "name", "") != "stage 1" or stood.is_set() or len(records(store, 1)) < 4:
            return
        stood.set()
        deadline = time.monotonic() + 60
        while len(records(store, 2)) < len(records(store, 1)) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1)

    run_with(runtime, source, store, loud.spec, stand_still)
    assert runtime.names.count("stage 2, tile 0") >= 2
    tiny.assert_same_results(store, loud.wanted)
    assert len(records(store)) == 2 * SHAPE[0]


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[threading.Thread]:
    """Do something in a thread, and raise here what it raises."""
    problems: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as problem:  # noqa: BLE001 - raised in the test
            problems.append(problem)

    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
    if problems:
        raise problems[0]


def _warm(spec: ModelSpec, stage: Any) -> int:
    """Build the model, so that no worker is behind for that; return the process."""
    OF_PROCESS.get(spec, stage, "cpu")
    return os.getpid()


def test_workers_of_either_stage_are_killed(source: Path, tmp_path: Path, loud: Model) -> None:
    store = tmp_path / "run.etsam.zarr"
    with local_cluster(["cpu"] * 2, threads=1) as client:
        client.run(_warm, loud.spec, 1)
        processes = client.run(os.getpid)

        def process_of(stage: int) -> int:
            (where,) = (
                address
                for address, names in client.processing().items()
                if any(name.startswith(f"stage {stage}, tile 0 ") for name in names)
            )
            return processes[where]

        with in_background(lambda: run_with(DaskRuntime(client), source, store, loud.spec)) as thread:
            wait_for(lambda: len(records(store, 1)) >= 3, thread.is_alive)
            first = process_of(1)
            os.kill(first, signal.SIGSTOP)  # so that it does not end before the other is killed
            reached = len(records(store, 1))
            assert reached < SHAPE[0]
            wait_for(lambda: len(records(store, 2)) >= 1, thread.is_alive)
            os.kill(process_of(2), signal.SIGKILL)
            os.kill(first, signal.SIGCONT)
            wait_for(lambda: len(records(store, 1)) > reached, thread.is_alive)
            os.kill(first, signal.SIGKILL)
            before = records(store)
            assert len(records(store, 1)) < SHAPE[0]
    after = records(store)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * SHAPE[0]
    tiny.assert_same_results(store, loud.wanted)


def wait_for(happened: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
    """Return as soon as something has happened in a run that goes on."""
    deadline = time.monotonic() + 300
    while not happened():
        assert goes_on()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begin(source: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    """Begin a run in a process of its own."""
    command = [sys.executable, "-m", "etsam_zarr_cli.main", "run", str(source), "-o", str(store), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_run_is_killed(source: Path, tmp_path: Path, loud: Model) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = begin(source, store, *loud.options, "--workers", "2")
    wait_for(lambda: bool(records(store, 2)), lambda: process.poll() is None)
    process.kill()
    _, told = process.communicate()
    assert "2 on cpu, cpu: stage 2 follows stage 1 a slab behind, since its prompt zero needs no later" in told
    before = records(store)
    assert main(["run", str(source), *loud.options, "-o", str(store)]) == 0
    after = records(store)
    assert {path: after[path] for path in before} == before
    assert len(after) == 2 * SHAPE[0]
    tiny.assert_same_results(store, loud.wanted)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("victim", ["run", "worker"])
@pytest.mark.parametrize("kind", ["loud", "quiet"])
def test_killed_at_ten_random_moments(
    kind: str, victim: str, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(kind)
    store, runs = tmp_path / "0.etsam.zarr", 0
    for moment in range(10):
        chance, before = random.Random(moment), records(store)
        process = begin(source, store, *model.options, "--workers", "2")
        slabs = len(before) + chance.randrange(6)
        while process.poll() is None and len(records(store)) < slabs:
            time.sleep(0.005)
        time.sleep(chance.random() / 2)
        workers = [] if process.poll() is not None else psutil.Process(process.pid).children()
        workers = [child for child in workers if "spawn_main" in " ".join(child.cmdline())]
        if victim == "worker" and workers:
            chance.choice(workers).kill()
            _, told = process.communicate(timeout=900)
            assert process.returncode == 0, told
        process.kill()
        process.communicate()
        after = records(store)
        assert {path: after.get(path) for path in before if kind == "loud" or "stage1" in path.parts} == {
            path: written for path, written in before.items() if kind == "loud" or "stage1" in path.parts
        }
        if store.exists() and read_status(store).finished:
            tiny.assert_same_results(store, model.wanted)
            runs += 1
            store = tmp_path / f"{runs}.etsam.zarr"
    if store.exists():
        assert main(["run", str(source), *model.options, "-o", str(store), "--workers", "2"]) == 0
        tiny.assert_same_results(store, model.wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--workers 2", "2 on cpu, cpu: stage 2 follows stage 1 a slab behind, since its prompt zero needs no later"),
        ("--workers 3", "stage 2 follows stage 1 a slab behind, since its prompt zero needs no later slice of stage 1; "
         "a third has nothing to do: --mode parallel"),
        ("--workers 2 --no-follow", "so one worker computes and the others stand by; stage 2 does not follow stage 1 a "
         "slab behind, since --no-follow is given"),
        ("--workers 1", "since that takes two workers"),
        ("--workers 2 --profile etsam-v1 --grid-interval 4", "since its prompt stage1_partial lies on 3 slices of the "
         "whole depth"),
        ("--workers 2 --profile etsam-v1", "since its prompt stage1_partial needs no later slice"),  # only slice 0
        ("--workers 2 --mode parallel --windows 1", "since windows, which are computed at the same time, may change"),
    ],
)  # fmt: skip
def test_plan_says_what_is_chosen_and_why(
    options: str, said: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(source), *OPTIONS, *options.split()]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("workers "))
    assert said in line


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", "takes two workers"),
        ("--workers 2 --stage2-prompt grid --grid-interval 4", "its prompt grid lies on 3 slices of the whole depth"),
        ("--workers 2 --mode parallel", "windows, which are computed at the same time"),
        ("--workers 2 --tiling quadrants", "it needs all tiles of a slice"),
    ],
)
def test_follow_is_refused_where_it_cannot_be(
    command: str, options: str, reason: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [command, str(source), *OPTIONS, "-o", str(tmp_path / "run.etsam.zarr"), "--follow", *options.split()]
    assert main(given) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: Stage 2 cannot follow stage 1 a slab behind, since ")
    assert reason in error
    assert error.endswith("Leave out --follow.")
    assert not (tmp_path / "run.etsam.zarr").exists()
