"""Opening volumes: the content decides, and what cannot be opened is explained."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import zarr
from mrc_files import voxels_of, write_raw_mrc
from portal_stub import Stub, run_record

from etsam_zarr.errors import InputError, InputNotFoundError, SettingsError
from etsam_zarr.geometry import Span
from etsam_zarr.mrc.read import MrcVolume
from etsam_zarr.sources import base_name, open_volume
from etsam_zarr.zarr_volume import ZarrVolume


@pytest.mark.parametrize("name", ["a.mrc", "a.rec", "a.st", "tomo", "a.zarr", "picture.png"])
def test_an_mrc_is_one_whatever_its_name(tmp_path: Path, name: str) -> None:
    voxels = voxels_of("int16")
    with open_volume(write_raw_mrc(tmp_path / name, voxels)) as volume:
        assert isinstance(volume, MrcVolume)
        np.testing.assert_array_equal(volume.read(Span(0, 4)), voxels)


def test_a_zarr_is_one_whatever_its_name(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.mrc", shape=(2, 3, 4), dtype="i2", zarr_format=2)
    with open_volume(tmp_path / "a.mrc") as volume:
        assert isinstance(volume, ZarrVolume)


def test_uri_may_be_text_a_file_address_or_a_path(tmp_path: Path) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"))
    digests = set()
    for uri in (path, str(path), f"file://{path}"):
        with open_volume(uri) as volume:
            digests.add(volume.digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 2000, "a PNG picture"),
        (b"II*\0" + b"\0" * 2000, "a TIFF"),
        (b"\x89HDF\r\n" + b"\0" * 2000, "an HDF5 file"),
        (b"PK\x03\x04" + b"\0" * 2000, "a zip archive"),
        (b"\n <!DOCTYPE html><html>not found</html>", "a web page"),
        (b"<html>" + b"x" * 3000, "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a text file"),
        (gzip.compress(b"\0" * 3000), "gunzip"),
        (bz2.compress(b"\0" * 3000), "bunzip2"),
        (b"", "empty"),
        (b"\x01\x02\x03", "3 bytes"),
        (bytes(range(256)) * 8, "not an MRC"),
        (b"\0" * 5000, "not an MRC"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, start: bytes, said: str) -> None:
    path = tmp_path / "tomo.mrc"
    path.write_bytes(start)
    with pytest.raises(InputError, match=said) as caught:
        open_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"nothing at .*tomo\.mrc"):
        open_volume(tmp_path / "tomo.mrc")


def test_a_path_that_cannot_even_be_asked_for() -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        open_volume("x" * 5000)


def test_levels_are_for_ome_zarr(tmp_path: Path) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"))
    with pytest.raises(InputError, match="only level 0, not 1"):
        open_volume(path, level=1)
    with pytest.raises(SettingsError, match="finest level is 0"):
        open_volume(path, level=-1)


@pytest.mark.parametrize("size", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("inf"))])
def test_impossible_voxel_sizes_are_refused(tmp_path: Path, size: tuple[float, float, float]) -> None:
    path = write_raw_mrc(tmp_path / "a.mrc", voxels_of("int16"))
    with pytest.raises(SettingsError, match="voxel size"):
        open_volume(path, voxel_size=size)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("tomo_10.5A.mrc", "tomo_10.5A"),
        ("x/Tomo.REC", "Tomo"),
        ("x/tomo.ome.zarr/", "tomo"),
        ("s3://bucket/a/tomo.zarr", "tomo"),
        ("tomo_10.5A", "tomo_10.5A"),
        (".mrc", ".mrc"),
        ("a.preali", "a"),
    ],
)
def test_only_the_known_suffix_is_cut_from_a_name(uri: str, name: str) -> None:
    assert base_name(uri) == name


@pytest.mark.real_data
def test_real_projection_image_is_refused(real_data: Path) -> None:
    with pytest.raises(InputError, match=r"1 section\(s\) of 720 x 512: an image"):
        open_volume(real_data / "L4_ts_03_sort_bin8_1img.mrc")


def test_addresses_of_the_portal_are_opened_where_they_lie(portal: Stub) -> None:
    run = run_record(8354, "TS_026", 10000)
    voxels = np.random.default_rng(0).normal(size=(12, 20, 24)).astype(np.float32)
    path = portal.add_tomogram(7, run, voxels, spacing=13.48)
    mrc = f"{portal.url}/{path.removesuffix('.zarr')}.mrc"
    for address in ("portal:8354", "portal:10000/TS_026@13.48", mrc):
        with open_volume(address) as volume:
            np.testing.assert_array_equal(volume.read(Span(0, 12)), voxels)
            assert volume.info.uri == f"{portal.url}/{path}"
            assert volume.info.name == "TS_026"
            assert dict(volume.info.portal)["voxel_spacing"] == 13.48
            assert volume.info.voxel_size == (13.48, 13.48, 13.48)
    with open_volume("portal:tomogram/7", level=1) as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 6)), voxels[::2, ::2, ::2])


def test_several_annotations_of_the_portal_are_one_mask(portal: Stub) -> None:
    run = run_record(8354, "TS_026", 10000)
    masks = [np.random.default_rng(seed).random((6, 8, 10)) > 0.8 for seed in (1, 2)]
    for number, mask in enumerate(masks):
        portal.add_mask(90 + 10 * number, 5 + number, run, mask)
    with open_volume("portal:annotation/5,6") as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 6)), masks[0] | masks[1])
        assert dict(volume.info.portal) == {"annotation_ids": "5,6"}
    with open_volume("portal:annotation/6") as volume:
        np.testing.assert_array_equal(volume.read(Span(0, 6)), masks[1])


def test_masks_of_different_grids_are_not_one_mask(portal: Stub) -> None:
    run = run_record(8354, "TS_026", 10000)
    portal.add_mask(90, 5, run, np.ones((6, 8, 10), bool))
    portal.add_mask(100, 6, run, np.ones((6, 8, 9), bool))
    with pytest.raises(InputError, match=r"6 x 8 x 10.*6 x 8 x 9.*cannot be united"):
        open_volume("portal:annotation/5,6")


def test_what_the_portal_names_but_does_not_have_is_explained(portal: Stub) -> None:
    portal.add_tomogram(7, run_record(8354, "TS_026", 10000))
    with pytest.raises(InputError, match=r"There is no Zarr at http://127.*TS_026\.zarr"):
        open_volume("portal:8354")
