"""Labelling of membrane shells: wall time and peak memory of ours, dask-image, scipy and cc3d.

Every measurement is a process of its own, since peak memory is kept for the life of a process; the contestants take
turns, so that a neighbour's load hits all alike. Reading the mask from Zarr and writing the labels to Zarr count for
everybody.

    python benchmarks/components.py --shape 512 1024 1024 --repeat 3 -o benchmarks/results/components.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

CHUNKS = (64, 256, 256)
CONTESTANTS = ("ours-cc3d", "ours-scipy", "scipy", "cc3d", "dask-image", "dask-image-whole")
# Measured in the first round only.
SLOW = ("dask-image", "dask-image-whole")
# dask-image computes every chunk anew for each of its faces: few and large ones are the best that can be done for it.
DASK_IMAGE_CHUNKS = (256, 512, 512)


def make_shells(path: Path, shape: tuple[int, int, int]) -> None:
    """Write spherical membranes of 4 voxels' thickness, some cut by the volume's edge, about 8 % of it."""
    array = zarr.create_array(path, shape=shape, chunks=CHUNKS, dtype="uint8", fill_value=0)
    rng = np.random.default_rng(1)
    count = int(np.prod(shape)) // 4_000_000 + 1
    centres = rng.uniform(0, 1, (count, 3)) * shape
    radii = rng.uniform(20, 110, count)
    for z in range(0, shape[0], CHUNKS[0]):
        depth = min(CHUNKS[0], shape[0] - z)
        slab = np.zeros((depth, *shape[1:]), np.uint8)
        for (cz, cy, cx), radius in zip(centres, radii, strict=True):
            low = [max(0, int(c - radius - 3)) for c in (cy, cx)]
            high = [int(c + radius + 4) for c in (cy, cx)]
            y, x = np.ogrid[low[0] : min(high[0], shape[1]), low[1] : min(high[1], shape[2])]
            flat = (y - cy) ** 2 + (x - cx) ** 2
            for k in range(depth):
                if abs(z + k - cz) <= radius + 2:
                    distance = np.sqrt(flat + (z + k - cz) ** 2)
                    slab[k, low[0] : high[0], low[1] : high[1]] |= np.abs(distance - radius) < 2
        array[z : z + depth] = slab


def label_ours(mask: Path, out: Path, kernel: str) -> int:
    """Label blockwise, two workers."""
    from etsam_zarr.components.find import LabelSettings, find_components
    from etsam_zarr.masks import BinaryMask

    source = zarr.open_array(mask, mode="r")
    found = find_components(
        BinaryMask(source),
        out.with_suffix(".scratch"),
        source_id="benchmark",
        chunks=CHUNKS,
        settings=LabelSettings(26, workers=2, kernel=kernel),  # type: ignore[arg-type] # a str from the command line
    )
    found.write(_labels(out, source.shape), np.ones(len(found.table), bool))
    found.discard()
    return len(found.table)


def label_scipy(mask: Path, out: Path) -> int:
    """Label the whole volume in memory with scipy."""
    from scipy import ndimage

    voxels = np.asarray(zarr.open_array(mask, mode="r")[:])
    labels = np.empty(voxels.shape, np.uint32)
    count = ndimage.label(voxels, np.ones((3, 3, 3)), output=labels)
    _labels(out, voxels.shape)[:] = labels
    return int(count)


def label_cc3d(mask: Path, out: Path) -> int:
    """Label the whole volume in memory with cc3d."""
    import cc3d

    voxels = np.asarray(zarr.open_array(mask, mode="r")[:])
    label: Any = cc3d.connected_components
    labels, count = label(voxels, connectivity=26, return_N=True, out_dtype=np.uint32)
    _labels(out, voxels.shape)[:] = labels
    return int(count)


def label_dask_image(mask: Path, out: Path, chunks: Any = DASK_IMAGE_CHUNKS) -> int:
    """Label through dask-image's public function, two threads."""
    import dask
    import dask.array
    from dask_image.ndmeasure import label

    source = zarr.open_array(mask, mode="r")
    from_array: Any = dask.array.from_array
    lazy, count = label(from_array(source, chunks=chunks), structure=np.ones((3, 3, 3)))
    target = _labels(out, source.shape)
    store: Any = dask.array.store
    with dask.config.set(scheduler="threads", num_workers=2):
        store(lazy, target, lock=False)
        return int(count.compute())


def _labels(out: Path, shape: tuple[int, ...]) -> zarr.Array[Any]:
    return zarr.create_array(out, shape=shape, chunks=CHUNKS, dtype="uint32", fill_value=0, overwrite=True)


def measure(contestant: str, mask: Path, out: Path) -> dict[str, Any]:
    """Run one contestant in this process."""
    begun = time.perf_counter()
    if contestant.startswith("ours"):
        count = label_ours(mask, out, contestant.removeprefix("ours-"))
    elif contestant == "dask-image-whole":
        count = label_dask_image(mask, out, -1)
    else:
        count = {"scipy": label_scipy, "cc3d": label_cc3d, "dask-image": label_dask_image}[contestant](mask, out)
    return {
        "seconds": time.perf_counter() - begun,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "components": count,
    }


def main() -> None:
    """Measure all contestants in turn and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 1024, 1024))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the volumes (default: a temporary one)")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--limit", type=float, default=600, help="stop a process after so many seconds")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        contestant, mask, out = arguments.measure
        print(json.dumps(measure(contestant, Path(mask), Path(out))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        results = compare(Path(folder), tuple(arguments.shape), arguments.only, arguments.repeat, arguments.limit)
    print(json.dumps(results, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def command_line() -> str:
    """Return what was typed, without the folder for the volumes: it says nothing to others."""
    words = sys.argv[1:]
    if "--scratch" in words:
        place = words.index("--scratch")
        del words[place : place + 2]
    return " ".join(["python", "benchmarks/components.py", *words])


def compare(
    folder: Path, shape: tuple[int, int, int], contestants: list[str], repeat: int, limit: float
) -> dict[str, Any]:
    """Run the contestants in turn, each in a fresh process, ``repeat`` times."""
    mask = folder / "mask.zarr"
    make_shells(mask, shape)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(repeat):
        for name in contestants:
            if turn and name in SLOW:
                continue
            out = folder / "labels.zarr"
            command = [sys.executable, __file__, "--measure", name, str(mask), str(out)]
            try:
                done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
                runs[name].append(json.loads(done.stdout))
                print(name, done.stdout.strip(), file=sys.stderr)
            except subprocess.TimeoutExpired:
                print(f"{name}: stopped after {limit:g} s", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
    if len({run["components"] for several in runs.values() for run in several}) != 1:
        raise SystemExit(f"The contestants disagree: {runs}")
    return {
        "benchmark": "connected components, 26-connected, Zarr to Zarr",
        "shape": shape,
        "chunks": CHUNKS,
        "dask_image_chunks": DASK_IMAGE_CHUNKS,
        "components": runs[contestants[0]][0]["components"],
        "median": {
            name: {
                "seconds": round(statistics.median(run["seconds"] for run in several), 2),
                "peak_gib": round(statistics.median(run["peak_bytes"] for run in several) / 2**30, 3),
            }
            for name, several in runs.items()
            if several
        },
        "stopped_after_seconds": {name: limit for name, several in runs.items() if not several},
        "runs": runs,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "scipy", "dask", "dask-image", "connected-components-3d", "zarr")
        }
        | {"python": platform.python_version()},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "command": command_line(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
