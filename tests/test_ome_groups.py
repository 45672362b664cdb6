"""What we write is valid for the two validators, and is read back as it was meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_zarr_models import open_ome_zarr

from etsam_zarr.errors import OutputError, SettingsError
from etsam_zarr.geometry import pyramid_shapes
from etsam_zarr.ome.attributes import OmeVersion
from etsam_zarr.ome.groups import create_pyramid, register_label
from etsam_zarr.sources import open_volume

VERSIONS = ("0.4", "0.5")
SHAPE = (70, 129, 200)


def create(path: Path, version: OmeVersion, **given: object) -> list[zarr.Array]:
    settings = {
        "shape": SHAPE, "dtype": "uint8", "voxel_size": (12.0, 10.0, 11.0), "origin": (1.0, -2.0, 3.0),
        "chunks": (16, 64, 64), "version": version, "name": "tomo",
    }  # fmt: skip
    return create_pyramid(path, **(settings | given))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", VERSIONS)
def test_images_and_labels_are_valid_for_both_validators(tmp_path: Path, version: OmeVersion) -> None:
    path = tmp_path / "a.zarr"
    create(path, version)
    image = zarr.open_group(path, mode="r+")
    for name in ("membranes", "components"):
        label = register_label(image, name, version=version)
        create_pyramid(
            label, shape=SHAPE, dtype="u1", voxel_size=(12.0, 10.0, 11.0), origin=(1.0, -2.0, 3.0),
            chunks=(16, 64, 64), version=version, name=name, label_colours={1: (255, 0, 0, 128)},
        )  # fmt: skip
    for sub in ("", "/labels/membranes", "/labels/components"):
        yaozarrs.validate_zarr_store(f"{path}{sub}")
    for sub, kind in (("", "Image"), ("labels", "Labels"), ("labels/membranes", "ImageLabel")):
        parsed = open_ome_zarr(zarr.open_group(path / sub, mode="r"))
        assert type(parsed).__name__ == kind
        assert type(parsed).__module__.startswith(f"ome_zarr_models.v{version.replace('.', '')}")
    labels = zarr.open_group(path / "labels", mode="r").attrs.asdict()
    assert labels.get("ome", labels)["labels"] == ["membranes", "components"]


@pytest.mark.parametrize("version", VERSIONS)
def test_levels_have_shapes_sizes_and_places_of_a_pyramid_of_means(tmp_path: Path, version: OmeVersion) -> None:
    arrays = create(tmp_path / "a.zarr", version)
    assert tuple(array.shape for array in arrays) == pyramid_shapes(SHAPE)
    assert [array.metadata.zarr_format for array in arrays] == [2 if version == "0.4" else 3] * len(arrays)
    for level in range(len(arrays)):
        with open_volume(tmp_path / "a.zarr", level=level) as volume:
            factor = 2**level
            assert volume.info.voxel_size == (12.0 * factor, 10.0 * factor, 11.0 * factor)
            # The mean of 2^k voxels of size s from position p on lies at p + s (2^k - 1) / 2.
            expected = [
                np.mean([start + size * i for i in range(factor)])
                for start, size in zip((1.0, -2.0, 3.0), (12.0, 10.0, 11.0), strict=True)
            ]
            assert volume.info.origin == pytest.approx(expected)
            assert volume.info.warnings == ()


def test_chunk_files_of_0_4_lie_in_folders_and_0_5_names_its_dimensions(tmp_path: Path) -> None:
    create(tmp_path / "4.zarr", "0.4")[0][...] = 1
    assert (tmp_path / "4.zarr" / "0" / "0" / "1" / "2").is_file()
    metadata = create(tmp_path / "5.zarr", "0.5", shards=(32, 128, 128))[0].metadata
    assert metadata.dimension_names == ("z", "y", "x")


def test_an_unknown_voxel_size_stays_unknown(tmp_path: Path) -> None:
    create(tmp_path / "a.zarr", "0.4", voxel_size=None)
    yaozarrs.validate_zarr_store(str(tmp_path / "a.zarr"))
    with open_volume(tmp_path / "a.zarr") as volume:
        assert volume.info.voxel_size is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"version": "0.6"}, "0.6 cannot be written"),
        ({"chunks": (0, 1, 1)}, "at least 1"),
        ({"shards": (16, 64, 64)}, "only in OME-Zarr 0.5"),
        ({"version": "0.5", "shards": (24, 64, 64)}, "multiple"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, given: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        create(tmp_path / "a.zarr", **({"version": "0.4"} | given))
    assert not (tmp_path / "a.zarr").exists()


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="creating an OME-Zarr image"):
        create(tmp_path / "file" / "a.zarr", "0.4")
