import datetime as dt

import pytest
import trio
import trio.testing

from continuum.model import ClaimedTask, Statistics, Stream
from continuum.nursery.state import Running, WorkerState
from continuum.status.views import CONTENT_LIMIT, global_status, go_duration, rfc3339, worker_status


def claimed(task_id: int = 7, **values: object) -> ClaimedTask:
    fields: dict[str, object] = {
        "id": task_id,
        "attempt": 2,
        "max_attempts": 3,
        "released": 0,
        "name": "report",
        "code": "print('secret code')",
        "code_id": "5d1c1f0e-0000-4000-8000-000000000001",
        "payload": '{"secret": "payload"}',
        "priority": 5,
        "timeout": None,
        "tenant": None,
        "traceparent": None,
        "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "description": "monthly",
        "last_error": "ValueError: secret",
    }
    return ClaimedTask(**(fields | values))  # type: ignore[arg-type]


def working(*tasks: ClaimedTask) -> WorkerState:
    state = WorkerState(id="worker-1", slots=4, processed=5, successful=3, failed=2, database_failures=1)
    for age, task in enumerate(tasks):
        state.running[task.lease] = Running(task, since=float(age))
    return state


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.99, "0s"), (59, "59s"), (60, "1m0s"), (3599.9, "59m59s"), (3723, "1h2m3s"), (90000, "25h0m0s")],
)
def test_an_uptime_is_written_as_go_writes_a_duration(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_a_clock_that_was_set_back_gives_no_negative_uptime() -> None:
    assert go_duration(-5) == "0s"


def test_a_time_is_rfc_3339_in_utc() -> None:
    noon = dt.datetime(2026, 1, 1, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert rfc3339(noon) == "2026-01-01T12:00:00Z"


async def test_an_idle_worker_has_the_fields_of_the_first_version_and_no_current_task() -> None:
    status = worker_status(working(), contents=True)
    assert status["id"] == "worker-1"
    assert status["start_time"].endswith("Z")
    assert status["uptime"] == "0s"
    counters = ("tasks_processed", "tasks_successful", "tasks_failed", "database_failures")
    assert [status[name] for name in counters] == [5, 3, 2, 1]
    assert "current_task" not in status
    assert status["running"] == []


async def test_the_current_task_is_the_oldest_running_one_with_the_field_names_of_the_first_version() -> None:
    state = working(claimed(7), claimed(8))
    state.running[claimed(7).lease].transcript.write(Stream.OUTPUT, "halfway")
    state.running[claimed(7).lease].transcript.write(Stream.ERROR, "not this")
    task = worker_status(state, contents=True)["current_task"]
    names = "ID Name Description Started Finished LockedAt LastError Priority Status Payload Code Output"
    assert " ".join(task) == names
    assert (task["ID"], task["Name"], task["Description"], task["Status"]) == (7, "report", "monthly", "processing")
    assert (task["Priority"], task["Finished"]) == (5, None)
    assert task["Payload"] == '{"secret": "payload"}'
    assert task["Code"] == "5d1c1f0e-0000-4000-8000-000000000001"
    assert task["Output"] == "halfway"
    assert task["Started"] == task["LockedAt"]


async def test_without_leave_nothing_that_a_task_holds_is_shown() -> None:
    state = working(claimed())
    state.running[claimed().lease].transcript.write(Stream.OUTPUT, "secret output")
    status = worker_status(state, contents=False)
    assert "secret" not in str(status)
    contents = ("Payload", "Code", "Output", "LastError")
    assert [status["current_task"][name] for name in contents] == [None] * 4


async def test_all_running_tasks_are_listed_with_how_long_they_have_run(autojump_clock: trio.testing.MockClock) -> None:
    state = working(claimed(7), claimed(8))
    await trio.sleep(10)
    running = worker_status(state, contents=False)["running"]
    assert [one["id"] for one in running] == [7, 8]
    assert [one["attempt"] for one in running] == [2, 2]
    assert [one["elapsed_seconds"] for one in running] == [10.0, 9.0]


async def test_an_id_that_javascript_would_round_is_given_as_text_as_well() -> None:
    large, small = 2**53 + 1, 2**53
    status = worker_status(working(claimed(large)), contents=False)
    assert (status["current_task"]["ID"], status["current_task"]["ID_str"]) == (large, str(large))
    assert status["running"][0]["id_str"] == str(large)
    assert "ID_str" not in worker_status(working(claimed(small)), contents=False)["current_task"]


async def test_a_huge_payload_is_cut_where_it_is_shown() -> None:
    state = working(claimed(payload='"' + "x" * 10_000_000 + '"'))
    payload = worker_status(state, contents=True)["current_task"]["Payload"]
    assert len(payload) < CONTENT_LIMIT + 100
    assert payload.endswith("[cut: 10,000,002 characters in all]")


def test_a_task_that_waits_for_its_time_counts_as_pending() -> None:
    totals = global_status(Statistics(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), [])
    assert totals["pending_tasks"] == 3
    assert totals["scheduled_tasks"] == 2
    assert totals["total_tasks"] == 28
    floats = (totals["avg_execution_seconds"], totals["throughput_tasks_per_hour"])
    assert floats == (8.0, 9.0)
    assert all(isinstance(one, float) for one in floats)
