"""Streamed results against ETSAM in memory (tests/reference.py): a model whose output follows its memory, and the
bundled one, whose output means something.

Compared: full-resolution logits of both stages, every voxel, to the last bit in float32. Not compared: time, and
anything ETSAM does not return.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
import torch

from etsam_zarr.config import PROFILES, Precision, Settings, resolve_settings
from etsam_zarr.geometry import Span
from etsam_zarr.modelspec import ModelSpec, choose_model
from etsam_zarr.pipeline import RunSummary, run
from etsam_zarr.plan import plan_run
from etsam_zarr.run_request import RunRequest
from etsam_zarr.scores import final_scores
from etsam_zarr.sources import open_volume

SHAPE = (14, 37, 53)
INTERVAL = 4


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return choose_model("seeded-256")


@pytest.fixture(scope="module")
def predictors(spec: ModelSpec) -> tuple[Any, Any]:
    built = spec.build("cpu"), spec.build("cpu")
    spec.load(built[0], 1)
    spec.load(built[1], 2)
    return built


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(7)
    volume = rng.normal(size=SHAPE).astype(np.float32)
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    shell = np.abs(np.sqrt((z - 7) ** 2 + (y - 18) ** 2 + (x - 26) ** 2) - 12) < 2
    volume[shell] += 3
    return volume


@pytest.fixture(scope="module")
def volume_path(voxels: npt.NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import mrcfile

    path = tmp_path_factory.mktemp("volume") / "tomo.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(voxels)
        mrc.voxel_size = 10.0
    return path


def stream(
    path: Path, destination: Path, spec: ModelSpec, settings: Settings, *, slab: int = 7,
    precision: Precision = "float32",
) -> RunSummary:  # fmt: skip
    with open_volume(path) as volume:
        plan = plan_run(volume.info.shape, settings, spec.config, voxel_bytes=4, slab=slab)
        return run(volume, destination, RunRequest(plan, settings, spec, precision, torch.device("cpu")))


def in_memory(
    predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32], settings: Settings, *, autocast: bool = False
) -> tuple[reference.Volume, reference.Volume]:
    return reference.two_stages(
        predictors,
        voxels,
        normalize_method=settings.normalize_method,
        stage1_prompt=settings.stage1_prompt,
        stage2_prompt=settings.stage2_prompt,
        grid_interval=settings.grid_interval,
        stage1_logit_threshold=settings.stage1_logit_threshold,
        autocast=autocast,
    )


def streamed_logits(summary: RunSummary) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    whole = Span(0, summary.store.shape[0])
    return final_scores(summary.store, 1).read(whole), final_scores(summary.store, 2).read(whole)


def assert_crosses(logits: npt.NDArray[np.float32], threshold: float, *, least: float = 0.05) -> None:
    """Fail where equality would prove nothing because the result is all on or all off."""
    share = float(np.mean(logits[1:] > threshold))
    assert least < share < 0.95


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("slab", [1, 7, 100])
def test_profiles_equal_etsam(
    profile: str, slab: int, spec: ModelSpec, predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32],
    volume_path: Path, tmp_path: Path,
) -> None:  # fmt: skip
    settings = resolve_settings(profile, grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings)
    summary = stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings, slab=slab)
    for stage, (got, wanted) in enumerate(zip(streamed_logits(summary), expected, strict=True), start=1):
        assert_crosses(wanted, settings.logit_threshold)
        np.testing.assert_array_equal(got, wanted, err_msg=f"stage {stage}")
    assert summary.voxels == np.count_nonzero(expected[1] > settings.logit_threshold)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of PyTorch's, for the reference as well.

    A team in another thread lets those that wait sleep: beside other tests, a spinning team would take for ever.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1) as other:
        other.submit(torch.ones(1000, 1000).exp).result()
        yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("profile", "precision"), [("etsam-v1", "float32"), ("etsam-v2", "float32"), ("etsam-v1", "bfloat16")]
)
def test_encoding_ahead_equals_etsam(
    profile: str, precision: Precision, spec: ModelSpec, predictors: tuple[Any, Any],
    voxels: npt.NDArray[np.float32], volume_path: Path, tmp_path: Path, encoding_ahead: list[int],
) -> None:  # fmt: skip
    """Some operations round differently with fewer threads, so the two that then work at once must have all of them."""
    settings = resolve_settings(profile, grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings, autocast=precision == "bfloat16")
    summary = stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings, precision=precision)
    assert encoding_ahead == [2] * 4, "each slab of both stages, with as many threads as the reference"
    for stage, (got, wanted) in enumerate(zip(streamed_logits(summary), expected, strict=True), start=1):
        assert_crosses(wanted, settings.logit_threshold)
        np.testing.assert_array_equal(got, wanted, err_msg=f"stage {stage}")


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_threads_equal_etsam(
    precision: Precision, spec: ModelSpec, predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32],
    volume_path: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """In float32 with images in pairs: two threads share them out otherwise than one image."""
    settings = resolve_settings("etsam-v2", grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings, autocast=precision == "bfloat16")
    summary = stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings, precision=precision)
    for stage, (got, wanted) in enumerate(zip(streamed_logits(summary), expected, strict=True), start=1):
        assert_crosses(wanted, settings.logit_threshold)
        np.testing.assert_array_equal(got, wanted, err_msg=f"stage {stage}")


@pytest.mark.parametrize("stage2_prompt", ["zero", "grid", "grid_zero", "stage1_partial"])
@pytest.mark.parametrize("stage1_prompt", ["zero", "grid", "grid_zero"])
def test_prompts_equal_etsam(
    stage1_prompt: str, stage2_prompt: str, spec: ModelSpec, predictors: tuple[Any, Any],
    voxels: npt.NDArray[np.float32], volume_path: Path, tmp_path: Path,
) -> None:  # fmt: skip
    settings = resolve_settings(stage1_prompt=stage1_prompt, stage2_prompt=stage2_prompt, grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings)
    got = streamed_logits(stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings))
    assert_crosses(expected[1], settings.logit_threshold)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_stage1_partial_prompts_are_not_empty(predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32]) -> None:
    # Were they empty, the tests above would not tell stage1_partial from zero.
    settings = resolve_settings(grid_interval=INTERVAL)
    first, _ = in_memory(predictors, voxels, settings)
    prompted = first[INTERVAL::INTERVAL] > settings.stage1_logit_threshold
    assert all(0.01 < plane.mean() < 0.99 for plane in prompted)


@pytest.mark.parametrize("shape", [(5, 256, 256), (4, 300, 280), (6, 17, 200)])
def test_odd_shapes_equal_etsam(
    shape: tuple[int, int, int], spec: ModelSpec, predictors: tuple[Any, Any], tmp_path: Path
) -> None:
    import mrcfile

    voxels = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    with mrcfile.new(tmp_path / "odd.mrc") as mrc:
        mrc.set_data(voxels)
    settings = resolve_settings(grid_interval=3, tiling="whole")
    expected = in_memory(predictors, voxels, settings)
    summary = stream(tmp_path / "odd.mrc", tmp_path / "run.etsam.zarr", spec, settings)
    np.testing.assert_array_equal(final_scores(summary.store, 1).read(Span(0, shape[0])), expected[0])
    np.testing.assert_array_equal(final_scores(summary.store, 2).read(Span(0, shape[0])), expected[1])


def test_softplus_is_close_to_etsam(
    spec: ModelSpec, predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32], volume_path: Path, tmp_path: Path
) -> None:
    # torch's softplus rounds differently at the end of an array, so slices and whole volumes differ by an ulp.
    settings = resolve_settings("etsam-v2", normalize_method="softplus_minmax", grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings)
    got = streamed_logits(stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings))
    assert_crosses(expected[1], settings.logit_threshold)
    np.testing.assert_allclose(got[0], expected[0], atol=0.02)
    np.testing.assert_allclose(got[1], expected[1], atol=0.02)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_bfloat16_equals_etsam_under_autocast(
    profile: str, spec: ModelSpec, predictors: tuple[Any, Any], voxels: npt.NDArray[np.float32], volume_path: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    settings = resolve_settings(profile, grid_interval=INTERVAL)
    expected = in_memory(predictors, voxels, settings, autocast=True)
    summary = stream(volume_path, tmp_path / "run.etsam.zarr", spec, settings, precision="bfloat16")
    for got, wanted in zip(streamed_logits(summary), expected, strict=True):
        assert_crosses(wanted, settings.logit_threshold)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{"grid_interval": 5}, {"stage1_prompt": "grid", "stage2_prompt": "zero"}, {}])
def test_the_bundled_model_equals_etsam(
    changes: dict[str, Any], precision: Precision, bundled_model: ModelSpec, small_phantom: Path, tmp_path: Path
) -> None:
    """ETSAM's way of running SAM 2 with the bundled weights and settings, on membranes."""
    settings = resolve_settings(model_settings=bundled_model.settings, **changes)
    predictors = bundled_model.build("cpu"), bundled_model.build("cpu")
    bundled_model.load(predictors[0], 1)
    bundled_model.load(predictors[1], 2)
    with open_volume(small_phantom) as volume:
        voxels = volume.read(Span(0, volume.info.shape[0]))
    expected = in_memory(predictors, voxels, settings, autocast=precision == "bfloat16")
    summary = stream(small_phantom, tmp_path / "run.etsam.zarr", bundled_model, settings, precision=precision)
    for stage, (got, wanted) in enumerate(zip(streamed_logits(summary), expected, strict=True), start=1):
        # A model that finds membranes and nothing else leaves most voxels out.
        assert_crosses(wanted, settings.logit_threshold, least=0.01)
        np.testing.assert_array_equal(got, wanted, err_msg=f"stage {stage}")
