"""ETSAM's tables: which rows name something on the portal."""

from __future__ import annotations

import pytest
from portal_stub import Stub, run_record

from etsam_zarr.errors import InputError, InputNotFoundError
from etsam_zarr.portal.address import Choice, PortalAddress
from etsam_zarr.portal.table import TruthWish, Unresolved, run_of, run_of_ids, truth_address, truth_of

RUN = run_record(245, "TS_026", 10000)


@pytest.mark.parametrize(
    ("row", "address"),
    [
        # As in ETSAM's dataset.csv.
        ({"dataset_id": "10444", "run_id": "16674", "annotation_ids": "32927", "split": "train"}, "portal:16674"),
        ({"dataset_id": "10202", "run_id": "9622", "annotation_ids": "26081|12765"}, "portal:9622"),
        ({"dataset_id": "10000", "run_id": "TS_026"}, "portal:10000/TS_026"),
        ({"dataset_id": "10000", "run_id": "245", "tomogram_id": "7"}, "portal:245?tomogram=7"),
        (
            {"dataset_id": "10000", "run_id": "245", "voxel_spacing": "13.48", "processing": "raw", "tomogram_id": ""},
            "portal:245@13.48?processing=raw",
        ),
    ],
)
def test_rows_that_name_a_run(row: dict[str, str], address: str) -> None:
    assert str(run_of(row)) == address


@pytest.mark.parametrize(
    ("dataset", "run", "reason"),
    [
        ("emdb", "4603", "emdb is no dataset"),
        ("empiar_11718", "tomo_012", "empiar_11718 is no dataset"),
        ("polnet_data_3", "polnet_data_3_generation_4", "polnet_data_3 is no dataset"),
        ("", "4", "an empty dataset_id"),
        ("10000", "", "names no run"),
    ],
)
def test_rows_of_other_archives(dataset: str, run: str, reason: str) -> None:
    found = run_of({"dataset_id": dataset, "run_id": run})
    assert isinstance(found, Unresolved)
    assert reason in found.reason


@pytest.mark.parametrize("column", ["tomogram_id", "voxel_spacing"])
def test_a_choice_that_is_no_number(column: str) -> None:
    with pytest.raises(InputError, match=f"run 245 has the {column} 'fine'"):
        run_of({"dataset_id": "10000", "run_id": "245", column: "fine"})


@pytest.mark.parametrize(
    ("listed", "object_name", "wish"),
    [
        ("26081", None, TruthWish((26081,))),
        ("26081|12765", None, TruthWish((26081, 12765))),
        ("26081|12765", "membrane", TruthWish((26081, 12765))),
        ("none", "membrane", TruthWish(object_name="membrane")),
        ("all_membrane_annotations", None, TruthWish(object_name="membrane")),
        ("none", None, Unresolved("its annotation_ids are 'none'")),
        ("simulated_annotation", None, Unresolved("its annotation_ids are 'simulated_annotation'")),
        ("", None, Unresolved("its annotation_ids are ''")),
    ],
)
def test_truths(listed: str, object_name: str | None, wish: TruthWish | Unresolved) -> None:
    assert truth_of({"annotation_ids": listed}, object_name=object_name) == wish


def test_where_a_run_store_came_from() -> None:
    spacing = Choice(voxel_spacing=13.48)
    ids = {"dataset_id": 10000, "run_id": 245, "run_name": "TS_026", "tomogram_id": 7, "voxel_spacing": 13.48}
    assert run_of_ids(ids) == PortalAddress(run_id=245, choice=spacing)
    del ids["run_id"]
    assert run_of_ids(ids) == PortalAddress(dataset_id=10000, run_name="TS_026", choice=spacing)
    assert isinstance(run_of_ids({}), Unresolved)


@pytest.fixture
def masks(portal: Stub) -> Stub:
    portal.add_mask(91, 5, RUN, spacing=13.48)
    portal.add_mask(93, 6, RUN, spacing=13.48, name="inner membrane")
    portal.add_mask(95, 6, RUN, spacing=6.74, name="inner membrane")
    portal.add_mask(97, 7, RUN, spacing=13.48, name="ribosome")
    return portal


@pytest.mark.parametrize(
    ("run", "wish", "address"),
    [
        ("portal:245@13.48", TruthWish((5, 6)), "portal:annotation/5,6@13.48"),
        ("portal:245@13.48", TruthWish(object_name="membrane"), "portal:mask/91,93"),
        ("portal:10000/TS_026@13.48", TruthWish(object_name="ribo"), "portal:mask/97"),
        ("portal:245@6.74", TruthWish(), "portal:mask/95"),
    ],
)
def test_masks_of_a_run(masks: Stub, run: str, wish: TruthWish, address: str) -> None:
    from etsam_zarr.portal.address import parse_address

    parsed = parse_address(run)
    assert parsed is not None
    assert str(truth_address(parsed, wish)) == address


def test_several_masks_are_asked_for(masks: Stub) -> None:
    with pytest.raises(InputError, match="3 segmentation masks") as caught:
        truth_address(PortalAddress(run_id=245, choice=Choice(voxel_spacing=13.48)), TruthWish())
    assert "--truth-object" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4


def test_a_mask_at_several_spacings_is_asked_for(masks: Stub) -> None:
    with pytest.raises(InputError, match="several masks of annotation 6"):
        truth_address(PortalAddress(run_id=245), TruthWish(object_name="membrane"))


def test_no_masks(masks: Stub) -> None:
    with pytest.raises(InputNotFoundError, match="no segmentation mask"):
        truth_address(PortalAddress(run_id=245), TruthWish(object_name="nucleus"))
