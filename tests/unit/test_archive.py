"""Archiving finished tasks: what is written, and that nothing is deleted that is not on disk, whatever ends when."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from continuum import archive as archive_module
from continuum.archive import Archive, task_line
from continuum.db.memory import MemoryDatabase
from continuum.model import AttemptRecord, Completion, EndedFilter, EndedTask, NewTask, Status, TaskRecord
from continuum.nursery import archiving as archiving_module
from continuum.nursery.archiving import TEXT_AT_ONCE, Archiving, portions
from continuum.nursery.retention import Retention
from continuum.nursery.state import WorkerState
from continuum.status.api_answers import task_answer
from tests.support.harness import settings

AT_ONCE = 1e-12
"""Days."""
NOW = dt.datetime(2026, 11, 29, 8, tzinfo=dt.UTC)


class Crash(BaseException):
    """The worker's end, at the worst moment."""


async def finished(database: MemoryDatabase, count: int, output: str = "out") -> list[int]:
    ids = await database.submit([NewTask(code="hello", payload='{"n": [1, "\\u00e9"]}', tenant="t")] * count)
    tasks = await database.claim("worker", count, lease=30)
    await database.complete("worker", [Completion(task.id, 1, Status.COMPLETED, 0, output, "", None) for task in tasks])
    return ids


def lines_in(folder: Path) -> list[dict[str, object]]:
    """Every line that can be read, also of a file whose end is missing."""
    found: list[dict[str, object]] = []
    for path in sorted(folder.iterdir()):
        with gzip.open(path, "rt", encoding="utf-8") as text, suppress(EOFError, ValueError, gzip.BadGzipFile):
            found.extend(json.loads(line) for line in text)
    return found


def ids_in(folder: Path) -> list[int]:
    return [int(str(line["id"])) for line in lines_in(folder)]


def record(number: int = 1) -> TaskRecord:
    ended = AttemptRecord(1, "w", NOW, NOW, "failed", 1, "no")
    known: dict[str, Any] = dict.fromkeys((each.name for each in fields(TaskRecord)), None)
    return TaskRecord(
        **known
        | {
            "id": number,
            "name": "\u00e9\n",
            "status": Status.COMPLETED,
            "payload": '{"a": 1}',
            "created_at": NOW,
            "output": "x",
        }
        | {"history": (ended,), "retry_of": 7, "worker_tags": ("eu", "gpu"), "cancel_requested": False, "finished": NOW}
        | {"depends_on": (2**60, 3)}
    )


# -- what is written ------------------------------------------------------------------------------------------------


async def test_a_line_is_what_the_http_api_answers() -> None:
    task = record(2**60)
    line, answer = json.loads(task_line(task)), json.loads(await task_answer(task).get_data(as_text=True))
    assert {name: line[name] for name in answer} == answer
    assert line["worker_tags"] == ["eu", "gpu"]


def test_a_file_has_a_line_for_each_task_and_is_nobody_elses(tmp_path: Path) -> None:
    archive = Archive(tmp_path, "host-1-abcd")
    path = archive.write([record(1), record(2)])
    assert archive.write([record(3)]) == path
    archive.close()
    assert path.name == f"tasks-{dt.datetime.now(dt.UTC):%Y%m%d}-host-1-abcd-0001.jsonl.gz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ids_in(tmp_path) == [1, 2, 3]


def test_a_new_file_begins_when_one_is_large_or_was_taken_away_and_each_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path, "w")
    first = archive.write([record(1)])
    first.rename(tmp_path / "taken.jsonl.gz")
    second = archive.write([record(2)])
    monkeypatch.setattr(archive_module, "LARGEST_FILE", 1)
    third = archive.write([record(3)])
    monkeypatch.undo()
    archive._day = "20200101"
    fourth = archive.write([record(4)])
    assert len({first, second, third, fourth}) == 4
    assert sorted(ids_in(tmp_path)) == [1, 2, 3, 4]


def test_what_could_not_be_written_leaves_nothing_half_written_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path, "w")
    archive.write([record(1)])
    write = os.write
    for bad in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda to, data: write(to, data[: len(data) // 2]) and _full())
            with pytest.raises(OSError, match="full"):
                archive.write([record(bad)])
    archive.write([record(4)])
    assert ids_in(tmp_path) == [1, 4]
    assert len(list(tmp_path.iterdir())) == 2, "and no empty file"


def _full() -> int:
    raise OSError("the disk is full")


# -- killed at each step ----------------------------------------------------------------------------------------------

KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from continuum.archive import Archive

records = pickle.loads(bytes.fromhex(sys.argv[2]))

def write_and_die(folder, call, when):
    archive = Archive(folder, "killed")
    archive.write(records[:2])
    real = getattr(os, call)

    def die(first, *rest):
        if when == "half":
            real(first, bytes(rest[0])[:20])
        elif when == "after":
            real(first, *rest)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, die)
    if call == "open":
        archive.close()
    archive.write(records[2:])

for case in sys.argv[3:]:
    folder = Path(sys.argv[1]) / case
    folder.mkdir()
    child = os.fork()
    if not child:
        write_and_die(folder, *case.split("-"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_writer_that_is_killed_leaves_all_that_it_had_written(tmp_path: Path) -> None:
    first, both = [1, 2], [1, 2, 3]
    left = {
        "open-before": first, "open-after": first, "write-before": first, "write-half": first, "write-after": both,
        "fsync-before": both, "fsync-after": both,
    }  # fmt: skip
    records = pickle.dumps([record(1), record(2), record(3)]).hex()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), records, *left], check=True)
    assert {case: ids_in(tmp_path / case) for case in left} == left


class Mortal(MemoryDatabase):
    """A database whose client dies with a call: before it, or after it was done."""

    @staticmethod
    def dies(step: str) -> bool:
        return False

    async def ended(self, wanted: EndedFilter, limit: int = 1000, after: Sequence[EndedTask] = ()) -> list[EndedTask]:
        found = await super().ended(wanted, limit, after)
        self._die_after("ended")
        return found

    async def fetch(self, task_ids: Sequence[int]) -> list[TaskRecord]:
        found = await super().fetch(task_ids)
        self._die_after("fetch")
        return found

    async def delete_ended(self, tasks: Sequence[EndedTask]) -> int:
        self._die_after("before delete")
        count = await super().delete_ended(tasks)
        self._die_after("delete")
        return count

    def _die_after(self, step: str) -> None:
        if self.dies(step):
            raise Crash(step)


@pytest.mark.parametrize("step", ["ended", "fetch", "before delete", "delete"])
@pytest.mark.parametrize("turn", [1, 2])
async def test_whenever_a_worker_ends_no_task_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, turn: int
) -> None:
    database, turns = Mortal(), {step: turn}

    def dies(at: str) -> bool:
        turns[at] = turns.get(at, 0) - 1
        return turns[at] == 0

    monkeypatch.setattr(Mortal, "dies", staticmethod(dies))
    ids = await finished(database, 3, "x" * (TEXT_AT_ONCE // 2))
    kept = settings(retention_days=AT_ONCE, archive_dir=tmp_path)
    with pytest.raises(Crash):
        await Retention(database, WorkerState("first", 1), kept).retain()
    assert {*database.tasks, *ids_in(tmp_path)} == set(ids), "nothing is lost"
    database._duties.clear()  # what time does
    await Retention(database, WorkerState("second", 1), kept).retain()
    assert not database.tasks
    assert set(ids_in(tmp_path)) == set(ids)
    assert len(ids_in(tmp_path)) <= len(ids) + 2, "twice at most, and only what was under way"


# -- with the worker ---------------------------------------------------------------------------------------------------


async def test_what_cannot_be_archived_is_kept_until_it_can_be(tmp_path: Path) -> None:
    database = MemoryDatabase()
    ids = await finished(database, 3)
    folder = tmp_path / "not mounted yet"
    retention = Retention(database, WorkerState("worker", 1), settings(retention_days=AT_ONCE, archive_dir=folder))
    for _ in range(3):
        await retention.retain()
        assert len(database.tasks) == 3
    assert not folder.exists(), "where nothing is mounted, nothing is made"
    folder.mkdir()
    await retention.retain()
    assert not database.tasks
    assert ids_in(folder) == ids
    (line, *_) = lines_in(folder)
    assert (line["payload"], line["output"], line["tenant"]) == ({"n": [1, "\u00e9"]}, "out", "t")


async def test_a_task_that_was_changed_since_it_was_found_is_neither_written_nor_deleted(tmp_path: Path) -> None:
    database = MemoryDatabase()
    first, second = await finished(database, 2)
    found = await database.ended(EndedFilter(Status.COMPLETED))
    database.tasks[first] = replace(database.tasks[first], status=Status.PENDING, finished=None)
    written, path = await Archiving(database, Archive(tmp_path, "w")).archive_tasks(found)
    assert [task.id for task in written] == [second] == ids_in(tmp_path)
    assert path is not None
    assert await database.delete_ended(written) == 1
    assert await Archiving(database, Archive(tmp_path, "w")).archive_tasks(found[:1]) == ([], None)


async def test_a_directory_that_hangs_holds_one_thread_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = MemoryDatabase()
    await finished(database, 1)
    found = await database.ended(EndedFilter(Status.COMPLETED))
    monkeypatch.setattr(archiving_module, "WRITE_DEADLINE", 0.05)
    read, write = os.pipe()
    archiving = Archiving(database, Archive(tmp_path, "w"))
    monkeypatch.setattr(os, "fsync", lambda _: os.read(read, 1))
    for _ in range(2):
        with pytest.raises(OSError, match="took nothing within"):
            await archiving.archive_tasks(found)
    assert archiving._one_at_a_time.borrowed_tokens == 1
    monkeypatch.setattr(archiving_module, "WRITE_DEADLINE", 5.0)
    os.write(write, b"1" * 10)
    written, path = await archiving.archive_tasks(found)
    assert len(written) == 1
    assert path is not None
    assert len(list(tmp_path.iterdir())) >= 2
    os.close(read)
    os.close(write)


def test_only_so_much_text_is_in_memory_at_once() -> None:
    tasks = [EndedTask(n, 1, NOW, size) for n, size in enumerate([1, 2, TEXT_AT_ONCE + 1, TEXT_AT_ONCE, 5])]
    assert [[task.id for task in portion] for portion in portions(tasks)] == [[0, 1], [2], [3], [4]]
    assert list(portions([])) == []
