"""Encoding ahead: in order, one slice at a time, errors where they belong, and only where it is faster.

That results are the same to the last bit is shown in ``test_equality.py`` and ``test_resume.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sam_walks import HEIGHT, WIDTH, RepeatedFrames, blob, encoding_once, logits_of, walked
from threadpoolctl import threadpool_info, threadpool_limits

from etsam_zarr.geometry import Span
from etsam_zarr.sam import encode_ahead
from etsam_zarr.sam.encode_ahead import MOST_THREADS, EncodedAhead, Features, OtherPrograms, worth_encoding_ahead
from etsam_zarr.sam.propagation import Propagation

DEPTH = 8


class _Frames:
    """Frames of one number each; slices of ``missing`` cannot be read."""

    def __init__(self, missing: frozenset[int] = frozenset()) -> None:
        self._missing = missing
        self.asked: list[int] = []

    def __len__(self) -> int:
        return DEPTH

    def __getitem__(self, z: int) -> torch.Tensor:
        self.asked.append(z)
        if z in self._missing:
            raise OSError(f"slice {z} is not there")
        return torch.tensor(float(z))


def _encode(frame: torch.Tensor) -> Features:
    return frame, {"twice": 2 * frame}


def _no_thread_is_left() -> bool:
    return all(not thread.name.startswith("encode-slices") for thread in threading.enumerate())


def test_slices_come_in_order_and_only_one_is_encoded_ahead() -> None:
    frames = _Frames()
    with EncodedAhead(_encode, frames, [1, 2, 5, 6]) as ahead:
        for count, z in enumerate([1, 2, 5], start=1):
            frame, found = ahead.take(z)
            assert (frame, found["twice"]) == (z, 2 * z)
            assert len(frames.asked) <= count + 1
        with pytest.raises(RuntimeError, match="slice 7 was asked for where 6 comes next"):
            ahead.take(7)
        ahead.take(6)
        with pytest.raises(RuntimeError, match="slice 8 was asked for where None comes next"):
            ahead.take(8)
    assert frames.asked == [1, 2, 5, 6]
    assert _no_thread_is_left()


def test_what_goes_wrong_is_raised_where_the_slice_is_taken() -> None:
    with EncodedAhead(_encode, _Frames(frozenset({2})), range(DEPTH)) as ahead:
        ahead.take(0)
        ahead.take(1)
        with pytest.raises(OSError, match="slice 2 is not there"):
            ahead.take(2)
    assert _no_thread_is_left()


def test_an_error_of_the_taker_ends_the_thread() -> None:
    def interrupted() -> None:
        with EncodedAhead(_encode, _Frames(), range(DEPTH)) as ahead:
            ahead.take(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _no_thread_is_left()


def test_waiting_for_a_slice_counts_and_waiting_for_the_encoder_does_not() -> None:
    read, encode = threading.Event(), threading.Event()

    class Slow(_Frames):
        def __getitem__(self, z: int) -> torch.Tensor:
            if z == 1:
                assert read.wait(30)
            return super().__getitem__(z)

    def encode_slowly(frame: torch.Tensor) -> Features:
        if frame == 2:
            assert encode.wait(30)
        return _encode(frame)

    with EncodedAhead(encode_slowly, Slow(), range(3)) as ahead:
        ahead.take(0)
        counted = ahead.seconds_waited
        threading.Timer(0.2, read.set).start()
        ahead.take(1)
        waited = ahead.seconds_waited - counted
        assert waited > 0.1
        threading.Timer(0.2, encode.set).start()
        ahead.take(2)
        assert ahead.seconds_waited - counted - waited < 0.1


def _openmp_threads() -> int:
    threads: int = next(library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp")
    return threads


@pytest.mark.parametrize("threads", [1, 2])
def test_the_thread_computes_with_as_many_threads_as_the_caller(threads: int) -> None:
    seen = []

    def encode(frame: torch.Tensor) -> Features:
        seen.append((torch.get_num_threads(), _openmp_threads()))
        return _encode(frame)

    torch.get_num_threads()
    with threadpool_limits(threads, user_api="openmp"), EncodedAhead(encode, _Frames(), range(2)) as ahead:
        ahead.take(0)
        ahead.take(1)
    assert seen == [(threads, threads)] * 2


class _Others(OtherPrograms):
    """Other programs that take so many cores."""

    def __init__(self, cores: float) -> None:
        self._found = cores

    def cores(self) -> float:
        return self._found


def test_what_other_programs_take_is_what_the_process_did_not_take_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([(0.0, 100.0, 7.0), (10.0, 118.0, 16.0), (10.1, 118.2, 16.0), (20.0, 128.0, 26.0)])
    monkeypatch.setattr(encode_ahead, "_clocks", lambda: next(clocks))
    others = OtherPrograms()
    assert others.cores() == pytest.approx(0.9)
    assert others.cores() == pytest.approx(0.9), "asked again too soon to tell"
    assert others.cores() == 0


def test_the_clocks_go_forward_and_this_process_is_part_of_what_is_busy() -> None:
    before = encode_ahead._clocks()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    wall, busy, own = (after - earlier for after, earlier in zip(encode_ahead._clocks(), before, strict=True))
    assert own >= 0.3
    assert own - 0.1 <= busy <= wall * len(encode_ahead._cores()) + 0.1


def _with_libraries(monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> None:
    libraries = [{"user_api": "openmp", "prefix": prefix} for prefix in prefixes]
    monkeypatch.setattr(encode_ahead, "_libraries", lambda: SimpleNamespace(info=lambda: libraries))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two cores, PyTorch's two threads, GNU's OpenMP, and nothing said about waiting."""
    monkeypatch.setattr(encode_ahead, "_cores", lambda: [0, 1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    _with_libraries(monkeypatch, "libgomp")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    return monkeypatch


@pytest.mark.usefixtures("machine")
def test_beside_another_program_it_is_worth_it_and_on_quiet_cores_or_a_gpu_it_is_not() -> None:
    assert worth_encoding_ahead("cpu", others=_Others(1.0))
    assert not worth_encoding_ahead("cpu", others=_Others(0.1))
    assert not worth_encoding_ahead("cuda:0", others=_Others(1.0))


@pytest.mark.parametrize(
    ("threads", "cores", "worth"),
    [(1, 1, False), (1, 2, False), (2, 1, True), (2, 2, True), (2, 8, False), (MOST_THREADS, MOST_THREADS, True),
     (MOST_THREADS + 1, MOST_THREADS + 1, False)],
)  # fmt: skip
def test_no_more_cores_are_taken_than_threads_were_asked_for(
    threads: int, cores: int, worth: bool, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(torch, "get_num_threads", lambda: threads)
    machine.setattr(encode_ahead, "_cores", lambda: list(range(cores)))
    assert worth_encoding_ahead("cpu", others=_Others(1.0)) is worth


@pytest.mark.parametrize("variable", [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000000")])
def test_not_where_waiting_threads_were_told_to_spin(variable: tuple[str, str], machine: pytest.MonkeyPatch) -> None:
    machine.setenv(*variable)
    assert not worth_encoding_ahead("cpu", others=_Others(1.0))


@pytest.mark.parametrize("prefixes", [[], ["libomp"], ["libgomp", "libiomp"]])
def test_not_with_another_openmp(prefixes: list[str], machine: pytest.MonkeyPatch) -> None:
    _with_libraries(machine, *prefixes)
    assert not worth_encoding_ahead("cpu", others=_Others(1.0))


@pytest.fixture(scope="module")
def predictor(seeded_predictor: Any) -> Iterator[Any]:
    with encoding_once(seeded_predictor):
        yield seeded_predictor


def _prompted(predictor: Any, frames: Any) -> Propagation:
    walk = Propagation(predictor, frames, height=HEIGHT, width=WIDTH)
    for z in (0, 3):
        walk.prompt(z, blob(z))
    return walk


def test_a_walk_that_encodes_ahead_equals_one_that_does_not(predictor: Any) -> None:
    frames = RepeatedFrames(DEPTH, period=DEPTH)
    expected = logits_of(walked(_prompted(predictor, frames), Span(0, DEPTH)))
    walk = _prompted(predictor, frames)
    with walk.encoding(Span(0, DEPTH), ahead=True):
        found = [*walked(walk, Span(0, 2)), *walked(walk, Span(2, DEPTH))]
    assert torch.equal(logits_of(found), expected)
    assert walk.seconds > 0


def test_a_slice_that_cannot_be_read_ends_the_walk_with_its_error(predictor: Any) -> None:
    class Broken(RepeatedFrames):
        def __getitem__(self, z: int) -> torch.Tensor:
            if z == 5:
                raise OSError("slice 5 is not there")
            return super().__getitem__(z)

    walk = _prompted(predictor, Broken(DEPTH, period=DEPTH))
    outputs: list[int] = []
    with pytest.raises(OSError, match="slice 5 is not there"), walk.encoding(Span(0, DEPTH), ahead=True):
        walk.walk(Span(0, DEPTH), lambda output: outputs.append(output.z))
    assert outputs == [0, 1, 2, 3, 4]
    assert _no_thread_is_left()
