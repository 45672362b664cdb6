"""The planner of jobs, against a simulated run: workers in any order, repairs that agree or not, crashes."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam_zarr.config import PROFILES
from etsam_zarr.geometry import Span
from etsam_zarr.intensity import IntensityRange
from etsam_zarr.jobs import ASSUMED_BOUNDS, RunFacts, VolumeAddress
from etsam_zarr.ledger import Block, Ledger, RepairRecord, SlabRecord, assumption_of, conditioning_of
from etsam_zarr.modelspec import choose_model
from etsam_zarr.plan import Seams, cut_windows, plan_run
from etsam_zarr.schedule import Task, WindowState, following_jobs, next_jobs, next_tasks

DONE, OPEN = WindowState(computed=True), WindowState(computed=False)


def _repaired(*repairs: tuple[int, bool]) -> WindowState:
    """A window with promoted repairs, each from a base and agreeing or not."""
    records = (
        RepairRecord(generation, base, "promoted", stop=1, agreed=agreed)
        for generation, (base, agreed) in enumerate(repairs, start=1)
    )
    return WindowState(True, tuple(records))


class Simulation:
    """A tile whose windows hold, instead of logits, the history that made their last slice."""

    def __init__(self, count: int, draw: st.DrawFn, *, eager: bool) -> None:
        self.draw, self.eager = draw, eager
        self.prompted = False
        self.windows = [OPEN] * count
        self.under_way: list[Task] = []
        self.repairs = [0] * count
        self.ends: list[list[object]] = [[] for _ in range(count)]

    def tasks(self) -> tuple[Task, ...]:
        return next_tasks(self.prompted, self.windows, eager=self.eager)

    def startable(self) -> list[Task]:
        busy = {(task.window, task.work, task.generation) for task in self.under_way}
        return [task for task in self.tasks() if (task.window, task.work, task.generation) not in busy]

    def begin(self, task: Task) -> None:
        assert task.window not in [other.window for other in self.under_way], "two jobs on one window"
        self.under_way.append(task)
        if task.work != "repair":
            return
        left, window = self.windows[task.window - 1], self.windows[task.window]
        assert left.computed
        assert window.computed
        earlier = tuple(repair for repair in window.repairs if repair.generation != task.generation)
        assert len(earlier) == task.generation - 1
        known = next((repair for repair in window.repairs if repair.generation == task.generation), None)
        record = known if known is not None and known.progress == "ended" else None
        record = record or RepairRecord(task.generation, task.base, "begun")
        self.windows[task.window] = WindowState(True, (*earlier, record))

    def end(self, task: Task) -> None:
        self.under_way.remove(task)
        if task.work == "conditioning":
            self.prompted = True
        elif task.work == "window":
            self.windows[task.window] = DONE
        else:
            *earlier, record = self.windows[task.window].repairs
            self.repairs[task.window] += 1
            agreed = record.agreed if record.progress == "ended" else self.draw(st.booleans())
            record = dataclasses.replace(record, progress="promoted", agreed=agreed)
            self.windows[task.window] = WindowState(True, (*earlier, record))

    def crash(self) -> None:
        """Lose all that is under way; some repairs have come to their end, but not to their place."""
        for task in self.under_way:
            if task.work == "repair" and self.draw(st.booleans()):
                *earlier, record = self.windows[task.window].repairs
                record = dataclasses.replace(record, progress="ended", agreed=self.draw(st.booleans()))
                self.windows[task.window] = WindowState(True, (*earlier, record))
        self.under_way.clear()


@given(st.data())
def test_any_order_of_workers_and_crashes_ends_with_every_window_repaired_from_a_final_end(data: st.DataObject) -> None:
    count, eager = data.draw(st.integers(1, 6)), data.draw(st.booleans())
    run = Simulation(count, data.draw, eager=eager)
    crashes = 0
    for _ in range(1000):
        startable = run.startable()
        if not startable and not run.under_way:
            break
        moves = ["begin"] * bool(startable) + ["end"] * bool(run.under_way) + ["crash"] * (crashes < 3)
        move = data.draw(st.sampled_from(moves))
        if move == "begin":
            run.begin(data.draw(st.sampled_from(startable)))
        elif move == "end":
            run.end(data.draw(st.sampled_from(run.under_way)))
        else:
            crashes += 1
            run.crash()
    assert run.tasks() == ()
    assert all(window.computed for window in run.windows)
    assert run.windows[0].repairs == ()
    for index in range(1, count):
        assert run.windows[index].repairs[-1].base == run.windows[index - 1].end
        # A window is repaired again only when its left neighbour's end has changed.
        changes = sum(not repair.agreed for repair in run.windows[index - 1].repairs)
        assert len(run.windows[index].repairs) <= 1 + changes
        if not eager:
            assert len(run.windows[index].repairs) == 1


@pytest.mark.parametrize(
    ("windows", "eager", "expected"),
    [
        ([OPEN, OPEN], True, [Task(0, "window"), Task(1, "window")]),
        ([OPEN], True, [Task(0, "window")]),
        ([DONE], True, []),
        ([OPEN, DONE, DONE], True, [Task(0, "window"), Task(2, "repair", 1, 0)]),
        ([OPEN, DONE, DONE], False, [Task(0, "window")]),
        ([DONE, DONE, DONE], True, [Task(1, "repair", 1, 0), Task(2, "repair", 1, 0)]),
        ([DONE, DONE, DONE], False, [Task(1, "repair", 1, 0)]),
        ([DONE, _repaired((0, True)), DONE], False, [Task(2, "repair", 1, 0)]),
        # The second ran to its end: the third's repair set out from what is no longer there.
        ([DONE, _repaired((0, False)), _repaired((0, True))], True, [Task(2, "repair", 2, 1)]),
        ([DONE, _repaired((0, False)), _repaired((1, True))], True, []),
        ([DONE, _repaired((0, True)), _repaired((0, False))], True, []),
    ],
)
def test_what_is_next(windows: list[WindowState], eager: bool, expected: list[Task]) -> None:
    assert list(next_tasks(True, windows, eager=eager)) == expected
    assert next_tasks(False, windows, eager=eager) == (Task(0, "conditioning"),)


@pytest.mark.parametrize(("progress", "base"), [("begun", 1), ("ended", 0), ("copied", 0)])
def test_a_repair_that_was_left(progress: str, base: int) -> None:
    left = _repaired((0, False))
    window = WindowState(True, (RepairRecord(1, 0, progress),))  # type: ignore[arg-type]
    # What is still being compared sets out from the new end; what has ended goes to its place first.
    assert next_tasks(True, [DONE, left, window], eager=True) == (Task(2, "repair", 1, base),)


def test_jobs_come_from_the_ledger_alone(tmp_path: Path) -> None:
    model, settings = choose_model("seeded-256"), PROFILES["etsam-v2"]
    plan = plan_run(
        (40, 300, 300), dataclasses.replace(settings, tiling="tiles"), model.config, voxel_bytes=4,
        windows=cut_windows(40, 2, unit=16), seams=Seams(4, 0.1),
    )  # fmt: skip
    run = RunFacts(
        tmp_path, VolumeAddress("a.mrc"), model, settings, plan, IntensityRange(0.0, 1.0, 0.0, 1.0),
        "float32",
    )  # fmt: skip
    ledger = Ledger(tmp_path / "ledger")
    jobs = next_jobs(ledger, run, 1, device="cpu")
    assert [job.name for job in jobs] == [f"stage 1, tile {tile}, prompts" for tile in range(4)]
    ledger.finish(conditioning_of(1, 2), {"seconds": 1.0})
    jobs = next_jobs(ledger, run, 1, device="cpu")
    names = [job.name for job in jobs]
    assert names[2:4] == ["stage 1, tile 2, slices 0:16", "stage 1, tile 2, slices 16:40"]
    assert len(set(names)) == len(names)
    assert pickle.loads(pickle.dumps(jobs)) == jobs
    for span, window in ((Span(0, 16), 0), (Span(16, 40), 1)):
        slices = (0,) * span.size
        ledger.add(Block(1, 2, window, span), SlabRecord(span.start, span.stop, slices, (), 1.0))
    (repair,) = (job for job in next_jobs(ledger, run, 1, device="cpu") if job.block.tile == 2)
    assert (repair.work, repair.generation, repair.base, repair.slab) == ("repair", 1, 0, plan.slab)
    assert repair.name == "stage 1, tile 2, repair 1 of slices 16:40"


def test_stage_2_behind_stage_1(tmp_path: Path) -> None:
    model, settings = choose_model("seeded-256"), PROFILES["etsam-v2"]
    plan = plan_run((40, 60, 60), settings, model.config, voxel_bytes=4)
    assert plan.follow_obstacle is None
    limits = IntensityRange(0.0, 1.0, 0.0, 1.0)
    run = RunFacts(tmp_path, VolumeAddress("a.mrc"), model, settings, plan, limits, "float32")
    ledger = Ledger(tmp_path / "ledger")

    def slab(stage: Literal[1, 2], start: int, stop: int) -> None:
        ledger.add(Block(stage, 0, 0, Span(0, 40)), SlabRecord(start, stop, (0,) * (stop - start), (), 1.0))

    def jobs() -> list[tuple[str, int]]:
        found = following_jobs(ledger, run, device="cpu")
        assert all(job.assumed == ASSUMED_BOUNDS for job in found)
        return [(job.name, job.begins) for job in found]

    assert jobs() == []
    slab(1, 0, 16)
    assert jobs() == [("stage 2, tile 0, prompts", 0)]
    expectation = {"minimum": -5.0, "maximum": 5.0}
    ledger.finish(assumption_of(0), expectation)
    ledger.finish(conditioning_of(2, 0), {"seconds": 1.0})
    assert jobs() == [("stage 2, tile 0", 0)]
    slab(2, 0, 16)
    assert jobs() == []
    slab(1, 16, 40)
    assert jobs() == [("stage 2, tile 0", 16)]
    ledger.reopen(assumption_of(0))
    assert jobs() == [], "what was begun with the true bounds goes on with them"
    ledger.finish(assumption_of(0), expectation)
    ledger.finish("stage1", {"bounds": [(-5.0, 5.0)]})
    assert jobs() == [("stage 2, tile 0", 16)]
    ledger.finish("stage1", {"bounds": [(-5.0, 4.9)]})
    assert jobs() == []
