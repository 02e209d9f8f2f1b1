"""A run itself: it is not called clean when too little happened, and it kills the workers that it says it kills."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.chaos import history
from tests.chaos.fleet import Fleet
from tests.chaos.history import FaultBegan, History, Kept, Recorder, Row, Submitted, WorkerEnded, Written
from tests.chaos.nodes import ONE_NODE
from tests.chaos.plan import Fault, Plan, Reporter
from tests.chaos.shortfalls import HEALING, shortfalls

PLAN = Plan(tasks=1, worker_kills=1)
ROW = Row(1, "k", "completed", 1, 0, "w", "", "then", None, False)


async def nothing(report: Reporter) -> None:
    """Break nothing."""


KILL = Fault("kill", nothing, ONE_NODE, longest_pause=12.0)
HANG = Fault("hang", nothing, ONE_NODE)


def life(pause: float = 1.0) -> History:
    """The least that a run has to show, with one outcome after `pause` seconds."""
    return [
        FaultBegan(at=0, wall=0, name="node 1 killed", outage=False),
        Submitted(at=0, wall=0, key="k", payload="{}", began=0, answer="acknowledged", task_id=1),
        WorkerEnded(at=0, wall=0, worker="w", killed=True),
        Written(at=pause, wall=0, worker="w", began=0, standing=(ROW.lease,), lost=()),
        Kept(at=pause, wall=0, row=ROW, payload="{}"),
    ]


def test_a_run_in_which_all_that_was_planned_happened_has_no_shortfall() -> None:
    assert shortfalls(PLAN, KILL, life(), judged=0.1) == []


def test_a_run_in_which_nothing_happened_proves_nothing() -> None:
    found = shortfalls(PLAN, HANG, [FaultBegan(at=0, wall=0, name=HEALING, outage=True)], judged=0.0)
    assert found == [
        "0 tasks were acknowledged, not 1",
        "0 tasks are in the record, not 1",
        "0 tasks are terminal, not 1",
        "nothing was broken",
        "0 workers were killed, not 1",
        "law 7 was never judged: no worker had a slot free for long enough; let the work last longer",
    ]


def test_workers_may_not_stand_still_where_the_fault_says_so() -> None:
    (pause,) = shortfalls(PLAN, KILL, life(pause=12.5), judged=1.0)
    assert pause == "there was no outcome for 12.5 s; with the fault kill there may be none for 12 s"
    assert shortfalls(PLAN, HANG, life(pause=12.5), judged=1.0) == []


async def test_a_worker_that_had_ended_by_itself_was_not_killed(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.jsonl") as record:
        fleet = Fleet(PLAN, "postgresql://127.0.0.1/nowhere", tmp_path, record)
        crashed = subprocess.Popen(["sh", "-c", "exit 3"])
        crashed.wait()
        living = subprocess.Popen(["sleep", "60"])
        fleet._workers |= {"crashed": crashed, "living": living}
        assert await fleet.kill_oldest() == "living"
        assert await fleet.kill_oldest() is None
    assert living.returncode == -signal.SIGKILL
    ends = [event for event in history.read(tmp_path) if isinstance(event, WorkerEnded)]
    assert [(end.worker, end.killed, end.exit_code) for end in ends] == [
        ("crashed", False, 3),
        ("living", True, None),
    ]
