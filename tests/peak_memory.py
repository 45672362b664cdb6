"""Peak memory of the real command in a process of its own."""

from __future__ import annotations

import subprocess
import sys

# Not getrusage: its peak begins with what the parent held when it forked.
_PROGRAM = """
import sys
from etsam_zarr_cli.main import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


def peak_of(*arguments: str) -> int:
    """Run ``etsam-zarr`` with these arguments, which must succeed, and return its peak resident memory in bytes."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split("peak ")[1]) * 1024
