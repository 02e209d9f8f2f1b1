"""Claiming less where memory or processor time is short, or the database slow; on the virtual clock."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import Claim, Status
from continuum.nursery.pace import AHEAD, MOST_AHEAD, PATIENCE, SHARE, SLOW, Pace
from continuum.nursery.signals import Signal
from continuum.nursery.state import Level, WorkerState
from continuum.nursery.strain import INTERVAL, LATE, StrainWatch
from tests.support.harness import RunningWorker, worker
from tests.unit.test_ahead import Counting, after_many_short_tasks
from tests.unit.test_status_app import client

GROUP = "sys/fs/cgroup/work/worker"


def write(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


def pressure(some: float, full: float) -> str:
    return f"some avg10={some:.2f} avg60=0.00 avg300=0.00 total=6803365\nfull avg10={full:.2f} avg60=0.00 avg300=0.00 total=9\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host that is short of nothing, and this worker's control group in it."""
    write(tmp_path, "proc/pressure/memory", pressure(0, 0))
    write(tmp_path, "proc/self/cgroup", "3:cpuset:/\n0::/work/worker\n")
    write(tmp_path, f"{GROUP}/memory.pressure", pressure(0, 0))
    write(tmp_path, f"{GROUP}/cpu.pressure", pressure(99, 0))
    write(tmp_path, f"{GROUP}/memory.max", "max\n")
    write(tmp_path, f"{GROUP}/memory.current", "950\n")
    write(tmp_path, f"{GROUP}/memory.stat", "anon 900\ninactive_file 40\n")
    return tmp_path


@pytest.fixture
async def watch(root: Path) -> StrainWatch:
    return StrainWatch(WorkerState(id="one", slots=4), Signal(), root)


@pytest.mark.parametrize(
    ("file", "text", "levels", "said"),
    [
        ("proc/pressure/memory", pressure(5, 5), {}, ""),
        ("proc/pressure/memory", pressure(9, 0), {"memory": Level.SOME}, "something waited for memory 9 % of the time"),
        (
            "proc/pressure/memory",
            pressure(40, 25),
            {"memory": Level.SEVERE},
            "everything waited for memory 25 % of the time",
        ),
        (
            f"{GROUP}/memory.pressure",
            pressure(40, 25),
            {"memory": Level.SEVERE},
            "everything waited for memory 25 % of",
        ),
        ("sys/fs/cgroup/work/memory.pressure", pressure(8, 0), {"memory": Level.SOME}, "something waited for memory"),
        (f"{GROUP}/memory.max", "1000\n", {"memory": Level.SEVERE}, "91 % of the memory limit is used"),
        (f"{GROUP}/memory.max", "2000\n", {}, ""),
        (
            f"{GROUP}/cpu.pressure",
            pressure(99, 30),
            {"cpu": Level.SOME},
            "everything waited for a processor 30 % of the time",
        ),
        ("proc/pressure/memory", "nonsense avg10=\nsome avg10=x\n\n", {}, ""),
        (f"{GROUP}/memory.max", "", {}, ""),
    ],
)
async def test_it_is_read_from_the_kernel(
    root: Path, watch: StrainWatch, file: str, text: str, levels: dict[str, Level], said: str
) -> None:
    write(root, file, text)
    watch.look()
    assert {resource: level for resource, (level, _) in watch.state.strain.items()} == levels
    assert said in " ".join(watch.state.notes().values())


async def test_where_the_kernel_says_nothing_nothing_is_short(tmp_path: Path) -> None:
    watch = StrainWatch(WorkerState(id="one", slots=4), Signal(), tmp_path)
    watch.look()
    assert watch.state.strain == {}


async def test_it_does_not_come_and_go(root: Path, watch: StrainWatch) -> None:
    for some, strained in ((6.9, False), (7.1, True), (6.5, True), (6.2, False), (6.9, False)):
        write(root, "proc/pressure/memory", pressure(some, 0))
        watch.look()
        assert bool(watch.state.strain) == strained


async def test_a_loop_that_gets_its_turn_too_late_is_short_of_processors(
    mock_clock: MockClock, watch: StrainWatch
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        for late, strained in ((0.0, False), (3 * LATE, True), (0.0, False)):
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(INTERVAL + late)
            await trio.testing.wait_all_tasks_blocked()
            assert ("cpu" in watch.state.strain) == strained
        nursery.cancel_scope.cancel()


async def most_at_once(w: RunningWorker, seconds: float) -> int:
    """How many tasks the record had running at any time of so many seconds."""
    most = 0
    for _ in range(int(seconds / 0.05)):
        await trio.sleep(0.05)
        most = max(most, sum(record.status == Status.PROCESSING for record in w.database.tasks.values()))
    return most


async def test_a_worker_claims_nothing_ahead_while_something_is_short(autojump_clock: MockClock, root: Path) -> None:
    async with worker(Counting(), slots=2, root=root) as w:
        await after_many_short_tasks(w)
        assert w.state.ahead() > 2
        write(root, "proc/pressure/memory", pressure(9, 0))
        await trio.sleep(INTERVAL)
        assert w.state.ahead() == 0
        await w.submit(*["sleep 0.01"] * 300)
        assert await most_at_once(w, 2) <= 2
        assert w.state.health.ready
        write(root, "proc/pressure/memory", pressure(0, 0))
        await trio.sleep(INTERVAL)
        assert w.state.notes() == {}
        assert w.state.ahead() > 2


async def test_a_worker_whose_memory_runs_out_keeps_one_slot_busy(autojump_clock: MockClock, root: Path) -> None:
    async with worker(Counting(), slots=4, root=root) as w:
        await after_many_short_tasks(w)
        ids = await w.submit(*["sleep 10"] * 30)
        await trio.sleep(0.2)
        assert len(w.state.waiting) > 4
        write(root, "proc/pressure/memory", pressure(60, 30))
        await trio.sleep(INTERVAL)
        assert not w.state.waiting, "given back"
        assert len(w.state.running) == 4, "what runs goes on"
        await trio.sleep(10)
        assert await most_at_once(w, 30) == 1
        records = [await w.record(task_id) for task_id in ids]
        assert sum(record.status == Status.COMPLETED for record in records) >= 6
        assert {record.attempt - record.released for record in records} <= {0, 1}
        write(root, "proc/pressure/memory", pressure(0, 0))
        await trio.sleep(INTERVAL + 1)
        assert len(w.state.running) == 4


async def test_it_is_told_and_no_failure() -> None:
    state = WorkerState(id="one", slots=4, strain={"memory": (Level.SEVERE, "91 % of the memory limit is used")})
    answer = await client(state=state).get("/readyz")
    assert answer.status_code == 200
    assert (await answer.get_json())["notes"] == {
        "memory": "91 % of the memory limit is used: at most one task is begun at a time"
    }
    assert state.strain_levels == {"memory": 2, "cpu": 0, "database": 0}


# -- a slow database -----------------------------------------------------------------------------------------------------


class Slow(MemoryDatabase):
    """Takes its time for claims."""

    seconds = 0.0
    sizes: list[int]

    async def claim(self, *args: Any, **values: Any) -> Claim:
        await trio.sleep(self.seconds)
        found = await super().claim(*args, **values)
        if found:
            self.sizes.append(len(found))
        return found


def test_work_is_held_for_as_long_as_claims_take() -> None:
    pace = Pace()
    pace.note(AHEAD)
    assert (pace.ahead(4, []), pace.gathering(), pace.slow) == (4, 0, False)
    pace.claim_time = 0.1
    assert (pace.ahead(4, []), pace.gathering(), pace.slow) == (16, 0, False)
    pace.claim_time = 3.0
    assert pace.ahead(4, []) == 4 * PATIENCE / 2 / AHEAD
    assert pace.gathering() == pytest.approx(SHARE * AHEAD)
    for _ in range(200):
        pace.note(0.0)
    assert pace.ahead(4, []) == 4 * MOST_AHEAD * PATIENCE / 2 / AHEAD


async def course(seconds: float, patch: pytest.MonkeyPatch | None = None) -> tuple[float, float]:
    """How long 300 tasks of about ten seconds take with 16 slots, and how many a claim took on average."""
    lengths = random.Random(7)
    if patch is not None:
        patch.setattr(Pace, "gathering", lambda pace: 0.0)
    database = Slow()
    database.seconds, database.sizes = seconds, []
    async with worker(database, slots=16) as w:
        began = trio.current_time()
        await w.submit(*[f"sleep {lengths.uniform(5, 15):.2f}" for _ in range(300)])
        while w.state.processed < 300:
            await trio.sleep(0.5)
        took = trio.current_time() - began
    return took, sum(database.sizes) / len(database.sizes)


async def test_a_database_that_is_slow_gets_fewer_and_larger_claims(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ordinary = await course(0.005)
    assert ordinary < 1.5
    slow, gathered = await course(2 * SLOW)
    at_once, ungathered = await course(2 * SLOW, monkeypatch)
    assert gathered > 2 * ungathered / 1.5
    assert gathered > 2
    assert slow <= (1 + SHARE) * at_once
