"""A run on a tomogram at an address against the same run on the same store on disk: time, peak memory, bytes, requests.

A web server on this machine, in a process of its own, waits before every answer. Every measurement is a fresh process;
local and remote runs take turns. The store is of the CryoET Data Portal's kind (Zarr 2, Blosc lz4 chunks).

    python benchmarks/remote.py [--latency 0.05] [--rounds 3] [--depth 96] [--size 256] [--chunk 64] [--wide]

With --wide, instead: 32 slices of 4096 x 4096 in chunks of 256 x 256 x 256 are read twice, 8 at once, without a model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from measure import in_fresh_process, peak_bytes, save, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

MIB = 2**20
WIDE = (256, 4096, 4096)
WIDE_SLICES = 32
SERVER = """
import sys, time
from pathlib import Path
from http_server import serving
with serving(Path(sys.argv[1]), latency=float(sys.argv[2])) as web:
    print(web.port, flush=True)
    time.sleep(3600)
"""


def measure(source: str, folder: Path, model_name: str) -> dict[str, Any]:
    """Run both stages on a store, in this process."""
    import torch

    from etsam_zarr.config import resolve_settings
    from etsam_zarr.modelspec import choose_model
    from etsam_zarr.pipeline import run
    from etsam_zarr.plan import plan_run
    from etsam_zarr.remote.volumes import keep_chunks, supply_of
    from etsam_zarr.run_request import RunRequest
    from etsam_zarr.sources import open_volume

    model = choose_model(model_name)
    settings = resolve_settings("etsam-v2")
    begun = time.perf_counter()
    with open_volume(source) as volume:
        keep_chunks(volume, folder / "cache")
        plan = plan_run(volume.info.shape, settings, model.config, voxel_bytes=4)
        request = RunRequest(plan, settings, model, "float32", torch.device("cpu"))
        done = run(volume, folder / "run.etsam.zarr", request)
        supply = supply_of(volume)
        count = None if supply is None else supply.store.remote.traffic.count
    return {
        "seconds": time.perf_counter() - begun,
        "outside_model": done.seconds - done.model_seconds,
        "peak_bytes": peak_bytes(),
        "requests": count and count.requests,
        "bytes_read": count and count.bytes,
    }


def read_through(source: str, folder: Path) -> dict[str, Any]:
    """Read a wide store slab by slab, twice, as the intensity pass and a stage do."""
    from etsam_zarr.geometry import Span, cut
    from etsam_zarr.remote.volumes import keep_chunks, supply_of
    from etsam_zarr.sources import open_volume

    begun = time.perf_counter()
    with open_volume(source) as volume:
        keep_chunks(volume, folder / "cache")
        for _ in range(2):
            for span in cut(Span(0, WIDE_SLICES), 8):
                volume.read(span)
        supply = supply_of(volume)
        count = None if supply is None else supply.store.remote.traffic.count
    return {
        "seconds": time.perf_counter() - begun,
        "peak_bytes": peak_bytes(),
        "requests": count and count.requests,
        "bytes_read": count and count.bytes,
    }


def make_store(path: Path, depth: int, size: int, chunk: int) -> int:
    """Write noise as the portal stores tomograms; return the bytes of its chunks."""
    import numpy as np
    from portal_store import stored_bytes, write_portal_store

    voxels = np.random.default_rng(0).normal(size=(depth, size, size)).astype(np.float32)
    write_portal_store(path, voxels, chunks=(chunk, chunk, chunk), levels=1)
    return stored_bytes(path)


def make_wide_store(path: Path) -> int:
    """Write one layer of 16 x 16 chunks, 16 GiB decoded: links to one file, of rounded noise that compresses well."""
    import numpy as np
    from portal_store import stored_bytes, write_portal_store

    voxels = np.random.default_rng(0).normal(size=(256, 256, 256)).round().astype(np.float32)
    write_portal_store(path, voxels, levels=1)
    described = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps({**described, "shape": list(WIDE)}))
    one = path / "0" / "0" / "0" / "0"
    for y in range(16):
        for x in range(16):
            there = path / "0" / "0" / str(y) / str(x)
            there.parent.mkdir(exist_ok=True)
            if there != one:
                there.hardlink_to(one)
    return stored_bytes(path)


def summary(measurements: list[dict[str, Any]], stored: int) -> list[dict[str, Any]]:
    """Sum up for a table."""
    rows = []
    local = {m["round"]: m["seconds"] for m in measurements if m["kind"] == "local"}
    for kind in dict.fromkeys(m["kind"] for m in measurements):
        own = [m for m in measurements if m["kind"] == kind]
        seconds = statistics.median(m["seconds"] for m in own)
        ratios = [m["seconds"] / local[m["round"]] for m in own]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if max(ratios) > min(ratios) else ""
        outside = [m["outside_model"] for m in own if m.get("outside_model") is not None]
        read = own[0]["bytes_read"]
        rows.append(
            {
                "input": kind,
                "seconds": f"{seconds:.1f}",
                "against local": f"{statistics.median(ratios):.2f}{spread}",
                "outside the model": f"{statistics.median(outside):.1f}" if outside else "",
                "peak MiB": round(max(m["peak_bytes"] for m in own) / MIB),
                "MiB read": "" if read is None else f"{read / MIB:.1f}",
                "of the stored": "" if read is None else f"{read / stored:.3f}",
                "requests": own[0]["requests"] or "",
            }
        )
    return rows


@click.command()
@click.option("--latency", default=0.05, show_default=True, help="Seconds that the server waits before an answer.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--depth", default=96, show_default=True)
@click.option("--size", default=256, show_default=True)
@click.option("--chunk", default=64, show_default=True)
@click.option("--model", default="seeded-256", show_default=True)
@click.option("--wide", is_flag=True, help="Read slices of 4096 x 4096 instead.")
@click.option("--child", nargs=3, type=str, hidden=True)
def main(
    latency: float, rounds: int, depth: int, size: int, chunk: int, model: str, wide: bool,
    child: tuple[str, str, str] | None,
) -> None:  # fmt: skip
    """Measure, print a table, and save the result."""
    if child is not None:
        source, what, folder = child
        found = read_through(source, Path(folder)) if what == "wide" else measure(source, Path(folder), what)
        print(json.dumps(found))
        return
    measurements = []
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "web" / "tomo.zarr"
        stored = make_wide_store(store) if wide else make_store(store, depth, size, chunk)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(store.parent), str(latency)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1] / "tests",
        )  # fmt: skip
        try:
            assert server.stdout is not None
            address = f"http://127.0.0.1:{server.stdout.readline().strip()}/tomo.zarr"
            for number in range(rounds):
                kinds = {"local": str(store), f"http, {latency * 1000:.0f} ms": address}
                for kind, source in kinds.items():
                    with tempfile.TemporaryDirectory(dir=name) as folder:
                        found = in_fresh_process(__file__, source, "wide" if wide else model, folder)
                    measurements.append({"kind": kind, "round": number, **found})
        finally:
            server.terminate()
            server.wait()
    settings = {"latency": latency, "stored_bytes": stored, "shape": WIDE if wide else [depth, size, size]}
    print(table(summary(measurements, stored)))
    path = save("remote-wide" if wide else "remote", measurements, model=None if wide else model, **settings)
    print(f"saved {path}")


if __name__ == "__main__":
    main()
