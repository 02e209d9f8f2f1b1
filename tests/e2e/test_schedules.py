"""Schedules through real workers: killed ones, and one whose clock is days off and does not count."""

from __future__ import annotations

import datetime as dt
import signal
from dataclasses import replace
from pathlib import Path

import trio

from continuum.db.protocol import Database
from continuum.model import NewTask, Status, TaskFilter
from continuum.schedules import NewSchedule
from tests.support.installation import Installation
from tests.support.workers import ROOT, start_worker

SECOND = dt.timedelta(seconds=1)
THREE_DAYS_AHEAD = """
import ctypes, datetime, gc, time

ahead, real_time, real_now = datetime.timedelta(days=3), time.time, datetime.datetime.now
time.time = lambda: real_time() + ahead.total_seconds()
time.time_ns = lambda: int(time.time() * 1e9)
methods = gc.get_referents(datetime.datetime.__dict__)[0]
methods["now"] = classmethod(lambda cls, tz=None: real_now(tz) + ahead)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
"""
"""What the interpreter of a worker runs first, so that all of it believes in another time."""
SAY = "import json\nprint(json.loads(payload)['due_at'])"
SECONDLY = NewSchedule("secondly", "* * * * * *", NewTask(code=SAY), catch_up="all")


async def fired(database: Database, tasks: int, name: str = "secondly") -> None:
    """Wait until a schedule has made so many tasks."""
    with trio.fail_after(60):
        while (record := await database.fetch_schedule(name)) is None or record.fired < tasks:
            await trio.sleep(0.1)


async def test_each_second_gets_one_task_through_killed_workers_and_a_wrong_clock(
    light: Installation, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(THREE_DAYS_AHEAD)
    wrong = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    database = light.database
    async with start_worker(light.environment | wrong) as ahead:
        async with start_worker(light.environment) as killed:
            await database.put_schedule(SECONDLY)
            await database.put_schedule(replace(SECONDLY, name="once", catch_up="one"))
            await fired(database, 3)
            killed.send(signal.SIGKILL)
            await killed.wait()
        await fired(database, 6)  # by the one that believes it to be three days later
        async with start_worker(light.environment):
            assert f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=3):%Y-%m-%dT}" in ahead.output
            ahead.send(signal.SIGKILL)
            await ahead.wait()
            made = await database.fetch_schedule("secondly")
            assert made is not None
            await fired(database, made.fired + 3)
            for name in ("secondly", "once"):
                await database.pause_schedule(name)
            tasks = await database.fetch([each.id for each in await database.search(TaskFilter(limit=1000))])
            for name in ("secondly", "once"):
                record = await database.fetch_schedule(name)
                assert record is not None
                dues = sorted(task.due_at for task in tasks if task.schedule == name and task.due_at)
                assert len(dues) == len(set(dues)) == record.fired
                seconds = (dues[-1] - dues[0]) // SECOND + 1
                assert seconds == record.fired + record.missed
                if name == "secondly":
                    assert record.missed == 0
            for task in tasks:
                assert task.due_at is not None
                assert dt.timedelta(0) <= task.created_at - task.due_at < 60 * SECOND
                if task.status == Status.COMPLETED:
                    assert task.output == f"{task.due_at:%Y-%m-%dT%H:%M:%SZ}\n"
            assert sum(task.status == Status.COMPLETED for task in tasks) > 3
