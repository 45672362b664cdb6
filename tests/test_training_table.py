"""Pairs of a table: ETSAM's columns, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from etsam_zarr_cli.main import main
from portal_stub import Stub, run_record

from etsam_zarr.errors import InputError, InputNotFoundError
from etsam_zarr.events import Event, Notice
from etsam_zarr.geometry import Span
from etsam_zarr.portal.address import Choice
from etsam_zarr.training.pairs import Pair, TrainingVolume
from etsam_zarr.training.table import pairs_of_table

RUN = run_record(9622, "run_a", 10202)
TABLE = """dataset_id,run_id,annotation_ids,split,organism_name
10202,9622,26081|12765,train,Campylobacter jejuni
polnet_data_2,polnet_data_2_generation_17,simulated_annotation,train,polnet_simulated_tomogram
10202,9622,none,test,Campylobacter jejuni
"""


@pytest.fixture
def table(portal: Stub, tmp_path: Path) -> Path:
    voxels = tiny.texture()
    portal.add_tomogram(7, RUN, voxels, spacing=13.48)
    portal.add_tomogram(8, RUN, voxels[::2, ::2, ::2], spacing=26.96, processing="denoised")
    portal.add_mask(91, 26081, RUN, voxels > 0.5, spacing=13.48)
    portal.add_mask(93, 12765, RUN, voxels < -0.5, spacing=13.48)
    portal.add_mask(95, 26081, RUN, (voxels > 0.5)[::2, ::2, ::2], spacing=26.96)
    path = tmp_path / "dataset.csv"
    path.write_text(TABLE)
    return path


def test_etsams_rows_become_pairs_that_train_takes(table: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    choice = Choice(processing="raw")
    pairs = pairs_of_table(table, conditions={"split": "train"}, choice=choice, on_event=events.append)
    assert pairs == [Pair("portal:tomogram/7", "portal:annotation/26081,12765@13.48")]
    assert [event.message for event in events if isinstance(event, Notice)] == [
        "The row polnet_data_2, polnet_data_2_generation_17 is left out: polnet_data_2 is no dataset of the CryoET "
        "Data Portal."
    ]
    volume = TrainingVolume(pairs[0], normalize_method="min_max_positive_values", facts_folder=tmp_path)
    voxels = tiny.texture()
    np.testing.assert_array_equal(volume.planes(Span(0, 12))[1], np.abs(voxels) > 0.5)
    assert volume.facts.membrane_voxels == np.count_nonzero(np.abs(voxels) > 0.5)


def test_a_truth_by_name_where_a_row_names_none(table: Path) -> None:
    choice = Choice(voxel_spacing=26.96)
    (pair,) = pairs_of_table(table, conditions={"split": "test"}, choice=choice, truth_object="membrane")
    assert pair == Pair("portal:tomogram/8", "portal:mask/95")


@pytest.mark.parametrize(
    ("conditions", "choice", "error", "says"),
    [
        ({"split": "test"}, Choice(), InputError, "None of the 1 rows"),
        ({"split": "train"}, Choice(), InputError, "fits 2 tomograms"),
        ({"split": "train"}, Choice(processing="filtered"), InputNotFoundError, "None of the 2 tomograms"),
        ({"split": "other"}, Choice(), InputError, "has split=other"),
    ],
)
def test_what_is_not_clear_is_asked_for(
    table: Path, conditions: dict[str, str], choice: Choice, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pairs_of_table(table, conditions=conditions, choice=choice)


def test_files_and_addresses(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("volume,mask\na.mrc,b.mrc\nhttps://example.org/t.zarr,\na.mrc,b.mrc\nportal:7,portal:mask/9\n")
    assert pairs_of_table(path) == [
        Pair(str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")),
        Pair("https://example.org/t.zarr"),
        Pair("portal:7", "portal:mask/9"),
    ]
    path.write_text("tomogram\na.mrc\n")
    with pytest.raises(InputError, match="names no pairs"):
        pairs_of_table(path)


def test_the_command_trains_on_a_table(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what reaches the training is looked at: training itself has its own tests."""
    from etsam_zarr.training import stages

    train = ["train", "--manifest", str(table), "--where", "split=train", "-o", str(tmp_path / "out")]
    assert main(train) == 1
    assert "fits 2 tomograms" in capsys.readouterr().err
    requests: list[stages.TrainRequest] = []
    monkeypatch.setattr(stages, "train_stages", lambda request, **_: requests.append(request) or {})
    assert main([*train, "--tomogram-processing", "raw", "--pair", "a.mrc", "b.mrc"]) == 0
    (request,) = requests
    assert list(request.pairs) == [
        Pair("a.mrc", "b.mrc"), Pair("portal:tomogram/7", "portal:annotation/26081,12765@13.48"),
    ]  # fmt: skip
    assert "polnet_data_2_generation_17 is left out" in capsys.readouterr().err
