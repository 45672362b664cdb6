"""Tiled runs with workers: equal to a run in one process, to the last bit, whoever is killed whenever.

Compared: every array of the store. That nothing is computed twice: records of finished slabs are never written again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny
import torch
import zarr
from dask_cluster import Cluster
from etsam_zarr_cli.main import main
from killing import kept, records, still_running_at_a_random_moment

from etsam_zarr.config import resolve_settings
from etsam_zarr.events import Advanced, Event, Notice, OnEvent, ignore
from etsam_zarr.geometry import Span
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.pipeline import run
from etsam_zarr.plan import plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runtime import J, NextJobs, R, Runtime, SerialRuntime, Work
from etsam_zarr.sam.propagation import Propagation
from etsam_zarr.sources import open_volume
from etsam_zarr.workers.cluster import ALLOWED_FAILURES, local_cluster
from etsam_zarr.workers.runtime import DaskRuntime

# Four tiles, two slabs each.
SHAPE = (4, 300, 420)
SLAB = 2
SLABS = 2 * 4 * 2
OPTIONS = (
    "--model", "seeded-256", "--precision", "float32", "--grid-interval", "3", "--slab", str(SLAB), "--overlap", "32",
    "--threads", "1", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tomogram(tmp_path_factory.mktemp("source") / "tomo.mrc", tiny.texture(SHAPE))


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run in one process leaves."""
    store = tmp_path_factory.mktemp("wanted") / "run.etsam.zarr"
    assert main(["run", str(source), *OPTIONS, "-o", str(store)]) == 0
    return arrays_of(store)


def arrays_of(store: Path) -> dict[str, Any]:
    found = [path.parent for path in store.rglob(".zarray")]
    return {str(path.relative_to(store)): np.asarray(zarr.open_array(path, mode="r")[...]) for path in found}


def assert_same(store: Path, wanted: dict[str, Any]) -> None:
    got = arrays_of(store)
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def begin_command(source: Path, store: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "etsam_zarr_cli.main", "run", str(source), *OPTIONS, "-o", str(store), *options]


def begin(source: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    """Begin a run in a process of its own."""
    return subprocess.Popen(
        begin_command(source, store, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_slabs(process: subprocess.Popen[str], store: Path, count: int) -> None:
    """Return as soon as so many slabs are noted."""
    deadline = time.monotonic() + 300
    while len(list((store / "ledger").rglob("[0-9]*-[0-9]*.json"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextlib.contextmanager
def stopped_within_a_block(cluster: Cluster, process: subprocess.Popen[str], store: Path) -> Iterator[None]:
    """Hold the cluster's only worker between the two slabs of a block, so that for sure one is under way."""
    wait_for_slabs(process, store, 1)
    (nanny,) = cluster.workers
    workers = psutil.Process(nanny.pid).children(recursive=True)
    try:
        for attempt in itertools.count(1):
            for worker in workers:
                worker.suspend()
            if len(records(store)) % 2:
                break
            assert attempt < 100
            for worker in workers:
                worker.resume()
            time.sleep(0.05)
        yield
    finally:
        for worker in workers:
            worker.resume()


def finish(source: Path, store: Path, wanted: dict[str, Any], *options: str) -> None:
    """Give the command again: it computes what is missing, and nothing else."""
    before = records(store)
    assert main(["run", str(source), *OPTIONS, "-o", str(store), *options]) == 0
    assert len(kept(before, store)) == SLABS
    assert_same(store, wanted)


class Shuffled(SerialRuntime):
    """Takes jobs in any order."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.order: list[str] = []

    def execute(self, next_jobs: NextJobs[J], work: Work[J, R], *, on_event: OnEvent) -> list[R]:
        def shuffled() -> Sequence[J]:
            jobs = list(next_jobs())
            self._random.shuffle(jobs)
            self.order += [job.name for job in jobs[:1]]
            return jobs

        return super().execute(shuffled, work, on_event=on_event)


def run_with(
    runtime: Runtime, source: Path, store: Path, spec: ModelSpec, on_event: OnEvent = ignore
) -> None:  # fmt: skip
    settings = resolve_settings("etsam-v1", grid_interval=3, overlap=32)
    with open_volume(source) as volume:
        plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4, slab=SLAB)
        request = RunRequest(plan, settings, spec, "float32", torch.device("cpu"))
        run(volume, store, request, runtime=runtime, on_event=on_event)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_any_order_of_blocks(
    seed: int, source: Path, tmp_path: Path, seeded_spec: ModelSpec, wanted: dict[str, Any]
) -> None:
    runtime = Shuffled(seed)
    run_with(runtime, source, tmp_path / "run.etsam.zarr", seeded_spec)
    assert runtime.order != sorted(runtime.order)
    assert_same(tmp_path / "run.etsam.zarr", wanted)


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))])
def test_any_number_of_workers(
    count: int, source: Path, tmp_path: Path, seeded_spec: ModelSpec, wanted: dict[str, Any]
) -> None:
    events: list[Event] = []
    with local_cluster(["cpu"] * count, threads=1) as client:
        run_with(DaskRuntime(client), source, tmp_path / "run.etsam.zarr", seeded_spec, events.append)
    assert_same(tmp_path / "run.etsam.zarr", wanted)
    told = sum(event.count for event in events if isinstance(event, Advanced) and event.name.startswith("stage"))
    assert told == 2 * 4 * SHAPE[0]


def test_a_killed_worker_does_not_stop_the_run(source: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = begin(source, store, "--workers", "2")
    wait_for_slabs(process, store, 3)
    before = records(store)
    workers = workers_of(process)
    assert len(workers) == 2
    workers[0].kill()
    # Meanwhile nobody else gets in.
    assert main(["run", str(source), *OPTIONS, "-o", str(store)]) == 1
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "2 on cpu, cpu: 4 tiles are independent and computed at the same time" in error
    assert "dashboard http://127.0.0.1:" in error
    assert "of 2 workers" in out
    assert "Traceback" not in error
    after = records(store)
    assert {path: after[path] for path in before} == before
    assert_same(store, wanted)


def test_a_killed_run_takes_its_workers_along_and_goes_on(source: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = begin(source, store, "--workers", "2")
    wait_for_slabs(process, store, 3)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2
    assert not alive
    finish(source, store, wanted, "--workers", "2")


def test_ctrl_c_ends_the_workers(source: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = begin(source, store, "--workers", "2")
    wait_for_slabs(process, store, 1)
    workers = workers_of(process)
    # As a terminal does: to all of them.
    for victim in (*workers, psutil.Process(process.pid)):
        victim.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("Interrupted. What was finished is on disk")
    assert not any(worker.is_running() for worker in workers)
    finish(source, store, wanted)


def test_the_scheduler_of_a_cluster_is_killed_then_the_run_itself(
    source: Path, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    store = tmp_path / "run.etsam.zarr"
    with Cluster(tmp_path) as cluster:
        process = begin(source, store, "--scheduler", str(cluster.file))
        with stopped_within_a_block(cluster, process, store):
            cluster.scheduler.kill()
            _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("Error: The scheduler ")
    assert "Under way were stage 1, tile " in last
    assert "give the same command" in last
    again = tmp_path / "again"
    again.mkdir()
    with Cluster(again) as cluster:
        process = begin(source, store, "--scheduler", str(cluster.file))
        wait_for_slabs(process, store, 5)
        process.kill()
        process.communicate()
        # The cluster's worker still computes for the dead run; it must not get in the way of this one.
        finish(source, store, wanted)


def test_blocks_that_meet_a_full_disk_are_named_and_the_rest_is_computed_later(
    source: Path, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    store = tmp_path / "run.etsam.zarr"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (95_000, 95_000))

    stopped = subprocess.run(
        begin_command(source, store, "--workers", "2"), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    # Of the prompted slices the second stage keeps too much for that limit.
    assert last.startswith("Error: 4 of 4 blocks failed. stage 2, tile ")
    assert last.count("File too large") == 4
    assert [last.count(f"tile {tile}, prompts: ") for tile in range(4)] == [1, 1, 1, 1]
    assert "give the same command again" in last
    assert len(records(store)) == SLABS // 2
    finish(source, store, wanted, "--workers", "2")


def test_a_device_that_runs_out_of_memory_once(
    source: Path, tmp_path: Path, seeded_spec: ModelSpec, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt goes on at the last finished slab, with thinner slabs, to the same end."""
    walk, walks = Propagation.walk, 0

    def out_of_memory_once(self: Propagation, span: Span, take: Any) -> None:
        nonlocal walks
        walks += 1
        if walks == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        walk(self, span, take)

    monkeypatch.setattr(Propagation, "walk", out_of_memory_once)
    events: list[Event] = []
    store = tmp_path / "run.etsam.zarr"
    run_with(SerialRuntime(), source, store, seeded_spec, events.append)
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.message.startswith("Memory ran out in stage 1, tile 0; trying again")
    assert len(records(store)) == SLABS + 1
    assert_same(store, wanted)


def alive(process: subprocess.Popen[str], store: Path, chance: random.Random) -> bool:
    return still_running_at_a_random_moment(process, store, chance, slabs=SLABS - len(records(store)))


def kill_run(source: Path, store: Path, folder: Path, chance: random.Random) -> int:
    process = begin(source, store, *chance.choice([(), ("--workers", "2")]))
    running = alive(process, store, chance)
    process.kill()
    process.communicate()
    return int(running)


def kill_workers(source: Path, store: Path, folder: Path, chance: random.Random) -> int:
    """As many as one job may take along, so that the run has to get to its end."""
    process, killed, before = begin(source, store, "--workers", "2"), 0, records(store)
    while killed < ALLOWED_FAILURES and alive(process, store, chance):
        before = kept(before, store)
        # It may be about to end them itself.
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            chance.choice(workers_of(process)).kill()
            killed += 1
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    kept(before, store)
    return killed


def kill_scheduler(source: Path, store: Path, folder: Path, chance: random.Random) -> int:
    folder.mkdir()
    with Cluster(folder, workers=2) as cluster:
        process = begin(source, store, "--scheduler", str(cluster.file))
        running = alive(process, store, chance)
        cluster.scheduler.kill()
        _, error = process.communicate(timeout=600)
    assert "Traceback" not in error
    # Behind the last slab it is not needed any more.
    assert process.returncode == 0 or (process.returncode == 1 and error.splitlines()[-1].startswith("Error: ")), error
    return int(running)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kill", [kill_run, kill_workers, kill_scheduler])
def test_killed_at_twenty_random_moments(
    kill: Callable[[Path, Path, Path, random.Random], int], source: Path, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    chance, killed, runs = random.Random(0), 0, 0
    store = tmp_path / "0.etsam.zarr"
    for attempt in itertools.count():
        before = records(store)
        killed += kill(source, store, tmp_path / f"cluster{attempt}", chance)
        if len(kept(before, store)) == SLABS or killed >= 20:
            # All of it there in spite of that, or enough killed: the end, and on to the next one.
            finish(source, store, wanted)
            runs += 1
            store = tmp_path / f"{runs}.etsam.zarr"
        if killed >= 20:
            return


@pytest.mark.slow
def test_a_worker_that_is_stopped_counts_as_hung(source: Path, tmp_path: Path, wanted: dict[str, Any]) -> None:
    store = tmp_path / "run.etsam.zarr"
    process = begin(source, store, "--workers", "2", "--block-timeout", "60")
    wait_for_slabs(process, store, 2)
    os.kill(workers_of(process)[0].pid, signal.SIGSTOP)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert "for 60 s: it is restarted" in error
    assert_same(store, wanted)
