"""A volume of 4.3 gigavoxels through every command: time and peak memory of each, its worker processes included.

The volume is a simulated tomogram of an eighth of the edge whose voxels are made eight times as wide, with noise drawn
for every small voxel, int8, as MRC. Its membranes are then as wide as those of a tomogram that was never binned.

1. The volume is made, slice by slice, and converted to OME-Zarr with a pyramid.
2. Coarse run: all slices at full size, each squeezed by --tiling whole to the 256 x 256 pixels of the bundled model, so
   that logits are made for every voxel. Fine run: the first slices in tiles at full resolution, two workers.
3. Of the coarse run: a mask with another threshold, its components, exports. Each is of the whole volume.
4. Components of a mask of many more parts: the simulated membranes, repeated at their own size.

Files are deleted as soon as they are not needed; 22 GB of disk are free for the shape of 4.3 gigavoxels, or it is
refused. Peaks are the kernel's own (VmHWM): of children as of a fifth of a second before they end.

    python benchmarks/large.py [--shape 1024 2048 2048] [--scratch DIR]
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from measure import save, table

Shape = tuple[int, int, int]

SHAPE: Shape = (1024, 2048, 2048)
MAGNIFIED = 8
"""Edge of a simulated voxel in voxels of the volume."""
FINE_SLICES = 16
MEMORY_LIMIT = 2 * 10**9
"""What no process may exceed, in bytes."""
# The largest file is the logits, 4 bytes per voxel, beside the volume as OME-Zarr and the run.
DISK_BYTES_PER_VOXEL = 5.2
_VOXEL_SIZE = 10.0 / MAGNIFIED
_SIGNAL_DEVIATION, _NOISE_DEVIATION = 24.0, 12.0
_SECONDS_BETWEEN_LOOKS = 0.2


def make_volume(folder: Path, shape: Shape) -> None:
    """Simulate ``small.zarr``, and write ``volume.mrc`` slice by slice."""
    import numpy as np
    import zarr

    from etsam_zarr.mrc.write import MrcPlan, write_mrc
    from etsam_zarr.phantom.store import write_phantom
    from etsam_zarr.phantom.volume import PhantomSettings

    depth, height, width = (-(-n // MAGNIFIED) for n in shape)
    small = folder / "small.zarr"
    write_phantom(small, PhantomSettings((depth, height, width), seed=1, snr=0.5))
    simulated = np.asarray(zarr.open_array(small / "0", mode="r")[...])
    simulated = (simulated - simulated.mean()) * np.float32(_SIGNAL_DEVIATION / simulated.std())
    generator = np.random.default_rng(1)

    def slices() -> Iterator[Any]:
        for z in range(shape[0]):
            plane = simulated[z // MAGNIFIED].repeat(MAGNIFIED, 0).repeat(MAGNIFIED, 1)[: shape[1], : shape[2]]
            plane = plane + generator.standard_normal(plane.shape, np.float32) * np.float32(_NOISE_DEVIATION)
            yield np.clip(np.rint(plane), -127, 127).astype(np.int8)[None]

    write_mrc(folder / "volume.mrc", MrcPlan(shape, np.dtype(np.int8), (_VOXEL_SIZE,) * 3), slices())


def make_mask(folder: Path, shape: Shape) -> None:
    """Repeat the membranes of ``small.zarr`` along all axes, layer by layer, as ``mask.zarr``."""
    import numpy as np
    import zarr

    truth = np.asarray(zarr.open_array(folder / "small.zarr" / "labels" / "membranes" / "0", mode="r")[...])
    tiled = np.tile(truth, (1, MAGNIFIED, MAGNIFIED))[:, : shape[1], : shape[2]]
    chunks = (32, 256, 256)
    mask = zarr.create_array(folder / "mask.zarr", shape=shape, chunks=chunks, dtype="uint8", fill_value=0)
    for z in range(0, shape[0], chunks[0]):
        stop = min(shape[0], z + chunks[0])
        mask[z:stop] = tiled[np.arange(z, stop) % len(tiled)]


@dataclass(frozen=True)
class Step:
    """One command, and what may be deleted behind it."""

    name: str
    arguments: tuple[str, ...]
    """Of ``etsam-zarr``; of this script where they begin with ``--child``."""
    done_with: tuple[str, ...] = field(default=())


def steps(shape: Shape) -> tuple[Step, ...]:
    """Return what is measured, in order."""
    size, fine = ",".join(str(n) for n in shape), f"0:{min(FINE_SLICES, shape[0])},0:{shape[1]},0:{shape[2]}"
    run = ("run", "volume.zarr", "--model", "demo-256", "--device", "cpu", "--threads", "1")
    return (
        Step("make the volume", ("--child", "volume", size)),
        Step("convert", ("convert", "volume.mrc", "volume.zarr"), ("volume.mrc",)),
        Step("run, coarse", (*run, "--tiling", "whole", "-o", "coarse.etsam.zarr")),
        Step("run, fine", (*run, "--roi", fine, "--workers", "2", "-o", "fine.etsam.zarr"), ("fine.etsam.zarr",)),
        Step("threshold", ("threshold", "coarse.etsam.zarr", "--logit-threshold", "-0.5")),
        Step("label", ("label", "coarse.etsam.zarr")),
        Step("export the mask", ("export", "coarse.etsam.zarr", "--mask", "mask.mrc"), ("mask.mrc",)),
        Step("export components", ("export", "coarse.etsam.zarr", "--components", "ids.mrc"), ("ids.mrc",)),
        Step("export logits", ("export", "coarse.etsam.zarr", "--logits", "logits.mrc"), ("logits.mrc",)),
        Step(
            "export scores", ("export", "coarse.etsam.zarr", "--scores", "scores.zarr"),
            ("scores.zarr", "coarse.etsam.zarr", "volume.zarr"),
        ),
        Step("make a mask of many parts", ("--child", "mask", size)),
        Step("label it", ("label", "mask.zarr", "-o", "labels.zarr"), ("mask.zarr", "labels.zarr")),
    )  # fmt: skip


def measure(step: Step, folder: Path) -> dict[str, Any]:
    """Carry out a step in ``folder`` and watch it; what it leaves running is killed whatever happens."""
    own = step.arguments[0] == "--child"
    program = [sys.executable, *([__file__] if own else ["-m", "etsam_zarr_cli.main"])]
    load, begun = os.getloadavg()[0], time.perf_counter()
    with (folder / "out.txt").open("w+") as out, (folder / "err.txt").open("w+") as err:
        process = subprocess.Popen([*program, *step.arguments], cwd=folder, stdout=out, stderr=err)
        peaks: dict[int, int] = {}
        try:
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                _look_at(process.pid, peaks)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            _kill(process)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        out.seek(0)
        err.seek(0)
        told, complained = out.read(), err.read()
    if process.returncode:
        raise click.ClickException(f"{step.name} ended with {process.returncode}:\n{complained[-2000:]}")
    seen = peaks.pop(process.pid, 0)
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "step": step.name,
        "command": shlex.join(["python benchmarks/large.py" if own else "etsam-zarr", *step.arguments]).replace(
            "'", ""
        ),
        "seconds": seconds,
        # The kernel's figure begins with the peak of the process that starts another: up to that it says nothing.
        "peak_bytes": usage.ru_maxrss * 1024 if usage.ru_maxrss > inherited else seen,
        "children_peak_bytes": sorted(peaks.values(), reverse=True),
        "load_average": [load, os.getloadavg()[0]],
        "told": told.splitlines(),
    }


def _look_at(pid: int, peaks: dict[int, int]) -> None:
    """Note the greatest resident size so far of a process and of all that it started."""
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
        if lines:
            peaks[member] = int(lines[0].split()[1]) * 1024


def _kill(process: subprocess.Popen[Any]) -> None:
    family = [process]
    try:
        family += psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def measure_all(folder: Path, shape: Shape) -> Iterator[dict[str, Any]]:
    """Carry out all steps in ``folder``."""
    for step in steps(shape):
        yield measure(step, folder)
        for name in step.done_with:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn measurements into rows of a table."""
    return [
        {
            "step": result["step"],
            "command": f"`{result['command']}`",
            "seconds": f"{result['seconds']:.0f}",
            "peak MiB": round(result["peak_bytes"] / 2**20),
            # A child that only waits is of no interest.
            "of its workers": ", ".join(
                str(round(peak / 2**20)) for peak in result["children_peak_bytes"] if peak > 200 * 2**20
            ),
        }
        for result in found
    ]


def check_room(folder: Path, shape: Shape) -> None:
    """Refuse a disk that would be filled."""
    free, needed = shutil.disk_usage(folder).free, shape[0] * shape[1] * shape[2] * DISK_BYTES_PER_VOXEL
    if free < needed:
        raise click.ClickException(
            f"{needed / 1e9:.1f} GB are needed at a time and {folder} has {free / 1e9:.1f} GB free. Give --scratch."
        )


@click.command()
@click.option("--shape", type=int, nargs=3, default=SHAPE, show_default=True, help="Voxels in z, y, x.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the files. [default: a temporary one]")
@click.option("--name", default="large", show_default=True, help="Of the result file.")
@click.option("--child", nargs=2, type=str, hidden=True)
def main(shape: Shape, scratch: Path | None, name: str, child: tuple[str, str] | None) -> None:
    """Measure, print a table, and save the result."""
    if child is not None:
        what, size = child
        z, y, x = (int(n) for n in size.split(","))
        {"volume": make_volume, "mask": make_mask}[what](Path(), (z, y, x))
        return
    # So that files are deleted then as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        check_room(Path(folder), shape)
        found: list[dict[str, Any]] = []
        for result in measure_all(Path(folder), shape):
            found.append(result)
            click.echo(table(rows_of([result])).splitlines()[-1], err=True)
            # Behind every step: the whole takes long.
            path = save(name, found, shape=shape, dtype="int8", model="demo-256", memory_limit=MEMORY_LIMIT)
    click.echo(f"{table(rows_of(found))}\n{path}")
    greatest = max(max([result["peak_bytes"], *result["children_peak_bytes"]]) for result in found)
    if greatest > MEMORY_LIMIT:
        raise click.ClickException(f"A process took {greatest / 1e9:.2f} GB, more than {MEMORY_LIMIT / 1e9:g} GB.")


if __name__ == "__main__":
    main()
