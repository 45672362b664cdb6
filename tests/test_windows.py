"""Windows computed on guesses and repaired are, with tolerance 0, what one walk through the depth gives.

Compared: every array of the store, to the last bit, on the CPU in float32, with a model whose output follows its
memory so closely that a wrong guess is seen for the whole window.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import zarr
from etsam_zarr_cli.main import main
from killing import Records, kept, kill_when, still_running_at_a_random_moment

from etsam_zarr.config import Settings, resolve_settings
from etsam_zarr.errors import FingerprintError
from etsam_zarr.events import Advanced, Event, Notice, OnEvent, ignore
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Block, Ledger, RepairRecord
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.pipeline import run
from etsam_zarr.plan import Seams, cut_windows, plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.runstore import RunStore
from etsam_zarr.seams import seams
from etsam_zarr.slabs import SlabValues
from etsam_zarr.stage_arrays import LOGIT_CHUNK_DEPTH, StageArrays

DEPTH = 40
SHAPE = (DEPTH, 30, 41)
SETTINGS = {
    "etsam-v1": resolve_settings("etsam-v1", grid_interval=7),
    "etsam-v2": resolve_settings("etsam-v2"),
    # Slices 14 and 28 are prompted shortly before windows end, so that their predictions look beyond.
    "predicted": resolve_settings("etsam-v1", grid_interval=14, prompted_slices="predict"),
}
LENIENT = Seams(4, 1e9)
CASES = {"predicted": (SETTINGS["predicted"], Seams(4, 0.0)), "lenient": (SETTINGS["etsam-v2"], LENIENT)}
Streamed = Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Repaired:
    """An undisturbed run in two windows whose repairs agree as soon as they may."""

    store: RunStore


class Stop(Exception):
    """What a test stops a run with."""


def compute(
    store: Path, spec: ModelSpec, settings: Settings, *, windows: int = 1, seams: Seams | None = None, slab: int = 16,
    on_event: OnEvent = ignore, voxels: Any = None,
) -> RunStore:  # fmt: skip
    volume = tiny.ArrayVolume(tiny.texture(SHAPE) if voxels is None else voxels)
    depth = volume.info.shape[0]
    plan = plan_run(
        volume.info.shape, settings, spec.config, voxel_bytes=4, slab=slab, seams=seams,
        windows=cut_windows(depth, windows, unit=LOGIT_CHUNK_DEPTH),
    )  # fmt: skip
    request = RunRequest(plan, settings, spec, "float32", torch.device("cpu"))
    return run(volume, store, request, on_event=on_event).store


def arrays_of(store: Path) -> dict[str, np.ndarray]:
    metadata = [path.parent for path in store.rglob(".zarray")]
    return {str(path.relative_to(store)): np.asarray(zarr.open_array(path, mode="r")[...]) for path in metadata}


def assert_same(got: Path, wanted: dict[str, np.ndarray]) -> None:
    mine = arrays_of(got)
    assert mine.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(mine[name], wanted[name], err_msg=name)


@pytest.fixture(scope="module")
def streamed(seeded_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Streamed:
    """All arrays of a run in stream mode, by the name of its settings."""
    folder, known = tmp_path_factory.mktemp("streamed"), {}

    def arrays(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = arrays_of(compute(folder / f"{name}.etsam.zarr", seeded_spec, SETTINGS[name]).path)
        return known[name]

    return arrays


@pytest.fixture(scope="module")
def repaired(seeded_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    path = tmp_path_factory.mktemp("repaired") / "run.etsam.zarr"
    settings, how = CASES["lenient"]
    return Repaired(compute(path, seeded_spec, settings, windows=2, seams=how))


def stop_in_seams(slices: int) -> OnEvent:
    """Listen until a repair of stage 2 has computed so many slices, then raise."""
    advanced = 0

    def listen(event: Event) -> None:
        nonlocal advanced
        if isinstance(event, Advanced) and event.name == "stage 2 seams":
            advanced += event.count
            if advanced == slices:
                raise Stop

    return listen


@pytest.fixture(scope="module")
def before_repair(seeded_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run that was stopped when the repair of stage 2 had begun, by the name of its case."""
    folder, known = tmp_path_factory.mktemp("before"), set()

    def store(name: str) -> Path:
        path, (settings, how) = folder / f"{name}.etsam.zarr", CASES[name]
        if name not in known:
            with pytest.raises(Stop):
                compute(path, seeded_spec, settings, windows=2, seams=how, on_event=stop_in_seams(1))
            known.add(name)
        return path

    return store


@pytest.mark.parametrize(
    ("name", "windows", "context"),
    [
        ("etsam-v1", 2, 8),
        ("predicted", 3, 4),
        pytest.param("etsam-v2", 3, 0, marks=pytest.mark.slow),
        pytest.param("etsam-v1", 3, 16, marks=pytest.mark.slow),
        pytest.param("predicted", 2, 0, marks=pytest.mark.slow),
        pytest.param("etsam-v2", 2, 100, marks=pytest.mark.slow),
    ],
)
def test_tolerance_0_equals_stream_mode(
    name: str, windows: int, context: int, seeded_spec: ModelSpec, tmp_path: Path, streamed: Streamed
) -> None:
    store = compute(tmp_path / "a.etsam.zarr", seeded_spec, SETTINGS[name], windows=windows, seams=Seams(context, 0.0))
    assert_same(store.path, streamed(name))
    found = seams(store, Ledger(store.path / "ledger"), 2)
    starts = [span.start for span in cut_windows(DEPTH, windows, unit=LOGIT_CHUNK_DEPTH)][1:]
    assert [seam.z for seam in found] == starts
    # A context that reaches back to slice 0 is no guess; else the worst case is wanted here.
    assert [seam.agreed for seam in found] == [context >= start for start in starts]
    assert not (store.path / "state" / "stage2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("windows", [2, 3, 4])
def test_four_windows_and_their_rounds(windows: int, seeded_spec: ModelSpec, tmp_path: Path) -> None:
    voxels = tiny.texture((60, 30, 41))
    whole = compute(tmp_path / "whole.etsam.zarr", seeded_spec, SETTINGS["etsam-v2"], voxels=voxels)
    cut = compute(
        tmp_path / "cut.etsam.zarr", seeded_spec, SETTINGS["etsam-v2"], windows=windows, seams=Seams(4, 0.0),
        voxels=voxels,
    )  # fmt: skip
    assert_same(cut.path, arrays_of(whole.path))


def test_agreement_within_the_tolerance_ends_a_repair(repaired: Repaired) -> None:
    ledger = Ledger(repaired.store.path / "ledger")
    (seam,) = seams(repaired.store, ledger, 2)
    assert seam.agreed
    # The 16 slices that a slice may depend on agree at once, and 4 slices of context were walked before.
    assert seam.recomputed == 16 + 4
    block = repaired.store.blocks(2)[1]
    differences = [value for slab in ledger.slabs(block, generation=1) for value in slab.differences]
    assert (seam.difference, seam.largest) == tuple(max(values) for values in zip(*differences, strict=True))
    assert 0 < seam.difference < seam.largest < LENIENT.tolerance
    assert ledger.accepted(block).keys() == set(range(16, DEPTH))


def test_the_guess_is_kept_behind_a_repair_that_agreed(repaired: Repaired, streamed: Streamed) -> None:
    mine, exact = arrays_of(repaired.store.path)["stages/2/logits"], streamed("etsam-v2")["stages/2/logits"]
    # Stage 1 was repaired as leniently, so that stage 2's input differs from slice 32 on.
    np.testing.assert_array_equal(mine[0, :32], exact[0, :32])
    assert np.abs(mine[0, 32:] - exact[0, 32:]).max() > 0


@pytest.mark.parametrize("name", ["predicted", "lenient"])
@pytest.mark.parametrize("slices", [1, 5, 9, 13, 16])
def test_stopped_in_a_repair(
    slices: int, name: str, seeded_spec: ModelSpec, tmp_path: Path, before_repair: Callable[[str], Path],
    streamed: Streamed, repaired: Repaired,
) -> None:  # fmt: skip
    """Stop behind every slab of a repair; it goes on there, and compares with what was there before it."""
    settings, how = CASES[name]
    store = Path(shutil.copytree(before_repair(name), tmp_path / "run.etsam.zarr"))
    with pytest.raises(Stop):
        compute(store, seeded_spec, settings, windows=2, seams=how, on_event=stop_in_seams(slices))
    counted, warnings = Counter[str](), []

    def listen(event: Event) -> None:
        if isinstance(event, Advanced):
            counted[event.name] += event.count
        elif isinstance(event, Notice) and event.warning:
            warnings.append(event.message)

    compute(store, seeded_spec, settings, windows=2, seams=how, on_event=listen)
    assert not warnings
    recomputed = 24 if name == "predicted" else 16
    assert counted["stage 2 seams"] == recomputed - (slices - 1) // 4 * 4
    assert "stage 1" not in counted
    assert counted["stage 2"] == 0
    assert_same(store, streamed("predicted") if name == "predicted" else arrays_of(repaired.store.path))
    if name == "lenient":
        block = repaired.store.blocks(2)[1]
        mine, theirs = (Ledger(path / "ledger").slabs(block, generation=1) for path in (store, repaired.store.path))
        assert [slab.differences for slab in mine] == [slab.differences for slab in theirs]


@pytest.mark.parametrize("point", ["ended", "copying", "copied", "cleared"])
def test_stopped_while_slices_take_their_place(
    point: str, seeded_spec: ModelSpec, tmp_path: Path, before_repair: Callable[[str], Path], repaired: Repaired,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings, how = CASES["lenient"]
    store = Path(shutil.copytree(before_repair("lenient"), tmp_path / "run.etsam.zarr"))
    note, write = Ledger.note_repair, SlabValues.write

    def stopping_note(ledger: Ledger, block: Block, record: RepairRecord) -> None:
        if point == "cleared" and record.progress == "promoted":
            raise Stop
        note(ledger, block, record)
        if record.progress == point:
            raise Stop

    def stopping_write(values: SlabValues, arrays: StageArrays, tile: int, span: Span) -> None:
        if point == "copying" and "repair" not in str(arrays.logits.store_path):
            values = SlabValues(values.logits, values.scores * 0, values.pointers)
            write(values, arrays, tile, span)
            raise Stop
        write(values, arrays, tile, span)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "note_repair", stopping_note)
        patch.setattr(SlabValues, "write", stopping_write)
        with pytest.raises(Stop):
            compute(store, seeded_spec, settings, windows=2, seams=how)
    compute(store, seeded_spec, settings, windows=2, seams=how)
    assert_same(store, arrays_of(repaired.store.path))


@pytest.mark.parametrize("damage", ["journal", "state", "accepted"])
def test_damage_is_noticed(
    damage: str, seeded_spec: ModelSpec, tmp_path: Path, before_repair: Callable[[str], Path], repaired: Repaired
) -> None:
    settings, how = CASES["lenient"]
    store = Path(shutil.copytree(before_repair("lenient"), tmp_path / "run.etsam.zarr"))
    with pytest.raises(Stop):
        compute(store, seeded_spec, settings, windows=2, seams=how, on_event=stop_in_seams(9))
    if damage == "journal":
        zarr.open_array(store / "stages/2/repair/object_pointer", mode="r+")[0, 18, 3] = 7.0
    elif damage == "state":
        (state,) = (store / "state" / "stage2").rglob("generation001/recent-*.safetensors")
        state.unlink()
    else:
        zarr.open_array(store / "stages/2/object_score", mode="r+")[0, 30] = 7.0
    warnings: list[str] = []
    compute(
        store, seeded_spec, settings, windows=2, seams=how,
        on_event=lambda event: warnings.append(event.message) if isinstance(event, Notice) and event.warning else None,
    )  # fmt: skip
    (warning,) = warnings
    if damage == "accepted":
        assert "Stage 2 is computed again from its start. Slice 30 of stage 2 is damaged" in warning
    else:
        assert "The repair of slices 16:40 of stage 2 is begun again" in warning
    assert_same(store, arrays_of(repaired.store.path))


def test_modes_and_windows_are_not_mixed(seeded_spec: ModelSpec, repaired: Repaired) -> None:
    path, settings = repaired.store.path, CASES["lenient"][0]
    for windows, how, message in (
        (1, None, r'mode \("parallel" there, "stream" now\)'),
        (3, LENIENT, r"windows \("),
        (2, Seams(4, 0.5), r"seam_tolerance \(1000000000.0 there, 0.5 now\)"),
        (2, Seams(8, LENIENT.tolerance), r"context \(4 there, 8 now\)"),
    ):
        with pytest.raises(FingerprintError, match=message):
            compute(path, seeded_spec, settings, windows=windows, seams=how)


def test_status_says_what_became_of_the_seams(
    repaired: Repaired, before_repair: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(repaired.store.path)]) == 0
    assert (
        "Stage 2, tile 0, windows meet at slice 16: 20 slices recomputed, largest difference" in capsys.readouterr().out
    )
    assert main(["status", str(repaired.store.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(seam["stage"], seam["z"], seam["settled"]) for seam in told["seams"]] == [(1, 16, True), (2, 16, True)]
    unfinished = before_repair("lenient")
    assert main(["status", str(unfinished)]) == 0
    text = capsys.readouterr().out
    assert "stage 2    40/40 slices" in text
    assert "windows do not all agree yet" in text
    assert main(["export", str(unfinished), "--logits", str(unfinished.with_name("a.mrc"))]) == 1
    assert "windows do not all agree yet" in capsys.readouterr().err


def command(volume: Path, store: Path) -> list[str]:
    program = "import sys; from etsam_zarr_cli.main import main; sys.exit(main())"
    return [
        sys.executable, "-c", program, "run", str(volume), "-o", str(store), "--model", "seeded-256",
        "--precision", "float32", "--profile", "etsam-v2", "--threads", "1", "--mode", "parallel", "--windows", "2",
        "--context", "2", "--seam-tolerance", "0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "records",
    [
        [Path("generation001/0000016-0000020.json")],
        pytest.param(
            [Path("generation001") / name for name in ("repair.json", "0000016-0000020.json", "0000020-0000024.json")],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_in_a_repair(records: list[Path], seeded_spec: ModelSpec, tmp_path: Path) -> None:
    voxels = tiny.texture((24, 30, 41))
    source, store = tiny.write_tomogram(tmp_path / "tomo.mrc", voxels), tmp_path / "run.etsam.zarr"
    noted: Records = {}
    for stage in (2,) if len(records) == 1 else (1, 2):
        for record in records:
            there = store / "ledger" / f"stage{stage}" / "tile00000" / "window00001" / record
            with subprocess.Popen(command(source, store), stderr=subprocess.DEVNULL) as process:
                kill_when(process, there)
            noted = kept(noted, store)
    done = subprocess.run(command(source, store), check=True, capture_output=True, text=True)
    kept(noted, store)
    assert "windows meet at slice 16: " in done.stderr
    wanted = compute(tmp_path / "whole.etsam.zarr", seeded_spec, SETTINGS["etsam-v2"], voxels=voxels)
    assert_same(store, arrays_of(wanted.path))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_repair_all_windows_at_once(workers: int, tmp_path: Path, streamed: Streamed) -> None:
    """Each third window is repaired on the guess that its neighbour's end stays, and then again."""
    source = tiny.write_tomogram(tmp_path / "tomo.mrc", tiny.texture(SHAPE))
    store = tmp_path / "run.etsam.zarr"
    arguments = [*command(source, store), "--windows", "3", "--workers", str(workers), "--device", "cpu"]
    subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert_same(store, streamed("etsam-v2"))
    found, ledger = RunStore.open(store), Ledger(store / "ledger")
    repairs = [[repair.base for repair in ledger.repairs(block)] for block in found.blocks(2)]
    assert repairs[:2] == [[], [0]]
    # Unless the third's first repair began only when the second's had ended.
    assert repairs[2] in ([0, 1], [1])


@pytest.mark.slow
def test_windows_with_workers_killed_at_random_moments(tmp_path: Path, streamed: Streamed) -> None:
    """Repairs may be begun anew, from another guess, but no window's first computation is ever repeated."""
    source, store = tiny.write_tomogram(tmp_path / "tomo.mrc", tiny.texture(SHAPE)), tmp_path / "run.etsam.zarr"
    arguments = [*command(source, store), "--windows", "3", "--workers", "2", "--device", "cpu"]
    chance, killed, noted = random.Random(0), 0, Records()
    for _ in range(8):
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, text=True)
        killed += still_running_at_a_random_moment(process, store, chance, slabs=4)
        process.kill()
        process.wait()
        found = kept(noted, store)
        noted = {path: record for path, record in found.items() if path.parent.name == "generation000"}
    assert killed >= 5
    subprocess.run(arguments, check=True, capture_output=True)
    kept(noted, store)
    assert_same(store, streamed("etsam-v2"))


def test_the_command_refuses_what_does_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny.write_tomogram(tmp_path / "tomo.mrc", tiny.texture((40, 30, 41)))
    assert main(["plan", str(source), *tiny.OPTIONS, "--context", "4"]) == 1
    assert "--context belongs to parallel mode" in capsys.readouterr().err
    assert main(["plan", str(source), *tiny.OPTIONS, "--mode", "parallel", "--windows", "0"]) == 2
    assert main(["plan", str(source), *tiny.OPTIONS, "--mode", "parallel", "--windows", "9"]) == 0
    assert "3 windows" in capsys.readouterr().out, "no more than there are stored chunks"
    assert main(["plan", str(source), *tiny.OPTIONS, "--mode", "parallel", "--windows", "auto"]) == 0
    assert "1 window," in capsys.readouterr().out
