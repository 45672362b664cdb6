"""Opening Zarr arrays and OME-Zarr levels as volumes, with the metadata that is met in the wild."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from mrc_files import voxels_of
from zarr.storage import MemoryStore
from zarr_stores import bare, source

from etsam_zarr.errors import InputError
from etsam_zarr.geometry import Span
from etsam_zarr.sources import open_volume
from etsam_zarr.zarr_source import open_zarr_volume


def scale(*values: float) -> dict:
    return {"type": "scale", "scale": list(values)}


def shift(*values: float) -> dict:
    return {"type": "translation", "translation": list(values)}


def axes(names: str = "zyx", unit: str | None = "angstrom") -> list[dict]:
    return [{"name": n, "type": "space"} | ({} if unit is None else {"unit": unit}) for n in names]


def image(
    levels: list[tuple[np.ndarray, list[dict]]], *, version: str = "0.4", **fields: Any
) -> tuple[MemoryStore, zarr.Group]:
    store = MemoryStore()
    group = zarr.open_group(store, mode="w", zarr_format=3 if version == "0.5" else 2)
    for number, (voxels, _) in enumerate(levels):
        group.create_array(str(number), shape=voxels.shape, dtype=voxels.dtype)[...] = voxels
    multiscale = {
        "axes": axes(),
        "datasets": [{"path": str(n), "coordinateTransformations": t} for n, (_, t) in enumerate(levels)],
    } | fields
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [multiscale | {"version": version}]
    return store, group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_units_and_transformations(version: str) -> None:
    fine, coarse = voxels_of("int16", (8, 6, 4)), voxels_of("int16", (4, 3, 2), seed=1)
    store, _ = image(
        [(fine, [scale(1, 1, 2)]), (coarse, [scale(2, 2, 4), shift(0.5, 0.5, 1)])],
        version=version,
        axes=axes(unit="nanometer"),
        coordinateTransformations=[scale(2, 1, 1), shift(0, 0, 3)],
    )
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.format == f"ome-zarr {version}"
        assert volume.info.voxel_size == (20.0, 10.0, 20.0)
        assert volume.info.origin == (0.0, 0.0, 30.0)
        np.testing.assert_array_equal(volume.read(Span(0, 8)), fine)
    with open_zarr_volume(source(store, level=1)) as volume:
        assert volume.info.voxel_size == (40.0, 20.0, 40.0)
        assert volume.info.origin == (10.0, 5.0, 40.0)
        np.testing.assert_array_equal(volume.read(Span(0, 4)), coarse)
    with open_zarr_volume(source(store, voxel_size=(3.0, 2.0, 1.0))) as volume:
        assert volume.info.voxel_size == (3.0, 2.0, 1.0)
    with pytest.raises(InputError, match=r"2 level\(s\), 0 to 1; there is no level 2"):
        open_zarr_volume(source(store, level=2))


def test_portal_layout_of_today_has_nothing_odd(tmp_path: Path) -> None:
    store, _ = image([(voxels_of("float32", (8, 6, 4)), [scale(10.012, 10.012, 10.012)])])
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.voxel_size == (10.012,) * 3
        assert volume.info.warnings == ()


def test_older_portal_layout_lists_xyz_without_unit_but_is_zyx() -> None:
    voxels = voxels_of("float32", (8, 6, 4))
    store, _ = image([(voxels, [scale(14.08, 14.08, 14.08)])], axes=axes("xyz", unit=None))
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.shape == (8, 6, 4)
        assert volume.info.voxel_size == (14.08,) * 3
        assert any("x, y, z" in sentence for sentence in volume.info.warnings)
        assert any("taken as angstrom" in sentence for sentence in volume.info.warnings)
        np.testing.assert_array_equal(volume.read(Span(0, 8)), voxels)


def test_time_and_channel_of_length_1_are_left_out_and_longer_ones_refused() -> None:
    voxels = voxels_of("uint8", (1, 1, 5, 4, 3))
    five = axes("tczyx")
    store, _ = image([(voxels, [scale(1, 1, 7, 8, 9)])], axes=five)
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.shape == (5, 4, 3)
        assert volume.info.voxel_size == (7.0, 8.0, 9.0)
        np.testing.assert_array_equal(volume.read(Span(1, 3), Span(0, 2)), voxels[0, 0, 1:3, 0:2])
    store, _ = image([(voxels_of("uint8", (1, 2, 5, 4, 3)), [scale(1, 1, 7, 8, 9)])], axes=five)
    with pytest.raises(InputError, match=r"c = 2 is longer"):
        open_zarr_volume(source(store))


def test_version_0_1_without_axes_is_tczyx() -> None:
    store, _ = image([(voxels_of("uint8", (1, 1, 5, 4, 3)), [])], version="0.1", axes=[])
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.shape == (5, 4, 3)
        assert volume.info.voxel_size is None


def test_version_0_3_lists_axes_as_text() -> None:
    store, _ = image([(voxels_of("uint8", (5, 4, 3)), [])], version="0.3", axes=["z", "y", "x"])
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("fields", "transformations", "said"),
    [
        ({"axes": axes("zyx", unit="furlong")}, [scale(1, 1, 1)], "furlong"),
        ({"axes": axes("zyx", unit=None)}, [scale(1, 1, 1)], "scale of 1 without a unit"),
        ({}, [], "no voxel size"),
        ({}, [scale(0, 1, 1)], "no voxel size"),
    ],
)
def test_unusable_voxel_sizes_are_unknown_and_said(fields: dict, transformations: list, said: str) -> None:
    store, _ = image([(voxels_of("uint8", (5, 4, 3)), transformations)], **fields)
    with open_zarr_volume(source(store)) as volume:
        assert volume.info.voxel_size is None
        assert any(said in sentence for sentence in volume.info.warnings)


@pytest.mark.parametrize(
    ("shape", "names", "said"),
    [
        ((5, 4, 3), "yxz", "z, y, x is needed"),
        ((5, 4), "yx", "a volume in z, y, x is needed"),
        ((1, 4, 3), "zyx", "an image, not a volume"),
        ((5, 4, 3), "zyxc", "lists 4 axes"),
        ((5, 4, 3), "cyx", "a volume in z, y, x is needed"),
    ],
)
def test_images_that_are_no_volumes_are_refused(shape: tuple[int, ...], names: str, said: str) -> None:
    store, _ = image([(np.zeros(shape, np.uint8), [])], axes=axes(names))
    with pytest.raises(InputError, match=said):
        open_zarr_volume(source(store))


@pytest.mark.parametrize(
    "broken",
    [
        {"multiscales": [{"version": "0.4"}]},
        {"multiscales": [{"datasets": []}]},
        {"multiscales": "x"},
        {"multiscales": [{"datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]}]},
        {"multiscales": [{"datasets": [{"path": "0", "coordinateTransformations": [{"scale": [1]}]}]}]},
    ],
)
def test_broken_metadata_is_refused_with_the_reason(broken: dict) -> None:
    store, group = image([(voxels_of("uint8"), [])])
    group.attrs.put(broken)
    with pytest.raises(InputError, match="metadata of memory cannot be understood"):
        open_zarr_volume(source(store))


def test_missing_level_is_named() -> None:
    store, group = image([(voxels_of("uint8"), [])])
    del group["0"]
    with pytest.raises(InputError, match="'0' for level 0, but it is missing"):
        open_zarr_volume(source(store))


def test_bare_array_with_leading_ones_and_without_voxel_size() -> None:
    voxels = voxels_of("uint8", (1, 1, 5, 4, 3))
    with open_zarr_volume(source(bare(voxels, chunks=(1, 1, 2, 2, 2)))) as volume:
        assert volume.info.format == "zarr"
        assert volume.info.voxel_size is None
        assert any("--voxel-size" in sentence for sentence in volume.info.warnings)
        np.testing.assert_array_equal(volume.read(Span(0, 5)), voxels[0, 0])
    for shape in ((4, 5), (2, 5, 4, 3)):
        with pytest.raises(InputError, match=f"array of {len(shape)} dimensions"):
            open_zarr_volume(source(bare(np.zeros(shape, np.uint8), chunks=shape)))


def test_dimension_names_of_version_3_are_respected() -> None:
    voxels = voxels_of("uint8", (5, 4, 3))
    names = ("z", "y", "x")
    with open_zarr_volume(source(bare(voxels, chunks=(5, 4, 3), version=3, dimension_names=names))) as volume:
        assert volume.info.shape == (5, 4, 3)
    with pytest.raises(InputError, match="order y, x, z"):
        open_zarr_volume(source(bare(voxels, chunks=(5, 4, 3), version=3, dimension_names=("y", "x", "z"))))


def test_complex_values_are_refused() -> None:
    with pytest.raises(InputError, match="complex64"):
        open_zarr_volume(source(bare(np.zeros((2, 3, 4), np.complex64), chunks=(2, 3, 4))))


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    described = {
        "zarr_format": 2, "shape": [2, 3, 4], "chunks": [2, 3, 4], "dtype": "|O", "compressor": None,
        "fill_value": None, "order": "C", "filters": [{"id": "pickle", "protocol": 4}],
    }  # fmt: skip
    (tmp_path / ".zarray").write_text(json.dumps(described))
    with pytest.raises(InputError):
        open_volume(tmp_path)


def test_a_group_without_image_lists_what_it_holds(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    with pytest.raises(InputError, match="without arrays"):
        open_volume(tmp_path / "a.zarr")
    group.create_array("raw/volume", shape=(2, 3, 4), dtype="u1")
    with pytest.raises(InputError, match=r"raw/volume \(2 x 3 x 4\).*for example .*a\.zarr/raw/volume"):
        open_volume(tmp_path / "a.zarr")


def test_a_folder_that_is_no_zarr(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder but no Zarr"):
        open_volume(tmp_path)


@pytest.mark.parametrize("name", [".zarray", "zarr.json"])
def test_unreadable_zarr_metadata(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{not json")
    with pytest.raises(InputError, match=r"metadata of .* cannot be read"):
        open_volume(tmp_path)
