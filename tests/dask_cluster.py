"""A dask.distributed cluster of processes of its own, as users start it: ``dask scheduler`` and ``dask worker``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


class Cluster:
    """Runs as long as the context; ``file`` is its scheduler file."""

    def __init__(self, folder: Path, *, workers: int = 1, options: tuple[str, ...] = ("--nthreads", "1")) -> None:
        self.file = folder / "scheduler.json"
        self.scheduler = _start(
            "dask_scheduler", "--scheduler-file", str(self.file), "--port", "0", "--no-dashboard", "--host", "127.0.0.1"
        )
        self.workers = [
            _start(
                "dask_worker", "--scheduler-file", str(self.file), "--host", "127.0.0.1", "--no-dashboard",
                "--local-directory", str(folder), "--death-timeout", "60", *options,
            )
            for _ in range(workers)
        ]  # fmt: skip

    def __enter__(self) -> Cluster:
        deadline = time.monotonic() + 120
        while not self.file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        processes = (*self.workers, self.scheduler)
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(program: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{program}", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
