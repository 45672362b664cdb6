"""What a viewer shows of a run, and where: against our own arithmetic, napari's model and napari-ome-zarr's reader."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import FinishedRun
from etsam_zarr_cli.main import main
from etsam_zarr_cli.view import show
from made_run import SHAPE, make_run

from etsam_zarr.errors import RunStoreError
from etsam_zarr.events import Event, Notice
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Ledger
from etsam_zarr.runstore import RunStore
from etsam_zarr.scores import final_scores
from etsam_zarr.viewing.layers import ViewLayer, view_layers


@pytest.fixture
def full_run(run_store: RunStore) -> RunStore:
    """A run with all labels."""
    assert main(["threshold", str(run_store.path), "--logit-threshold", "2"]) == 0
    assert main(["postprocess", str(run_store.path), "--min-slices", "4"]) == 0
    assert main(["label", str(run_store.path)]) == 0
    return run_store


def by_name(layers: list[ViewLayer]) -> dict[str, ViewLayer]:
    return {layer.name: layer for layer in layers}


def faces(layer: ViewLayer, level: int = 0) -> list[tuple[float, float]]:
    """Where the outer faces of a layer lie along each axis, from its scale, translation and shape."""
    shape = layer.data[level].shape
    return [
        (start - step / 2, start + (count - 0.5) * step)
        for start, step, count in zip(layer.translate, layer.scale, shape, strict=True)
    ]


def test_all_layers_cover_the_same_space(full_run: RunStore) -> None:
    layers = view_layers(full_run)
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("tomogram", "image"), ("scores", "image"), ("membranes", "labels"), ("membranes_processed", "labels"),
        ("components", "labels"),
    ]  # fmt: skip
    # 24 x 40 x 36 voxels of 10 x 5 x 5 angstrom; y starts at 100
    for layer in layers[1:]:
        for (start, stop), (first, last) in zip(faces(layer), [(-5, 235), (97.5, 297.5), (-2.5, 177.5)], strict=True):
            assert (start, stop) == pytest.approx((first, last)), layer.name
    assert [layer.name for layer in layers if layer.visible] == ["tomogram", "components"]


def test_data_are_what_is_stored(full_run: RunStore) -> None:
    layers = by_name(view_layers(full_run))
    for name in ("membranes", "membranes_processed", "components"):
        for level, data in enumerate(layers[name].data):
            stored = zarr.open_array(full_run.path / "labels" / name / str(level), mode="r")
            np.testing.assert_array_equal(data.compute(), stored[:])
    native = full_run.stage(2).logits[0]
    np.testing.assert_array_equal(layers["scores"].data[0].compute(), native)


def test_scores_lie_where_the_full_resolution_ones_lie(run_store: RunStore) -> None:
    """Drawn bilinearly at the centres of voxels, the layer gives the full-resolution logits, away from the border."""
    from scipy import ndimage

    scores = by_name(view_layers(run_store))["scores"]
    size, origin = run_store.voxel_size, run_store.origin
    assert size is not None
    inside = (slice(2, 5), slice(4, 36), slice(4, 32))
    grid = np.indices(SHAPE)[(slice(None), *inside)]
    at = [
        (start + index * step - scores.translate[axis]) / scores.scale[axis]
        for axis, (index, step, start) in enumerate(zip(grid, size, origin, strict=True))
    ]
    drawn = ndimage.map_coordinates(scores.data[0].compute(), at, order=1)
    np.testing.assert_allclose(drawn, final_scores(run_store).read(Span(0, SHAPE[0]))[inside], atol=1e-4)


def test_a_backward_prediction_is_shown_where_the_run_shows_it(tmp_path: Path) -> None:
    store = make_run(tmp_path)
    settings = {**store.record["settings"], "prompted_slices": "predict"}
    store.revise(settings=settings, prompted={"1": [], "2": [5]})
    shape = store.stage(2).backwards.shape
    store.stage(2).backwards.resize((shape[0], 1, *shape[2:]))
    store.stage(2).backwards[0, 0] = 3.0
    shown = by_name(view_layers(store))["scores"].data[0].compute()
    assert (shown[5] == 3).all()
    np.testing.assert_array_equal(shown[6], store.stage(2).logits[0, 6])


def test_the_tomogram_itself_where_it_still_is(finished_run: FinishedRun) -> None:
    tomogram = by_name(view_layers(RunStore.open(finished_run.store)))["tomogram"]
    np.testing.assert_array_equal(tomogram.data[0].compute(), finished_run.voxels)
    assert tomogram.scale == (10, 10, 10)
    assert tomogram.translate == (30, 20, 10)
    assert tomogram.contrast is not None
    assert finished_run.voxels.min() < tomogram.contrast[0] < tomogram.contrast[1] < finished_run.voxels.max()


def test_a_moved_run_finds_the_tomogram_beside_it_and_only_that(finished_run: FinishedRun, tmp_path: Path) -> None:
    store = RunStore.open(Path(shutil.copytree(finished_run.store, tmp_path / "a.etsam.zarr")))
    store.revise(source="folder/that/was/tomo_10A.mrc")
    said: list[Event] = []

    def tomogram() -> Any:
        said.clear()
        layer = by_name(view_layers(store, on_event=said.append))["tomogram"]
        return layer.data[0]

    reduced = zarr.open_array(store.path / "0", mode="r")[:]
    np.testing.assert_array_equal(tomogram().compute(), reduced)
    assert "is not there any more" in "".join(event.message for event in said if isinstance(event, Notice))
    shutil.copy(finished_run.source, tmp_path / "tomo_10A.mrc")
    np.testing.assert_array_equal(tomogram().compute(), finished_run.voxels)
    assert not said
    # Another tomogram of that name and shape.
    with (tmp_path / "tomo_10A.mrc").open("r+b") as file:
        file.seek(1024)
        file.write(b"\x01" * 4000)
    tomogram()
    assert said


def test_the_reduced_copy_lies_within_the_volume(run_store: RunStore) -> None:
    """The overview of the made run is half as fine, and says so in its metadata."""
    tomogram = by_name(view_layers(run_store))["tomogram"]
    assert tomogram.data[0].shape == (12, 20, 18)
    assert tomogram.scale == (20, 10, 10)


def test_a_stale_processed_mask_is_left_out_and_said(full_run: RunStore) -> None:
    assert main(["threshold", str(full_run.path), "--logit-threshold", "1"]) == 0
    said: list[Event] = []
    names = [layer.name for layer in view_layers(full_run, on_event=said.append)]
    assert names == ["tomogram", "scores", "membranes", "components"]
    assert any("membranes_processed" in event.message for event in said if isinstance(event, Notice))


def test_unfinished_runs_show_what_is_there(run_store: RunStore) -> None:
    Ledger(run_store.path / "ledger").reopen("mask")
    assert [layer.name for layer in view_layers(run_store)] == ["tomogram", "scores"]
    shutil.rmtree(run_store.path / "0")
    shutil.rmtree(run_store.path / "ledger")
    with pytest.raises(RunStoreError, match="holds nothing to be shown yet"):
        view_layers(run_store)


def test_damaged_metadata_are_named(run_store: RunStore) -> None:
    (run_store.path / "labels/membranes/0/.zarray").write_text("{")
    with pytest.raises(RunStoreError, match=r"labels/membranes/0 cannot be read"):
        view_layers(run_store)


def test_a_run_without_voxel_size_is_shown_in_voxels(run_store: RunStore) -> None:
    run_store.revise(voxel_size=None, origin=[0.0, 0.0, 0.0])
    layers = by_name(view_layers(run_store))
    assert layers["membranes"].scale == (1, 1, 1)
    assert layers["scores"].scale == (1, 40 / 16, 36 / 16)


# --- the command and napari


def test_without_napari_the_extra_is_named(
    run_store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "napari", None)
    assert main(["view", str(run_store.path)]) == 1
    assert 'pip install "etsam-zarr[view]"' in capsys.readouterr().err
    assert main(["view", str(run_store.path), "--port", "80"]) == 2
    assert main(["view", str(run_store.path.parent)]) == 1
    assert "is no run store" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # napari's own
def test_napari_takes_the_layers_as_they_are(full_run: RunStore) -> None:
    components = pytest.importorskip("napari.components")
    viewer = components.ViewerModel()
    layers = view_layers(full_run)
    show(viewer, layers, angstrom=True)
    for layer, shown in zip(layers, viewer.layers, strict=True):
        assert (shown.name, shown.visible) == (layer.name, layer.visible)
        assert type(shown).__name__.lower() == layer.kind
        np.testing.assert_allclose(shown.scale, layer.scale)
        np.testing.assert_allclose(shown.translate, layer.translate)
        assert {str(unit) for unit in shown.units} == {"angstrom"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_napari_ome_zarr_reads_the_store_and_its_labels_on_the_same_scale(version: Any, tmp_path: Path) -> None:
    plugin = pytest.importorskip("napari_ome_zarr")
    from napari.layers import Layer

    store = make_run(tmp_path, shape=(24, 140, 136), version=version)
    ours = by_name(view_layers(store))
    reader = plugin.napari_get_reader(str(store.path))
    assert reader is not None
    read = {kind: (data, about) for data, about, kind in reader(str(store.path))}
    assert set(read) == {"image", "labels"}
    for kind, name in (("image", "tomogram"), ("labels", "membranes")):
        data, about = read[kind]
        levels = data if isinstance(data, list) else [data]
        assert [level.shape for level in levels] == [level.shape for level in ours[name].data]
        np.testing.assert_allclose(about["scale"], ours[name].scale)
        shown = Layer.create(data, about, kind)
        # Of the origin nothing is compared: version 0.10 takes only the first transformation of a level, the scale.
        step = np.subtract(shown.data_to_world((1, 1, 1)), shown.data_to_world((0, 0, 0)))
        np.testing.assert_allclose(step, ours[name].scale)
        assert {str(unit) for unit in shown.units} == {"angstrom"}
        np.testing.assert_array_equal(np.asarray(levels[0]), ours[name].data[0].compute())


def test_run_json_is_left_alone(run_store: RunStore) -> None:
    before = json.loads((run_store.path / "run.json").read_text())
    view_layers(run_store)
    assert json.loads((run_store.path / "run.json").read_text()) == before
