"""Records of what is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from etsam_zarr.errors import RunStoreError
from etsam_zarr.ledger import Ledger, SlabRecord


def _slab(start: int, stop: int, *, stage: int = 1, tile: int = 0) -> SlabRecord:
    return SlabRecord(stage, tile, start, stop, checksum=start * 7, minimum=-5.0, maximum=0.1 + start, seconds=0.5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_records_come_back_in_order_from_another_process(ledger: Ledger, tmp_path: Path) -> None:
    # Stops of different length: the order is that of the slices, not of the text.
    slabs = [_slab(0, 9), _slab(9, 99), _slab(99, 100), _slab(100, 1001)]
    for slab in reversed(slabs):
        ledger.add(slab)
    ledger.add(_slab(0, 5, stage=2))
    ledger.add(_slab(0, 6, tile=1))
    again = Ledger(tmp_path / "ledger")
    assert again.slabs(1, 0) == tuple(slabs)
    assert again.slabs(2, 0) == (_slab(0, 5, stage=2),)
    assert again.slabs(1, 1) == (_slab(0, 6, tile=1),)
    assert again.slabs(2, 7) == ()


def test_only_slabs_without_a_gap_before_them_count(ledger: Ledger) -> None:
    for slab in (_slab(0, 4), _slab(8, 12), _slab(12, 16)):
        ledger.add(slab)
    assert ledger.slabs(1, 0) == (_slab(0, 4),)
    ledger.add(_slab(4, 8))
    assert ledger.slabs(1, 0)[-1].stop == 16


def test_slabs_can_be_taken_back(ledger: Ledger) -> None:
    ledger.add(_slab(0, 4))
    ledger.add(_slab(0, 4, stage=2))
    ledger.forget(1, 0)
    assert ledger.slabs(1, 0) == ()
    assert len(ledger.slabs(2, 0)) == 1


def test_a_pass_is_done_until_it_is_reopened(ledger: Ledger) -> None:
    assert ledger.finished("mask") is None
    ledger.finish("mask", {"voxels": 3, "logit_threshold": -0.5})
    assert ledger.finished("mask") == {"voxels": 3, "logit_threshold": -0.5}
    ledger.reopen("mask")
    ledger.reopen("mask")
    assert ledger.finished("mask") is None


def test_a_record_that_is_being_written_is_not_there_yet(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(_slab(0, 4))
    folder = tmp_path / "ledger" / "stage1" / "tile00000"
    (folder / ".0000004-0000008.json.123.partial").write_text('{"stage": 1')
    assert ledger.slabs(1, 0) == (_slab(0, 4),)


@pytest.mark.parametrize("content", ["", "{", '{"stage": 1}', "[]"])
def test_a_damaged_record_is_named_with_the_remedy(content: str, ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(_slab(0, 4))
    path = tmp_path / "ledger" / "stage1" / "tile00000" / "0000000-0000004.json"
    path.write_text(content)
    with pytest.raises(RunStoreError, match=r"0000000-0000004\.json cannot be read.*Delete this file"):
        ledger.slabs(1, 0)
