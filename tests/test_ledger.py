"""Records of what is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from etsam_zarr.errors import RunStoreError
from etsam_zarr.geometry import Span
from etsam_zarr.ledger import Block, Ledger, RepairRecord, SlabRecord, computed_slices

FIRST = Block(1, 0, 0, Span(0, 2000))
SECOND_WINDOW = Block(1, 0, 1, Span(2000, 2010))


def _slab(start: int, stop: int, *, generation: int = 0) -> SlabRecord:
    slices = range(start, stop)
    return SlabRecord(
        start,
        stop,
        checksums=tuple(z * 7 + generation for z in slices),
        bounds=tuple((-5.0, 0.1 + z + generation) for z in slices),
        seconds=0.5,
        differences=tuple((0.25, 2.0) for _ in slices if generation),
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def _folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "stage1" / "tile00000" / "window00000" / "generation000"


def test_records_come_back_in_order_from_another_process(ledger: Ledger, tmp_path: Path) -> None:
    # Stops of different length: the order is that of the slices, not of the text.
    slabs = [_slab(0, 9), _slab(9, 99), _slab(99, 100), _slab(100, 1001)]
    for slab in reversed(slabs):
        ledger.add(FIRST, slab)
    ledger.add(Block(2, 0, 0, FIRST.span), _slab(0, 5))
    ledger.add(Block(1, 1, 0, FIRST.span), _slab(0, 6))
    ledger.add(SECOND_WINDOW, _slab(2000, 2004))
    again = Ledger(tmp_path / "ledger")
    assert again.slabs(FIRST) == tuple(slabs)
    assert again.slabs(Block(2, 0, 0, FIRST.span)) == (_slab(0, 5),)
    assert again.slabs(Block(1, 1, 0, FIRST.span)) == (_slab(0, 6),)
    assert again.slabs(SECOND_WINDOW) == (_slab(2000, 2004),)
    assert again.slabs(Block(2, 7, 0, FIRST.span)) == ()
    assert computed_slices(again, [FIRST, SECOND_WINDOW]) == 1001 + 4


def test_only_slabs_without_a_gap_before_them_count(ledger: Ledger) -> None:
    for slab in (_slab(0, 4), _slab(8, 12), _slab(12, 16)):
        ledger.add(FIRST, slab)
    assert ledger.slabs(FIRST) == (_slab(0, 4),)
    assert ledger.reached(FIRST) == 4
    ledger.add(FIRST, _slab(4, 8))
    assert ledger.reached(FIRST) == ledger.slabs(FIRST)[-1].stop == 16
    # Slabs of a later window do not begin with slice 0.
    ledger.add(SECOND_WINDOW, _slab(2004, 2008))
    assert ledger.reached(SECOND_WINDOW) == 2000


def test_promoted_repairs_replace_slices(ledger: Ledger) -> None:
    ledger.add(FIRST, _slab(0, 8))
    ledger.note_repair(FIRST, RepairRecord(1, 0, "begun"))
    ledger.add(FIRST, _slab(0, 3, generation=1), generation=1)
    assert ledger.accepted(FIRST)[1] == (7, (-5.0, 1.1)), "a repair that goes on does not count"
    promoted = RepairRecord(1, 0, "promoted", stop=3, agreed=True, difference=0.25)
    ledger.note_repair(FIRST, promoted)
    assert ledger.repairs(FIRST) == (promoted,)
    accepted = ledger.accepted(FIRST)
    assert list(accepted) == list(range(8))
    assert [checksum for checksum, _ in accepted.values()] == [1, 8, 15, 21, 28, 35, 42, 49]
    assert accepted[2] == (15, (-5.0, 0.1 + 2 + 1))
    assert ledger.slabs(FIRST, generation=1)[0].differences == ((0.25, 2.0),) * 3
    ledger.forget_generation(FIRST, 1)
    assert ledger.repairs(FIRST) == ()
    assert ledger.slabs(FIRST, generation=1) == ()
    assert ledger.accepted(FIRST)[2][0] == 14


def test_a_stage_of_a_tile_can_be_taken_back(ledger: Ledger) -> None:
    other = Block(2, 0, 0, FIRST.span)
    ledger.add(FIRST, _slab(0, 4))
    ledger.add(SECOND_WINDOW, _slab(2000, 2004))
    ledger.note_repair(SECOND_WINDOW, RepairRecord(1, 0, "begun"))
    ledger.add(other, _slab(0, 4))
    ledger.finish("stage1", {"seconds": 1})
    ledger.forget(1, 0)
    assert ledger.slabs(FIRST) == ledger.slabs(SECOND_WINDOW) == ledger.repairs(SECOND_WINDOW) == ()
    assert ledger.finished("stage1") is None
    assert len(ledger.slabs(other)) == 1


def test_a_pass_is_done_until_it_is_reopened(ledger: Ledger) -> None:
    assert ledger.finished("mask") is None
    ledger.finish("mask", {"voxels": 3, "logit_threshold": -0.5})
    assert ledger.finished("mask") == {"voxels": 3, "logit_threshold": -0.5}
    ledger.reopen("mask")
    ledger.reopen("mask")
    assert ledger.finished("mask") is None


def test_a_record_that_is_being_written_is_not_there_yet(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(FIRST, _slab(0, 4))
    (_folder(tmp_path) / ".0000004-0000008.json.123.partial").write_text('{"stage": 1')
    assert ledger.slabs(FIRST) == (_slab(0, 4),)


@pytest.mark.parametrize("content", ["", "{", '{"start": 1}', "[]", '{"checksums": 3, "bounds": []}'])
def test_a_damaged_record_is_named_with_the_remedy(content: str, ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(FIRST, _slab(0, 4))
    (_folder(tmp_path) / "0000000-0000004.json").write_text(content)
    with pytest.raises(RunStoreError, match=r"0000000-0000004\.json cannot be read.*Delete this file"):
        ledger.slabs(FIRST)
    (_folder(tmp_path) / "repair.json").write_text(content)
    with pytest.raises(RunStoreError, match=r"repair\.json cannot be read.*Delete this file"):
        ledger.repairs(FIRST)
