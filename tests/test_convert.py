"""Converting to OME-Zarr: exact, bounded, and never half done under the final name."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from mrc_files import voxels_of, write_raw_mrc
from zarr.storage import LocalStore

from etsam_zarr import convert as convert_module
from etsam_zarr import convert_ledger
from etsam_zarr.convert import ConvertSettings, convert
from etsam_zarr.errors import OutputError, OutputExistsError, SettingsError
from etsam_zarr.events import Event, Notice, Started
from etsam_zarr.geometry import Span
from etsam_zarr.mrc.write import MrcPlan, slabs_of, write_mrc
from etsam_zarr.ome.pyramid import halve
from etsam_zarr.sources import open_volume
from etsam_zarr.volume import Array, VolumeInfo

SMALL = ConvertSettings(chunks=(4, 16, 16))


def mrc(path: Path, voxels: Array, **given: Any) -> Path:
    return write_raw_mrc(path, voxels, **({"fields": {80: ("f", 0.0)}} | given))


def run(source: Path, destination: Path, chosen: ConvertSettings = SMALL, **given: Any) -> Path:
    with open_volume(source) as volume:
        return convert(volume, destination, settings=chosen, **given)


def read(path: Path, level: int = 0) -> tuple[Array, VolumeInfo]:
    with open_volume(path, level=level) as volume:
        return volume.read(Span(0, volume.info.shape[0])), volume.info


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize(
    "chosen",
    [SMALL, ConvertSettings(version="0.5", chunks=(4, 16, 16), shards=(8, 32, 32))],
    ids=["0.4", "0.5-sharded"],
)
def test_there_and_back_keeps_values_type_size_and_origin(tmp_path: Path, dtype: str, chosen: ConvertSettings) -> None:
    voxels = voxels_of(dtype, (11, 37, 71))
    fields = {196: ("f", 7.5), 200: ("f", -8.0), 204: ("f", 9.0)} | ({} if dtype == "uint8" else {80: ("f", 0.0)})
    source = mrc(tmp_path / "a.mrc", voxels, cell=(71 * 10.5, 37 * 10.0, 11 * 12.0), fields=fields)
    there = run(source, tmp_path / "a.zarr", chosen)
    stored, info = read(there)
    np.testing.assert_array_equal(stored, voxels)
    assert stored.dtype == np.dtype(dtype)
    assert info.voxel_size == pytest.approx((12.0, 10.0, 10.5))
    assert info.origin == (9.0, -8.0, 7.5)
    assert info.chunks == (4, 16, 16)
    yaozarrs.validate_zarr_store(str(there))
    coarse, coarse_info = read(there, level=1)
    np.testing.assert_array_equal(coarse, halve(voxels, reduce="mean"))
    assert coarse_info.voxel_size == pytest.approx((24.0, 20.0, 21.0))
    with open_volume(there) as volume:
        plan = MrcPlan(info.shape, info.dtype, info.voxel_size, info.origin, keep_float16=True)
        back = write_mrc(tmp_path / "b.mrc", plan, slabs_of(volume))
    returned, info = read(back)
    np.testing.assert_array_equal(returned, voxels)
    assert info.voxel_size == pytest.approx((12.0, 10.0, 10.5))
    assert info.origin == (9.0, -8.0, 7.5)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(2, 20), st.integers(2, 90), st.integers(2, 90)),
    chunks=st.tuples(st.integers(3, 9), st.integers(8, 64), st.integers(8, 64)),
    source_chunks=st.none() | st.tuples(st.integers(3, 20), st.integers(8, 64), st.integers(8, 64)),
    block_bytes=st.sampled_from([1, 5000, 1 << 27]),
)
def test_any_shape_and_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    source_chunks: tuple[int, int, int] | None,
    block_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    voxels = voxels_of("uint16", shape)
    if source_chunks is None:
        source = mrc(folder / "a.mrc", voxels)
    else:
        source = folder / "bare.zarr"
        zarr.create_array(source, shape=shape, chunks=source_chunks, dtype="u2", zarr_format=2)[...] = voxels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_module, "_BLOCK_BYTES", block_bytes)
        run(source, folder / "a.zarr", ConvertSettings(chunks=chunks))
    np.testing.assert_array_equal(read(folder / "a.zarr")[0], voxels)


def test_given_voxel_size_replaces_the_sources(tmp_path: Path) -> None:
    source = mrc(tmp_path / "a.mrc", voxels_of("int16"), cell=(0.0, 0.0, 0.0))
    run(source, tmp_path / "a.zarr", ConvertSettings(voxel_size=(3.0, 2.0, 1.0)))
    assert read(tmp_path / "a.zarr")[1].voxel_size == (3.0, 2.0, 1.0)


def test_voxels_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    voxels = voxels_of("float32")
    voxels[1, 2, 3], voxels[2, 2, 2] = np.nan, np.inf
    run(mrc(tmp_path / "a.mrc", voxels), tmp_path / "a.zarr")
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[0], voxels)


class Killed(BaseException):
    """Ends a conversion where a kill would."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mrc(tmp_path / "tomo.mrc", voxels_of("uint16", (22, 70, 131)))


@pytest.mark.parametrize("layers", range(12))
def test_ended_after_any_layer_it_goes_on_and_gives_the_identical_store(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    whole = content(run(source, tmp_path / "whole.zarr"))
    original, calls = convert_ledger.write_atomically, 0

    def dying(path: Path, data: bytes) -> None:
        nonlocal calls
        if calls == layers:
            raise Killed
        calls += 1
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(convert_ledger, "write_atomically", dying)
        with pytest.raises(Killed):
            run(source, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    reads: list[Span] = []
    with open_volume(source) as volume:
        plain = volume.read
        monkeypatch.setattr(volume, "read", lambda z, *rest: (reads.append(z), plain(z, *rest))[1])
        convert(volume, tmp_path / "a.zarr", settings=SMALL)
    assert content(tmp_path / "a.zarr") == whole
    # The first note in the ledger says that 0 layers are done.
    assert sum(z.size for z in reads) == 22 - min(22, 4 * max(0, layers - 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "tomo.mrc", "whole.zarr"]


@pytest.mark.parametrize("change", ["source", "settings"])
def test_leftovers_of_another_source_or_setting_are_cleared(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "build_pyramid", die)
        with pytest.raises(Killed):
            run(source, tmp_path / "a.zarr")
    chosen = SMALL
    if change == "source":
        source = mrc(tmp_path / "tomo.mrc", voxels_of("uint16", (22, 70, 131), seed=9))
    else:
        chosen = ConvertSettings(version="0.5", chunks=(4, 16, 16))
    events: list[Event] = []
    run(source, tmp_path / "a.zarr", chosen, on_event=events.append)
    assert any(isinstance(event, Notice) and "from the beginning" in event.message for event in events)
    assert content(tmp_path / "a.zarr") == content(run(source, tmp_path / "b.zarr", chosen))


def test_a_stranger_at_the_partial_place_is_not_deleted(tmp_path: Path, source: Path) -> None:
    stranger = tmp_path / "a.zarr.partial"
    zarr.open_group(stranger, mode="w", zarr_format=2)
    with pytest.raises(OutputExistsError, match="holds something else"):
        run(source, tmp_path / "a.zarr")
    assert (stranger / ".zgroup").exists()


def test_existing_destinations(tmp_path: Path, source: Path) -> None:
    destination = tmp_path / "a.zarr"
    destination.mkdir()
    (destination / "thesis.txt").write_text("precious")
    for overwrite, said in ((False, "exists already"), (True, "is no Zarr")):
        with pytest.raises(OutputExistsError, match=said):
            run(source, destination, overwrite=overwrite)
    assert (destination / "thesis.txt").read_text() == "precious"
    old = tmp_path / "old.zarr"
    zarr.create_array(old, shape=(2, 2, 2), dtype="u1", zarr_format=2)
    run(source, old, overwrite=True)
    np.testing.assert_array_equal(read(old)[0], read(source)[0])
    assert not (old / ".zarray").exists()
    assert not list(tmp_path.glob("*.replaced"))


def test_a_failed_overwrite_keeps_the_old_store(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = run(source, tmp_path / "a.zarr")
    before = content(old)

    async def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalStore, "set", full)
    with pytest.raises(OutputError, match="Free some space"):
        run(source, old, ConvertSettings(chunks=(8, 8, 8)), overwrite=True)
    assert content(old) == before


def test_a_full_disk_keeps_finished_layers(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LocalStore.set

    async def full(self: LocalStore, key: str, *rest: Any, **more: Any) -> None:
        if key.startswith("0/3/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await original(self, key, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", full)
        with pytest.raises(OutputError, match="Free some space"):
            run(source, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    events: list[Event] = []
    run(source, tmp_path / "a.zarr", on_event=events.append)
    assert events[0] == Started("convert", total=22, done=12)
    assert content(tmp_path / "a.zarr") == content(run(source, tmp_path / "b.zarr"))


def test_the_source_is_never_its_own_destination(tmp_path: Path, source: Path) -> None:
    store = run(source, tmp_path / "a.zarr")
    before = content(store)
    for destination in (store, store / "inner", tmp_path):
        with pytest.raises(SettingsError, match="lie in each other"):
            run(store, destination, overwrite=True)
    assert content(store) == before


_COMMAND = [sys.executable, "-m", "etsam_zarr_cli.main", "convert", "tomo.mrc", "a.zarr", "--chunks", "2,16,16"]


def test_killed_for_real_the_same_command_gives_the_identical_store(tmp_path: Path) -> None:
    mrc(tmp_path / "tomo.mrc", voxels_of("uint16", (60, 100, 100)))
    run(tmp_path / "tomo.mrc", tmp_path / "whole.zarr", ConvertSettings(chunks=(2, 16, 16)))
    ledger = tmp_path / "a.zarr.partial" / convert_ledger.LEDGER
    process = subprocess.Popen(_COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (ledger.exists() and json.loads(ledger.read_bytes())["layers"] >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a.zarr").exists()
    subprocess.run(_COMMAND, cwd=tmp_path, check=True, capture_output=True)
    assert content(tmp_path / "a.zarr") == content(tmp_path / "whole.zarr")


_MEASURED = """
import sys
from etsam_zarr_cli.main import main
code = main(sys.argv[1:])
print("peak", int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))
sys.exit(code)
"""


def peak_of_converting(folder: Path, slices: int) -> int:
    """Return the peak resident memory, in kB, of converting a sparse MRC of ``slices`` x 512 x 512 float32."""
    path = write_raw_mrc(folder / f"{slices}.mrc", np.zeros((2, 512, 512), np.float32))
    with path.open("r+b") as file:
        file.seek(8)
        file.write(slices.to_bytes(4, "little"))
        file.truncate(1024 + slices * 512 * 512 * 4)
    result = subprocess.run(
        [sys.executable, "-c", _MEASURED, "convert", str(path), str(folder / f"{slices}.zarr")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(result.stdout.split("peak ")[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in other units elsewhere")
def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    peaks = [peak_of_converting(tmp_path, slices) for slices in (64, 512)]
    assert peaks[1] < 1.1 * peaks[0]  # 67 MB against 537 MB of voxels
