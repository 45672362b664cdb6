"""The plan of a run, in integers."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.config import PROFILES, Settings
from etsam_zarr.errors import SettingsError
from etsam_zarr.geometry import Shape3, Span
from etsam_zarr.model_config import read_model_config
from etsam_zarr.plan import DEFAULT_SLAB, RunPlan, Seams, cut_windows, plan_run

ETSAM = read_model_config("sam2.1_hiera_b+")
V1, V2 = PROFILES["etsam-v1"], PROFILES["etsam-v2"]


def _plan(shape: Shape3, settings: Settings = V1, *, slab: int | None = None, voxel_bytes: int = 4) -> RunPlan:
    return plan_run(shape, settings, ETSAM, voxel_bytes=voxel_bytes, slab=slab)


def test_a_common_tomogram() -> None:
    plan = _plan((500, 924, 956))
    assert (plan.slab, plan.slabs) == (16, 32)
    assert [(str(tile.y), str(tile.x)) for tile in plan.tiles] == [("0:924", "0:956")]
    assert plan.windows == (Span(0, 500),)
    assert plan.squeezed < 1
    first, second = plan.stages
    assert (first.prompt, first.prompted) == ("grid_zero", (0,))
    assert (second.prompt, second.prompted) == ("stage1_partial", tuple(range(0, 500, 50)))


def test_memory_tokens_are_counted_as_sam2_does() -> None:
    # A memory has (1024 / 16)^2 tokens, a pointer of 256 channels is split into 4 tokens of 64.
    first, second = _plan((500, 924, 956)).stages
    assert first.first_tokens == 1 * 4096 + 4
    assert first.last_tokens == (1 + 6) * 4096 + (1 + 15) * 4
    assert first.attention_growth == 1
    assert second.first_tokens == 10 * 4096 + 4
    assert second.last_tokens == (10 + 6) * 4096 + (10 + 15) * 4
    assert second.attention_growth == pytest.approx(second.last_tokens / first.last_tokens)


def test_the_cost_of_a_slice_grows_with_depth_only_where_many_are_prompted() -> None:
    for settings, grows in ((V1, True), (V2, False)):
        shallow, deep = (_plan((depth, 924, 956), settings).stages[1] for depth in (200, 2000))
        assert (deep.last_tokens > shallow.last_tokens) is grows


@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 20_000), st.integers(1, 20_000)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.none(), st.integers(1, 4000)),
)
def test_slabs_cover_the_depth_and_default_ones_are_small(shape: Shape3, voxel_bytes: int, slab: int | None) -> None:
    plan = _plan(shape, slab=slab, voxel_bytes=voxel_bytes)
    assert (plan.slabs - 1) * plan.slab < shape[0] <= plan.slabs * plan.slab
    if slab is None:
        assert 1 <= plan.slab <= DEFAULT_SLAB
        tile = max(tile.y.size * tile.x.size for tile in plan.tiles)
        assert plan.slab == 1 or plan.slab * tile * voxel_bytes <= 512 * 2**20
    else:
        assert plan.slab == slab
    assert 1 <= plan.pass_slab <= plan.slab
    assert plan.pass_slab == 1 or plan.pass_slab * shape[1] * shape[2] * voxel_bytes <= 256 * 2**20


def test_a_slice_larger_than_the_image_is_cut_into_tiles_and_squeezed_only_where_asked_for() -> None:
    plan = _plan((10, 1024, 4096))
    assert plan.squeezed == 1
    assert [(str(tile.y), str(tile.x)) for tile in plan.tiles] == [
        ("0:1024", "0:1024"), ("0:1024", "768:1792"), ("0:1024", "1536:2560"), ("0:1024", "2304:3328"),
        ("0:1024", "3072:4096"),
    ]  # fmt: skip
    assert _plan((10, 1024, 4096), dataclasses.replace(V1, tiling="whole")).squeezed == 4


def test_the_settings_of_a_plan_say_what_auto_became_and_the_overlap_in_voxels() -> None:
    small, large = (_plan((10, size, size)).settled(V1) for size in (1024, 1025))
    assert (small.tiling, large.tiling) == ("whole", "tiles")
    assert "overlap" not in small.of_logits()
    assert large.of_logits()["overlap"] == 128
    # Whoever gives what auto became goes on with the same run.
    given = dataclasses.replace(V1, tiling="tiles", overlap=128)
    assert _plan((10, 1025, 1025), given).settled(given).of_logits() == large.of_logits()


@pytest.mark.parametrize("slab", [0, -3])
def test_a_slab_needs_slices(slab: int) -> None:
    with pytest.raises(SettingsError, match=f"slab of {slab} slices.*--slab 1 or more"):
        _plan((10, 20, 30), slab=slab)


@given(st.integers(1, 5000), st.integers(1, 50), st.integers(1, 64))
def test_windows_cover_the_depth_and_begin_with_a_chunk(depth: int, count: int, unit: int) -> None:
    windows = cut_windows(depth, count, unit=unit)
    assert windows[0].start == 0
    assert windows[-1].stop == depth
    assert all(one.stop == other.start for one, other in itertools.pairwise(windows))
    assert all(window.size and window.start % unit == 0 for window in windows)
    assert len(windows) == min(count, -(-depth // unit))
    # Equal but for a chunk, and for the last one's end.
    sizes = [window.size for window in windows[:-1]]
    assert not sizes or max(sizes) - min(sizes) <= unit


def test_windows_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="0 windows are not possible; give --windows 1 or more"):
        cut_windows(100, 0, unit=16)
    with pytest.raises(SettingsError, match=r"context of -1 slices.*--context 0 or more"):
        Seams(-1, 0.0)
    for tolerance in (-0.5, float("inf"), float("nan")):
        with pytest.raises(SettingsError, match="--seam-tolerance 0 or more"):
            Seams(0, tolerance)
    windows = cut_windows(100, 3, unit=16)
    with pytest.raises(SettingsError, match=r"Stream mode has one window, not 3\. Give --mode parallel"):
        plan_run((100, 30, 40), V1, ETSAM, voxel_bytes=4, windows=windows)
    plan = plan_run((100, 30, 40), V1, ETSAM, voxel_bytes=4, windows=windows, seams=Seams(4, 0.5))
    assert plan.slabs == 2 + 2 + 3
    assert plan.of_windows() == {
        "mode": "parallel", "windows": [[0, 32], [32, 64], [64, 100]], "context": 4, "seam_tolerance": 0.5,
    }  # fmt: skip
    assert _plan((100, 30, 40)).of_windows() == {"mode": "stream"}
