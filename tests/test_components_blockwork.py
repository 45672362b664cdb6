"""Work over many blocks: order, events, the first error."""

from __future__ import annotations

import threading

import pytest

from etsam_zarr.components.blockwork import for_each
from etsam_zarr.errors import InputError, SettingsError
from etsam_zarr.events import Advanced, Event, Finished, Started


@pytest.mark.parametrize("workers", [1, 3, None])
def test_results_in_order_and_events_from_one_thread(workers: int | None) -> None:
    events: list[Event] = []
    threads: set[int] = set()

    def listener(event: Event) -> None:
        events.append(event)
        threads.add(threading.get_ident())

    got = for_each(lambda n: n * n, range(20), name="square", done=5, workers=workers, on_event=listener)
    assert got == [n * n for n in range(20)]
    assert events[0] == Started("square", total=25, done=5, unit="blocks")
    assert events[1:-1] == [Advanced("square")] * 20
    assert isinstance(events[-1], Finished)
    assert threads == {threading.get_ident()}


def test_one_worker_is_the_calling_thread() -> None:
    assert for_each(lambda _: threading.get_ident(), [0], name="x", workers=1) == [threading.get_ident()]


@pytest.mark.parametrize("workers", [1, 2])
def test_first_error_comes_through(workers: int) -> None:
    def work(number: int) -> None:
        if number == 3:
            raise InputError("chunk 3 is damaged")

    with pytest.raises(InputError, match="chunk 3"):
        for_each(work, range(10), name="x", workers=workers)


def test_nothing_to_do() -> None:
    assert for_each(len, [], name="x") == []


def test_no_workers() -> None:
    with pytest.raises(SettingsError, match="--workers is 0"):
        for_each(len, [], name="x", workers=0)
