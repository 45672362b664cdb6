"""What the benchmarks share: a fresh process per measurement, its peak memory, and a result file that says where."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("etsam-zarr", "torch", "sam2", "zarr", "numpy", "scipy", "dask", "dask-image", "distributed")


def in_fresh_process(script: str | Path, *arguments: object) -> dict[str, Any]:
    """Run a benchmark script with ``--child`` and return the JSON on the last line of its output."""
    command = [sys.executable, str(script), "--child", *(str(argument) for argument in arguments)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(name: str, measurements: list[dict[str, Any]], **settings: Any) -> Path:
    """Write measurements with machine, versions and commit to ``results/<name>.json``."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    record = {
        "benchmark": name,
        # Where folders lie on this machine tells nobody anything.
        "command": " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
            + [Path(argument).name if argument.startswith("/") else argument for argument in sys.argv[1:]]
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or None,
        "machine": {
            "processor": _processor(),
            "cores": psutil.cpu_count(logical=False),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "versions": {package: metadata.version(package) for package in _PACKAGES},
        "settings": settings,
        "measurements": measurements,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; the keys of the first are the columns."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
