"""Events on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest
from etsam_zarr_cli import progress
from etsam_zarr_cli.progress import Progress

from etsam_zarr.events import Advanced, Event, Finished, Notice, Started, ignore


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _show(events: list[Event]) -> None:
    shown = Progress()
    for event in events:
        shown(event)
    shown.close()


def test_a_log_file_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    advances = [Advanced("stage 1")] * 30
    _show([Started("stage 1", total=40, done=10), *advances, Finished("stage 1", seconds=60.0)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["stage 1: 40 slices, 10 already done", "stage 1: done in 60.0 s, 0.5 slices/s"]


def test_now_and_then_it_gets_the_rate_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress()
    shown(Started("mask", total=100, done=20))
    for _ in range(8):
        now[0] += 10.0
        shown(Advanced("mask", 5))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mask: 100 slices, 20 already done"
    assert lines[1:] == ["mask: 35/100 slices, 0.5/s, 2 min 10 s left", "mask: 50/100 slices, 0.5/s, 1 min 40 s left"]


def test_a_terminal_gets_a_bar_that_is_closed_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _show([Started("convert", total=4, unit="slabs"), Advanced("convert", 2)])
    assert "convert:" in terminal.getvalue()
    assert "2/4" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_warnings_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    _show([Notice("Made again."), Notice("Thin membranes may vanish.", warning=True)])
    assert capsys.readouterr().err.splitlines() == ["Made again.", "Warning: Thin membranes may vanish."]


def test_by_default_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    ignore(Notice("anything"))
    assert capsys.readouterr() == ("", "")
