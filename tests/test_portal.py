"""What an address means, against a portal on this machine that answers with the portal's field names."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphql import build_schema
from portal_stub import SCHEMA, Stub, run_record

from etsam_zarr.errors import InputError, InputNotFoundError
from etsam_zarr.portal.address import PortalAddress
from etsam_zarr.portal.search import Found, find_masks, find_tomograms, resolve

RUN = run_record(8354, "ycw2013-01-03-15", 10160)
OTHER = run_record(8355, "ycw2013-01-03-16", 10160)


@pytest.fixture
def filled(portal: Stub) -> Stub:
    """Two runs: one with three tomograms, one with one; masks of three annotations."""
    portal.add_tomogram(103, RUN, spacing=16.145, processing="denoised")
    portal.add_tomogram(101, RUN, spacing=16.145, default=True, shape=(500, 924, 956))
    portal.add_tomogram(102, RUN, spacing=8.0725)
    portal.add_tomogram(104, OTHER, spacing=16.145)
    portal.add_mask(9001, 501, RUN, spacing=16.145)
    portal.add_mask(9003, 502, RUN, spacing=16.145, name="outer membrane")
    portal.add_mask(9005, 502, RUN, spacing=8.0725, name="outer membrane")
    portal.add_mask(9007, 503, RUN, spacing=16.145, name="cytosolic ribosome")
    portal.add_mask(9009, 504, RUN, spacing=16.145, name="membrane", shape_type="Point")
    return portal


@pytest.mark.parametrize(
    ("address", "number"),
    [
        ("portal:8355", 104),
        ("portal:10160/ycw2013-01-03-16", 104),
        ("portal:tomogram/102", 102),
        ("portal:8354?tomogram=103", 103),
        ("portal:8354@8.07", 102),
        ("portal:10160/ycw2013-01-03-15@8.0725", 102),
        ("portal:8354@16.145?processing=denoised", 103),
        ("portal:8354?default", 101),
        ("https://cryoetdataportal.czscience.com/runs/8355?table-tab=Tomograms", 104),
        ("https://cryoetdataportal.czscience.com/runs/8354?tomogram-sampling=16.145&tomogram-processing=raw", 101),
    ],
)
def test_finds_the_one_that_is_meant(filled: Stub, address: str, number: int) -> None:
    found = resolve(address)
    assert found is not None
    assert found.ids["tomogram_id"] == number
    assert found.places == (next(t["httpsOmezarrDir"] for t in filled.tomograms if t["id"] == number),)
    assert len(filled.asked) == 1


def test_notes_what_the_portal_calls_it(filled: Stub) -> None:
    found = resolve("portal:8354?default")
    assert found == Found(
        (f"{filled.url}/10160/ycw2013-01-03-15/Reconstructions/VoxelSpacing16.145/Tomograms/101/ycw2013-01-03-15.zarr",),
        "ycw2013-01-03-15",
        {
            "dataset_id": 10160, "run_id": 8354, "run_name": "ycw2013-01-03-15", "tomogram_id": 101,
            "voxel_spacing": 16.145, "processing": "raw",
        },
    )  # fmt: skip


@pytest.mark.parametrize(("address", "numbers"), [("portal:8354", (101, 102, 103)), ("portal:8354@16.145", (101, 103))])
def test_lists_several_and_asks(filled: Stub, address: str, numbers: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(address)
    first, *lines = str(caught.value).splitlines()
    assert f"{address} fits {len(numbers)} tomograms" in first
    assert "--tomogram-id" in first
    assert tuple(int(line.split()[1]) for line in lines) == numbers
    # Ids, spacing, processing and size of each; 500 * 924 * 956 float32 voxels.
    assert "16.145 A  raw  WBP  500 x 924 x 956 (z y x), 1.77 GB uncompressed, shown first" in lines[0]


def test_a_choice_that_fits_none_shows_all(filled: Stub) -> None:
    with pytest.raises(InputNotFoundError, match="None of the 3 tomograms") as caught:
        resolve("portal:8354@13.48")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("address", ["portal:1", "portal:10160/nobody", "portal:tomogram/1"])
def test_nothing_there(filled: Stub, address: str) -> None:
    with pytest.raises(InputNotFoundError, match=f"no tomogram for {address}"):
        resolve(address)


def test_a_tomogram_without_zarr(portal: Stub) -> None:
    portal.add_tomogram(101, RUN, zarr_there=False)
    with pytest.raises(InputNotFoundError, match="101 of run 8354 has no OME-Zarr"):
        resolve("portal:8354")


def test_many_candidates_are_not_all_listed(portal: Stub) -> None:
    for number in range(40):
        portal.add_tomogram(number, RUN)
    with pytest.raises(InputError, match="and 15 more"):
        resolve("portal:8354")


def test_an_mrc_of_the_portal_needs_no_question(portal: Stub) -> None:
    place = f"{portal.url}/10160/a/Reconstructions/VoxelSpacing16.145/Tomograms/100/a"
    assert resolve(f"{place}.mrc") == Found(
        (f"{place}.zarr",), "", {"dataset_id": 10160, "run_name": "a", "voxel_spacing": 16.145}
    )
    assert portal.asked == []


@pytest.mark.parametrize("text", ["tomo.mrc", "https://example.org/tomo.zarr"])
def test_other_addresses_are_no_business_of_the_portal(text: str) -> None:
    assert resolve(text) is None


@pytest.mark.parametrize(
    ("address", "files"),
    [
        ("portal:annotation/501", [9001]),
        ("portal:annotation/501,502@16.145", [9001, 9003]),
        ("portal:annotation/502@8.0725", [9005]),
        ("portal:mask/9005", [9005]),
        ("portal:mask/9003,9005", [9003, 9005]),
    ],
)
def test_finds_masks(filled: Stub, address: str, files: list[int]) -> None:
    found = resolve(address)
    assert found is not None
    assert list(found.places) == [mask["httpsPath"] for mask in filled.masks if mask["id"] in files]
    assert all(place.endswith(".zarr") for place in found.places)
    assert len(filled.asked) == 1


def test_a_mask_at_several_spacings_is_asked_for(filled: Stub) -> None:
    with pytest.raises(InputError, match="several masks of annotation 502") as caught:
        resolve("portal:annotation/501,502")
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == ["portal:mask/9003", "portal:mask/9005"]


@pytest.mark.parametrize(
    ("address", "missing"),
    [("portal:annotation/501,504", "504"), ("portal:annotation/1", "1"), ("portal:annotation/501@8.0725", "501"),
     ("portal:mask/9001,7", "7")],
)  # fmt: skip
def test_masks_that_are_not_there(filled: Stub, address: str, missing: str) -> None:
    with pytest.raises(InputNotFoundError, match=rf"no segmentation mask as OME-Zarr for .*\(missing: {missing}\)"):
        resolve(address)


def test_lists_of_a_dataset_and_of_an_object(filled: Stub) -> None:
    dataset = PortalAddress(dataset_id=10160)
    assert [tomogram.id for tomogram in find_tomograms(dataset)] == [101, 102, 103, 104]
    assert [mask.id for mask in find_masks(dataset)] == [9001, 9003, 9005, 9007]
    assert [mask.id for mask in find_masks(dataset, object_name="Membrane")] == [9001, 9003, 9005]


@pytest.mark.parametrize("gone", ["sizeZ", "run", "voxelSpacing"])
def test_a_portal_that_has_changed_is_noticed(gone: str) -> None:
    from etsam_zarr.portal.records import PortalTomogram

    node = {
        "id": 3, "name": "a", "run": {"id": 1, "name": "a", "datasetId": 2}, "sizeX": 1, "sizeY": 2, "sizeZ": 3,
        "voxelSpacing": 10.0, "processing": "raw",
    }  # fmt: skip
    assert PortalTomogram.from_answer(node).shape == (3, 2, 1)
    del node[gone]
    with pytest.raises(InputError, match=f"tomogram 3 in a way that this version does not know .*{gone}"):
        PortalTomogram.from_answer(node)


def test_the_schema_of_the_stub_is_a_part_of_the_portals_own() -> None:
    client = pytest.importorskip("cryoet_data_portal", reason="the portal's client, which brings its schema, is absent")
    theirs = build_schema((Path(client.__file__).parent / "data" / "schema.graphql").read_text()).type_map
    for name, mine in build_schema(SCHEMA).type_map.items():
        fields = getattr(mine, "fields", {})
        for field, description in fields.items():
            assert str(getattr(theirs[name], "fields", {})[field].type) == str(description.type), f"{name}.{field}"
        assert set(getattr(mine, "values", {})) <= set(getattr(theirs[name], "values", {})), name
