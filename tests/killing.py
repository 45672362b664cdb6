"""Kills processes for real."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path


def kill_when(process: subprocess.Popen[bytes], there: Path) -> None:
    """Kill -9 a process as soon as a file appears."""
    deadline = time.monotonic() + 300
    while not there.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
