"""A store has one writer, whatever dies; and who lost it stops writing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from etsam_zarr.errors import LeaseLostError, OutputError, RunStoreError
from etsam_zarr.lease import Lease
from etsam_zarr.lease_file import Holder

# Signs of life come often and patience is short, so that these tests take moments.
QUICK: Any = {"beat": 0.05, "patience": 0.6}
HOLD = """
import sys, time
from pathlib import Path
from etsam_zarr.lease import Lease
with Lease(Path(sys.argv[1]), beat=0.05, patience=0.6):
    print("held", flush=True)
    sys.stdin.readline()
"""


def lease_files(store: Path) -> list[Path]:
    return sorted((store / ".lease").glob("*.json"))


def hold_in_other_process(store: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave_behind(store: Path, holder: Holder, *, number: int = 1) -> Path:
    """A lease as a process leaves it that is killed."""
    path = store / ".lease" / f"{number:07d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    return path


@pytest.fixture
def elsewhere() -> Holder:
    """A process on another machine."""
    return replace(Holder.this_process(), host="node17", space="another boot", pid=os.getpid())


def test_a_released_lease_is_free_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        with Lease(tmp_path) as lease:
            lease.fence.check()
    # The folder does not grow with every run.
    assert len(lease_files(tmp_path)) == 2


def test_a_living_holder_is_named(tmp_path: Path) -> None:
    with hold_in_other_process(tmp_path) as process:
        with pytest.raises(RunStoreError) as caught, Lease(tmp_path):
            pass
        message = str(caught.value)
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in message
        assert "Wait for it to end" in message
        process.kill()


def test_a_killed_holder_on_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    with hold_in_other_process(tmp_path) as process:
        # Not waited for: to the system it is still there, as a zombie.
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
        # With a patience that would outlast the test.
        with Lease(tmp_path, beat=0.05, patience=3600) as lease:
            lease.fence.check()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path: Path) -> None:
    leave_behind(tmp_path, replace(Holder.this_process(), started=1.0))
    with Lease(tmp_path, beat=0.05, patience=3600) as lease:
        lease.fence.check()


def test_a_silent_holder_on_another_machine_is_taken_over_after_a_while(tmp_path: Path, elsewhere: Holder) -> None:
    path = leave_behind(tmp_path, elsewhere)
    begun = time.monotonic()
    with Lease(tmp_path, **QUICK) as lease:
        assert time.monotonic() - begun >= QUICK["patience"]
        lease.fence.check()
        assert lease_files(tmp_path)[-1] != path


def test_one_that_has_been_silent_for_hours_needs_no_watching(tmp_path: Path, elsewhere: Holder) -> None:
    path = leave_behind(tmp_path, elsewhere)
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    with Lease(tmp_path, beat=0.05, patience=3600) as lease:
        lease.fence.check()


def test_a_living_holder_on_another_machine_is_left_alone(tmp_path: Path, elsewhere: Holder) -> None:
    path = leave_behind(tmp_path, elsewhere)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunStoreError, match="on node17, since"), Lease(tmp_path, beat=0.05, patience=3600):
            pass
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("content", ["", '{"host": "a"}', "[]", "\x00\x00"])
def test_a_lease_that_a_dying_machine_left_half_written_is_taken_over(content: str, tmp_path: Path) -> None:
    leave_behind(tmp_path, Holder.this_process()).write_text(content)
    with Lease(tmp_path, **QUICK) as lease:
        lease.fence.check()


def test_the_holder_shows_that_it_lives(tmp_path: Path) -> None:
    with Lease(tmp_path, **QUICK):
        (path,) = lease_files(tmp_path)
        content = path.read_bytes()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert path.read_bytes() == content


def test_many_at_once_make_one_holder(tmp_path: Path, elsewhere: Holder) -> None:
    """Threads that all see the same dead holder: one gets the store at a time, and nobody is overrun."""
    leave_behind(tmp_path, elsewhere)
    inside, most, refused, held, overrun = 0, 0, 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def contend() -> None:
        nonlocal inside, most, refused, held, overrun
        start.wait()
        for _ in range(5):
            try:
                with Lease(tmp_path, **QUICK) as lease:
                    with guard:
                        inside, held = inside + 1, held + 1
                        most = max(most, inside)
                    time.sleep(0.002)
                    lease.fence.check()
                    with guard:
                        inside -= 1
            except LeaseLostError:
                with guard:
                    overrun += 1
            except RunStoreError:
                with guard:
                    refused += 1

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert overrun == 0
    assert held >= 1
    assert held + refused == 40


def test_workers_of_a_run_that_ended_stop(tmp_path: Path) -> None:
    with Lease(tmp_path) as lease:
        fence = lease.fence
    with pytest.raises(LeaseLostError, match="has ended"):
        fence.check()


def test_a_holder_that_slept_finds_itself_replaced_and_does_not_come_back(tmp_path: Path, elsewhere: Holder) -> None:
    with Lease(tmp_path, beat=3600) as sleeper:
        # To a machine that cannot look at its process it is dead.
        (path,) = lease_files(tmp_path)
        path.write_text(json.dumps(asdict(replace(elsewhere, token=sleeper.fence.token))))
        with Lease(tmp_path, **QUICK) as usurper:
            with pytest.raises(LeaseLostError, match="Another run took over"):
                sleeper.fence.check()
            usurper.fence.check()
    # That the sleeper ended does not touch the usurper's lease, which was released on its own.
    with pytest.raises(LeaseLostError):
        sleeper.fence.check()


def test_a_store_that_is_deleted_under_its_workers(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with Lease(store) as lease:
        store.rename(tmp_path / "gone")
        with pytest.raises(LeaseLostError, match="gone or damaged"):
            lease.fence.check()


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with Lease(tmp_path) as lease:
        lease.fence.check()
        with pytest.raises(RunStoreError, match="Another process"), Lease(tmp_path):
            pass
    with Lease(tmp_path) as lease:
        lease.fence.check()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="locking the run store"), Lease(tmp_path / "absent"):
        pass


def test_a_worker_that_only_seemed_dead_is_fenced_off_by_the_next_one(tmp_path: Path) -> None:
    with Lease(tmp_path) as lease:
        first = lease.fence.claiming("stage 1, tile 0")
        other = lease.fence.claiming("stage 1, tile 1")
        first.check()
        second = lease.fence.claiming("stage 1, tile 0")
        with pytest.raises(LeaseLostError, match="Another worker has taken over"):
            first.check()
        second.check()
        other.check()
    with pytest.raises(LeaseLostError, match="has ended"):
        second.check()
    with pytest.raises(LeaseLostError):
        lease.fence.claiming("stage 1, tile 0")
