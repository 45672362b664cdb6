"""Runs that cut slices into tiles: equal to the same in memory, resumed exactly, and without seams.

Compared: full-resolution, blended logits of both stages, every voxel, to the last bit in float32, with the untrained
model whose output follows its memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiled_reference
import tiny
import torch
import zarr
from etsam_zarr_cli.main import main

from etsam_zarr.config import Settings, resolve_settings
from etsam_zarr.errors import FingerprintError
from etsam_zarr.events import Advanced, Event, OnEvent, Started, ignore
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.modelspec import ModelSpec
from etsam_zarr.pipeline import RunSummary, run
from etsam_zarr.plan import plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.scores import final_scores
from etsam_zarr.stage_arrays import STAGES, Stage

# Two tiles of 256 along each axis, overlapping by 212 and 92.
SHAPE = (5, 300, 420)
STARTS = ((0, 44), (0, 164))
OVERLAP = 32


@pytest.fixture(scope="module")
def predictors(seeded_spec: ModelSpec) -> tuple[Any, Any]:
    built = seeded_spec.build("cpu"), seeded_spec.build("cpu")
    seeded_spec.load(built[0], 1)
    seeded_spec.load(built[1], 2)
    return built


def stream(
    voxels: npt.NDArray[np.float32], destination: Path, spec: ModelSpec, settings: Settings, *, slab: int = 3,
    on_event: OnEvent = ignore,
) -> RunSummary:  # fmt: skip
    with tiny.ArrayVolume(voxels) as volume:
        plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4, slab=slab)
        request = RunRequest(plan, settings, spec, "float32", torch.device("cpu"))
        return run(volume, destination, request, on_event=on_event)


def logits_of(summary: RunSummary) -> list[npt.NDArray[np.float32]]:
    whole = Span(0, summary.store.shape[0])
    return [final_scores(summary.store, 1).read(whole), final_scores(summary.store, 2).read(whole)]


def of_reference(settings: Settings) -> dict[str, Any]:
    names = ("stage1_prompt", "stage2_prompt", "grid_interval", "stage1_logit_threshold")
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize(
    ("shape", "starts", "profile"),
    [
        (SHAPE, STARTS, "etsam-v1"),
        ((3, 300, 420), STARTS, "etsam-v2"),
        # Smaller than a tile along y: the tile goes on with its mirror image.
        ((5, 100, 300), ((0,), (0, 44)), "etsam-v1"),
    ],
)
def test_tiles_equal_the_same_in_memory(
    shape: Shape3, starts: tiled_reference.Starts, profile: str, seeded_spec: ModelSpec, predictors: tuple[Any, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    voxels = tiny.texture(shape)
    settings = resolve_settings(profile, grid_interval=3, overlap=OVERLAP)
    expected = tiled_reference.tiles(
        predictors, voxels, starts, 256, settings.normalize_method, **of_reference(settings)
    )
    summary = stream(voxels, tmp_path / "run.etsam.zarr", seeded_spec, settings)
    assert summary.store.stage(1).logits.shape[0] == len(starts[0]) * len(starts[1])
    for got, wanted in zip(logits_of(summary), expected, strict=True):
        assert 0.05 < np.mean(wanted[1:] > settings.logit_threshold) < 0.95
        np.testing.assert_array_equal(got, wanted)
    mask = zarr.open_array(summary.store.path / "labels" / "membranes" / "0", mode="r")
    np.testing.assert_array_equal(np.asarray(mask), expected[1] > settings.logit_threshold)


# With a grid of 10, two of eleven slices are prompted.
@pytest.mark.parametrize(("profile", "depth"), [("etsam-v1", 11), ("etsam-v2", 3)])
def test_quadrants_equal_etsams_split_processing(
    profile: str, depth: int, seeded_spec: ModelSpec, predictors: tuple[Any, Any], tmp_path: Path
) -> None:
    # Odd sides: quadrants of different sizes.
    voxels = tiny.texture((depth, 61, 85))
    settings = resolve_settings(profile, tiling="quadrants")
    expected = tiled_reference.quadrants(predictors, voxels, settings.normalize_method, **of_reference(settings))
    summary = stream(voxels, tmp_path / "run.etsam.zarr", seeded_spec, settings)
    assert summary.store.record["prompted"]["2"] == ([0, 10] if profile == "etsam-v1" else [0])
    for got, wanted in zip(logits_of(summary), expected, strict=True):
        assert 0.05 < np.mean(wanted[1:] > settings.logit_threshold) < 0.95
        np.testing.assert_array_equal(got, wanted)


class Stop(BaseException):
    """What a test stops a run with; an error would stop one job of several."""


@pytest.mark.parametrize("tiling", ["tiles", "quadrants"])
def test_a_tiled_run_that_is_stopped_anywhere_ends_as_an_undisturbed_one(
    tiling: str, seeded_spec: ModelSpec, tmp_path: Path
) -> None:
    voxels = tiny.texture((5, 60, 300))
    settings = resolve_settings(tiling=tiling, overlap=OVERLAP, grid_interval=3, prompted_slices="predict")
    undisturbed, store = tmp_path / "undisturbed.etsam.zarr", tmp_path / "stopped.etsam.zarr"
    stream(voxels, undisturbed, seeded_spec, settings)

    def stop_after(slices: int) -> OnEvent:
        left = slices

        def listen(event: Event) -> None:
            nonlocal left
            if isinstance(event, Advanced) and event.name.startswith("stage"):
                left -= event.count
                if left < 0:
                    raise Stop

        return listen

    stops, computed = 0, 0
    while True:
        seen: list[Event] = []
        stopper = stop_after(8)

        def both(event: Event, seen: list[Event] = seen, stopper: OnEvent = stopper) -> None:
            seen.append(event)
            stopper(event)

        try:
            stream(voxels, store, seeded_spec, settings, on_event=both)
        except Stop:
            stops += 1
        else:
            break
        finally:
            advanced = [e.count for e in seen if isinstance(e, Advanced) and e.name.startswith("stage")]
            computed += sum(advanced)
    tiles = len(plan_run((5, 60, 300), settings, seeded_spec.config, voxel_bytes=4).tiles)
    assert stops >= tiles
    assert computed < 2 * tiles * 5 + stops * 4, "only slabs in flight are computed again"
    tiny.assert_same_results(undisturbed, store)
    for stage in (1, 2):
        mine, theirs = (
            np.asarray(zarr.open_array(path / "stages" / str(stage) / "backwards", mode="r"))
            for path in (undisturbed, store)
        )
        assert mine.any()
        np.testing.assert_array_equal(mine, theirs)


def test_progress_counts_the_slices_of_all_tiles(seeded_spec: ModelSpec, tmp_path: Path) -> None:
    seen: list[Event] = []
    voxels = tiny.texture((4, 60, 300))
    stream(voxels, tmp_path / "run.etsam.zarr", seeded_spec, resolve_settings("etsam-v2"), on_event=seen.append)
    for stage in ("stage 1", "stage 2"):
        (started,) = [event for event in seen if isinstance(event, Started) and event.name == stage]
        assert (started.total, started.done) == (8, 0)
        assert sum(event.count for event in seen if isinstance(event, Advanced) and event.name == stage) == 8


def test_another_tiling_or_overlap_is_another_run(seeded_spec: ModelSpec, tmp_path: Path) -> None:
    voxels, store = tiny.texture((3, 40, 300)), tmp_path / "run.etsam.zarr"
    stream(voxels, store, seeded_spec, resolve_settings("etsam-v2"))
    # What auto became may be given, in voxels as well.
    given = resolve_settings("etsam-v2", tiling="tiles", overlap=OVERLAP)
    assert stream(voxels, store, seeded_spec, given).already_finished
    with pytest.raises(FingerprintError, match=r'tiling \("tiles" there, "whole" now\)'):
        stream(voxels, store, seeded_spec, resolve_settings("etsam-v2", tiling="whole"))
    with pytest.raises(FingerprintError, match=r"overlap \(32 there, 64 now\)"):
        stream(voxels, store, seeded_spec, resolve_settings("etsam-v2", overlap=0.25))


def test_all_commands_take_a_tiled_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run, status, export, threshold, evaluate, preview and postprocess, through the real command."""
    import mrcfile

    voxels = tiny.texture((12, 80, 300))
    source, store = tiny.write_tomogram(tmp_path / "wide.mrc", voxels), tmp_path / "wide.etsam.zarr"
    arguments = [str(source), *tiny.OPTIONS, "--profile", "etsam-v2"]
    assert main(["plan", *arguments]) == 0
    assert "2 tiles of 256 x 256 that overlap by 32 or more" in capsys.readouterr().out
    assert main(["run", *arguments, "--post-process", "--min-slices", "2"]) == 0
    capsys.readouterr()
    assert main(["status", str(store)]) == 0
    assert "stage 2    24/24 slices of 2 tiles" in capsys.readouterr().out
    assert main(["status", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["stages"]["1"]
    assert (told["slices"], told["total"]) == (24, 24)
    logits, mask = tmp_path / "logits.mrc", tmp_path / "mask.mrc"
    assert main(["export", str(store), "--logits", str(logits), "--mask", str(mask)]) == 0
    with mrcfile.open(logits) as file:
        exported = file.data.copy()
    assert exported.shape == voxels.shape
    with mrcfile.open(mask) as file:
        np.testing.assert_array_equal(file.data != 0, exported > -0.25)
    assert main(["threshold", str(store), "--logit-threshold", "1.5"]) == 0
    thresholded = zarr.open_array(store / "labels" / "membranes" / "0", mode="r")
    np.testing.assert_array_equal(np.asarray(thresholded) != 0, exported > 1.5)
    capsys.readouterr()
    assert main(["evaluate", str(store), str(mask), "--json", "--logit-threshold", "-0.25"]) == 0
    assert '"dice": 1.0' in capsys.readouterr().out
    assert main(["preview", str(store), "-o", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


CELL = 16
"""Voxels of the image encoder's cells: the differences of neighbouring columns depend on where in a cell they lie."""


def column_differences(summary: RunSummary, stage: Stage) -> npt.NDArray[np.float64]:
    """Mean absolute logit difference of neighbouring columns, over all slices but the prompted one."""
    logits = final_scores(summary.store, stage).read(Span(1, summary.store.shape[0]))
    return np.abs(np.diff(logits, axis=2)).mean(axis=(0, 1), dtype=float)


@pytest.mark.parametrize("width", [480, 471])
def test_tiles_leave_no_seam(width: int, seeded_spec: ModelSpec, tmp_path: Path) -> None:
    """Two tiles; where one begins or ends, neighbouring columns differ no more than elsewhere in the other."""
    voxels = tiny.texture((4, 256, width))
    summary = stream(voxels, tmp_path / "run.etsam.zarr", seeded_spec, resolve_settings("etsam-v2"))
    start, stop = width - 256, 256
    for stage in STAGES:
        differences = column_differences(summary, stage)
        left = [differences[x] for x in range(CELL, start - CELL) if (x - start + 1) % CELL == 0]
        right = [differences[x] for x in range(stop + CELL, width - CELL - 1) if (x - stop + 1) % CELL == 0]
        assert differences[start - 1] <= 1.05 * np.mean(left)
        assert differences[stop - 1] <= 1.05 * np.mean(right)
        elsewhere = np.concatenate([differences[CELL:start], differences[stop : width - CELL]])
        assert differences[start:stop].max() <= 1.05 * elsewhere.max()
        assert differences[start:stop].mean() <= 1.05 * elsewhere.mean()


def test_quadrants_do(seeded_spec: ModelSpec, tmp_path: Path) -> None:
    """What the test above would find, were there a seam."""
    settings = resolve_settings("etsam-v2", tiling="quadrants", grid_interval=50)
    summary = stream(tiny.texture((4, 256, 480)), tmp_path / "run.etsam.zarr", seeded_spec, settings)
    for stage in STAGES:
        differences = column_differences(summary, stage)
        assert differences[239] > 3 * np.delete(differences, 239).max()
