"""Addresses of the portal as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.errors import InputError
from etsam_zarr.portal.address import Choice, PortalAddress, ids_of_layout, parse_address, zarr_sibling

FILES = "https://files.cryoetdataportal.cziscience.com"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("portal:8354", PortalAddress(run_id=8354)),
        ("portal://8354/", PortalAddress(run_id=8354)),
        ("portal:8354@16.145", PortalAddress(run_id=8354, choice=Choice(voxel_spacing=16.145))),
        ("portal:10160/ycw2013-01-03-15", PortalAddress(dataset_id=10160, run_name="ycw2013-01-03-15")),
        (
            "portal:10160/ycw2013-01-03-15@16.145?processing=raw&default",
            PortalAddress(dataset_id=10160, run_name="ycw2013-01-03-15", choice=Choice(None, 16.145, "raw", True)),
        ),
        ("portal:8354?tomogram=4711", PortalAddress(run_id=8354, choice=Choice(4711))),
        ("portal:tomogram/4711", PortalAddress(choice=Choice(4711))),
        ("portal:annotation/26081,12765", PortalAddress(annotation_ids=(26081, 12765))),
        ("portal:annotation/26081|12765@10", PortalAddress(annotation_ids=(26081, 12765), choice=Choice(None, 10.0))),
        ("portal:mask/9", PortalAddress(mask_ids=(9,))),
        ("https://cryoetdataportal.czscience.com/runs/16463", PortalAddress(run_id=16463)),
        (
            # As the download dialogue of the web site writes it.
            "https://cryoetdataportal.czscience.com/runs/6355?download-step=download&download-config=tomogram"
            "&tomogram-sampling=10.4&tomogram-processing=raw&file-format=mrc&download-tab=download",
            PortalAddress(run_id=6355, choice=Choice(None, 10.4, "raw")),
        ),
        (
            "https://cryoetdataportal.czscience.com/runs/6355/?table-tab=Tomograms&download-tomogram=77",
            PortalAddress(run_id=6355, choice=Choice(77)),
        ),
    ],
)
def test_reads_what_people_write(text: str, address: PortalAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["tomo.mrc", "https://example.org/runs/3", "s3://b/portal.zarr", "portals/8354.zarr", ""]
)
def test_leaves_everything_else_alone(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("portal:", "is no address"),
        ("portal:TS_026", "portal:DATASET_ID/RUN_NAME"),
        ("portal:10160/a/b", "is no address"),
        ("portal:8354@fine", "voxel spacing in angstrom"),
        ("portal:8354@-1", "voxel spacing in angstrom"),
        ("portal:8354@inf", "voxel spacing in angstrom"),
        ("portal:8354?proccessing=raw", "asks for proccessing"),
        ("portal:annotation/12,x", "'x'"),
        ("portal:annotation/1,", "''"),
        ("portal:tomogram/x", "'x'"),
        ("portal:8354?tomogram=first", "'first'"),
        ("https://cryoetdataportal.czscience.com/datasets/10160", "portal list --dataset 10160"),
        ("https://cryoetdataportal.czscience.com/browse-data/datasets", "shows no run"),
    ],
)
def test_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("?", r"\?")):
        parse_address(text)


_numbers = st.integers(min_value=1, max_value=10**7)
_spacings = st.integers(min_value=1, max_value=99_999).map(lambda n: n / 1000)
_choices = st.builds(
    Choice, st.none() | _numbers, st.none() | _spacings, st.sampled_from([None, "raw", "filtered_odd"]), st.booleans()
)


@given(
    st.builds(PortalAddress, run_id=_numbers, choice=_choices)
    | st.builds(
        PortalAddress, dataset_id=_numbers, run_name=st.from_regex(r"[\w.-]{1,20}", fullmatch=True), choice=_choices
    )
    | st.builds(PortalAddress, annotation_ids=st.lists(_numbers, min_size=1, max_size=4).map(tuple), choice=_choices)
    | st.builds(PortalAddress, mask_ids=st.lists(_numbers, min_size=1, max_size=4).map(tuple), choice=_choices)
    | st.builds(PortalAddress, choice=_choices.filter(lambda choice: choice.tomogram_id is not None))
)
def test_what_is_written_is_read_back(address: PortalAddress) -> None:
    assert parse_address(str(address)) == address


def test_a_flag_goes_before_the_address() -> None:
    address = parse_address("portal:8354@10?processing=raw")
    assert address is not None
    assert address.narrowed(Choice(voxel_spacing=5.0)).choice == Choice(None, 5.0, "raw")
    assert address.narrowed(Choice(tomogram_id=3, processing="denoised")).choice == Choice(3, 10.0, "denoised")
    assert address.narrowed(Choice()) == address


@pytest.mark.parametrize(
    ("mrc", "zarr"),
    [
        (
            f"{FILES}/10160/ycw2013-01-03-15/Reconstructions/VoxelSpacing16.145/Tomograms/100/ycw2013-01-03-15.mrc",
            f"{FILES}/10160/ycw2013-01-03-15/Reconstructions/VoxelSpacing16.145/Tomograms/100/ycw2013-01-03-15.zarr",
        ),
        (
            "s3://cryoet-data-portal-public/10000/TS_026/Tomograms/VoxelSpacing13.48/CanonicalTomogram/TS_026.mrc",
            "s3://cryoet-data-portal-public/10000/TS_026/Tomograms/VoxelSpacing13.48/CanonicalTomogram/TS_026.zarr",
        ),
        (
            f"{FILES}/10/a/Reconstructions/VoxelSpacing7.840/Annotations/101/membrane-1.0_segmentationmask.mrc",
            f"{FILES}/10/a/Reconstructions/VoxelSpacing7.840/Annotations/101/membrane-1.0_segmentationmask.zarr",
        ),
    ],
)
def test_an_mrc_of_the_portal_means_the_zarr_beside_it(mrc: str, zarr: str) -> None:
    assert zarr_sibling(mrc) == zarr
    assert zarr_sibling(zarr) is None


@pytest.mark.parametrize(
    "url", ["https://example.org/tomo.mrc", "/data/10/a/Reconstructions/VoxelSpacing7.8/Tomograms/1/a.mrc", "portal:3"]
)
def test_other_mrc_files_stay_what_they_are(url: str) -> None:
    assert zarr_sibling(url) is None


def test_a_path_of_the_portal_says_what_lies_there() -> None:
    url = f"{FILES}/10160/ycw2013-01-03-15/Reconstructions/VoxelSpacing16.145/Tomograms/100/ycw2013-01-03-15.zarr"
    assert ids_of_layout(url) == {"dataset_id": 10160, "run_name": "ycw2013-01-03-15", "voxel_spacing": 16.145}
    assert ids_of_layout("https://example.org/a.zarr") == {}
    assert ids_of_layout("tomo.mrc") == {}
