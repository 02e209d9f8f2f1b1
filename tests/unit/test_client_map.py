"""`map`: one script for many payloads, so many in flight at a time. On the virtual clock, with a worker that the test plays."""

from __future__ import annotations

import datetime as dt
import io
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, assert_type

import pytest
import trio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console
from trio.testing import MockClock

import continuum
from continuum.client import progress as progress_module
from continuum.client.mapping import Results
from continuum.client.trio_client import Client
from continuum.db.errors import DatabaseUnavailable, OutcomeUnknown
from continuum.db.memory import MemoryDatabase
from continuum.model import ClaimedTask, Completion, NewTask, Status

SCRIPT = "result = payload"


class Played(MemoryDatabase):
    """A database with a worker that takes a task as long as its payload says, and fails where that is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.most_open = 0
        self.submissions: list[int] = []

    async def submit(self, tasks: Sequence[NewTask]) -> list[int]:
        ids = await super().submit(tasks)
        self.submissions.append(len(tasks))
        open_now = sum(task.status in (Status.PENDING, Status.PROCESSING) for task in self.tasks.values())
        self.most_open = max(self.most_open, open_now)
        return ids

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                for task in await self.claim("worker", 1000, lease=600) if not self.unavailable else []:
                    nursery.start_soon(self._run, task)
                await trio.sleep(0.01)

    async def _run(self, task: ClaimedTask) -> None:
        seconds = json.loads(task.payload)
        await trio.sleep(abs(seconds))
        failed = seconds < 0
        status = Status.FAILED if failed else Status.COMPLETED
        error = "ValueError: negative\nexit code 1" if failed else None
        while True:
            try:
                output = f"\n{json.dumps(seconds)}\n"
                await self.complete("worker", [Completion(task.id, task.attempt, status, 0, output, "", error)])
                return
            except DatabaseUnavailable:
                await trio.sleep(0.1)

    @property
    def statuses(self) -> dict[str, int]:
        ordered = sorted(task.status for task in self.tasks.values())
        return {status: len(list(group)) for status, group in itertools.groupby(ordered)}


@pytest.fixture
def database() -> Played:
    return Played()


@pytest.fixture
async def c(database: Played) -> AsyncIterator[Client]:
    async with Client(database=database) as client, trio.open_nursery() as nursery:
        nursery.start_soon(database.play)
        yield client
        nursery.cancel_scope.cancel()


async def test_awaited_it_is_the_list_of_results_in_the_order_of_the_payloads(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    assert await c.map(SCRIPT, [3, 1, 2]) == [3, 1, 2]
    assert await c.map(SCRIPT, []) == []
    assert database.statuses == {"completed": 3}
    assert c.flights == set()


async def test_gone_through_it_has_each_as_soon_as_its_turn_has_come(autojump_clock: MockClock, c: Client) -> None:
    began, seen = trio.current_time(), list[tuple[int, int]]()
    async for result in c.map(SCRIPT, [3, 1, 5], returns=int):
        assert_type(result, int)
        seen.append((result, round(trio.current_time() - began)))
    assert seen == [(3, 3), (1, 3), (5, 5)]


async def test_as_they_end_each_comes_with_its_payload(autojump_clock: MockClock, c: Client) -> None:
    assert [pair async for pair in c.map(SCRIPT, (3, 1, 2), returns=float).as_completed()] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
    ]


async def test_no_more_are_in_flight_than_may_be_and_payloads_may_be_endless(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    taken = itertools.count(1)
    results = c.map(SCRIPT, (0 * n for n in taken), in_flight=10)
    for _ in range(100):
        assert await anext(results) == 0
    await results.aclose()
    assert next(taken) <= 100 + 2 * 10 + 1
    assert database.most_open <= 10
    assert max(database.submissions) <= 10
    assert len(database.submissions) <= 25, "several go in one transaction"


async def test_one_at_a_time_is_possible_and_none_is_not(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    assert await c.map(SCRIPT, range(3), in_flight=1) == [0, 1, 2]
    assert database.most_open == 1
    with pytest.raises(ValueError, match="in_flight is 0"):
        c.map(SCRIPT, [1], in_flight=0)


async def test_who_takes_nothing_makes_it_submit_nothing(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    results = c.map(SCRIPT, range(100_000), in_flight=10)
    assert database.tasks == {}
    assert await anext(results) == 0
    await trio.sleep(20)
    assert len(database.tasks) <= 2 * 10
    await results.aclose()


async def test_a_slow_one_at_the_front_does_not_stop_the_others(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    began = trio.current_time()
    await c.map(SCRIPT, [10, *[1] * 8], in_flight=3)
    assert trio.current_time() - began < 11, "eight more go through the two other places meanwhile, two at a time"


async def test_the_first_failure_is_raised_in_its_turn_and_cancels_the_rest(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    seen = []
    with pytest.raises(continuum.TaskFailed, match="ValueError: negative") as caught:
        async for result in c.map(SCRIPT, [1, 2, -3, 500, 600]):
            seen.append(result)  # noqa: PERF401
    assert seen == [1, 2]
    assert caught.value.record.payload == "-3"
    await trio.sleep(1)
    assert {task.payload for task in database.tasks.values() if task.cancel_requested} == {"500", "600"}


async def test_failures_are_returned_where_that_is_wanted(autojump_clock: MockClock, c: Client) -> None:
    results = await c.map(SCRIPT, [1, -2, 3], returns=int, return_failures=True)
    assert_type(results, list[int | continuum.TaskError])
    assert (results[0], results[2]) == (1, 3)
    assert isinstance(results[1], continuum.TaskFailed)
    strings = await c.map(SCRIPT, [1], returns=str, return_failures=True)
    assert isinstance(strings[0], continuum.BadResult)


async def leave(c: Client, how: str, **options: Any) -> None:
    match how:
        case "break":
            results = c.map(SCRIPT, [0, 500, 600], **options)
            async for _ in results:
                break
            await results.aclose()
        case "scope":
            with trio.move_on_after(1):
                await c.map(SCRIPT, [0, 500, 600], **options)
        case "raise":
            with pytest.raises(ZeroDivisionError):
                await c.map(SCRIPT, (n / (n < 601) for n in (0, 500, 600, 601)), in_flight=2, **options)


@pytest.mark.parametrize("how", ["break", "scope"])
@pytest.mark.parametrize(
    ("options", "cancelled"),
    [({}, True), ({"cancel_on_exit": False}, False), ({"idempotency_key": str}, False)],
)
async def test_however_it_is_left_what_is_in_flight_is_cancelled_unless_it_has_keys(
    autojump_clock: MockClock, c: Client, database: Played, how: str, options: dict[str, Any], cancelled: bool
) -> None:
    await leave(c, how, **options)
    assert {task.payload for task in database.tasks.values() if task.cancel_requested} == (
        {"500", "600"} if cancelled else set()
    )
    assert c.flights == set()


async def test_what_a_break_left_behind_is_cancelled_when_the_client_closes(
    autojump_clock: MockClock, database: Played
) -> None:
    async with Client(database=database) as c, trio.open_nursery() as nursery:
        nursery.start_soon(database.play)
        async for _ in c.map(SCRIPT, [0, 500, 600]):
            break
        nursery.cancel_scope.cancel()
    assert {task.payload for task in database.tasks.values() if task.cancel_requested} == {"500", "600"}


async def test_a_payload_that_cannot_be_ends_it(autojump_clock: MockClock, c: Client, database: Played) -> None:
    with pytest.raises(continuum.db.errors.InvalidTask, match="payload is not JSON"):
        await c.map(SCRIPT, [2, {1}], in_flight=1, return_failures=True)
    assert c.flights == set()

    def source() -> Iterator[int]:
        yield 0
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended"):
        await c.map(SCRIPT, source())


async def test_started_again_it_finds_the_tasks_of_the_first_time_by_their_keys(
    autojump_clock: MockClock, c: Client, database: Played
) -> None:
    with trio.move_on_after(2.5):
        await c.map(SCRIPT, [1, 2, 3, 3], idempotency_key=lambda n: f"night/{n}")
    assert await c.map(SCRIPT, [1, 2, 3, 3], idempotency_key=lambda n: f"night/{n}") == [1, 2, 3, 3]
    assert len(database.tasks) == 3


async def test_an_outage_is_waited_out(autojump_clock: MockClock, c: Client, database: Played) -> None:
    async with trio.open_nursery() as nursery:

        async def break_it() -> None:
            await trio.sleep(1.5)
            database.unavailable = True
            await trio.sleep(10)
            database.unavailable = False

        nursery.start_soon(break_it)
        assert await c.map(SCRIPT, [1, 1, 1, 2, 1, 1], in_flight=2) == [1, 1, 1, 2, 1, 1]


async def test_a_submission_that_may_have_happened_is_repeated_only_with_keys(
    autojump_clock: MockClock, c: Client, database: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, calls = database.submit, itertools.count()

    async def unsure(tasks: Sequence[NewTask]) -> list[int]:
        ids = await submit(tasks)
        if next(calls) == 1:
            raise OutcomeUnknown("lost")
        return ids

    monkeypatch.setattr(database, "submit", unsure)
    assert await c.map(SCRIPT, [0, 1, 2], in_flight=1, idempotency_key=str) == [0, 1, 2]
    assert len(database.tasks) == 3
    calls = itertools.count()
    with pytest.raises(OutcomeUnknown):
        await c.map(SCRIPT, [0, 1, 2], in_flight=1)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    seconds=st.lists(st.integers(-3, 3), max_size=30),
    in_flight=st.integers(1, 8),
    ordered=st.booleans(),
    keyed=st.booleans(),
)
def test_each_payload_has_one_result_whatever_the_order(
    seconds: list[int], in_flight: int, ordered: bool, keyed: bool
) -> None:
    async def main() -> None:
        database = Played()
        async with Client(database=database) as c, trio.open_nursery() as nursery:
            nursery.start_soon(database.play)
            key: Callable[[int], str] | None = str if keyed else None
            results: Results[int, Any] = c.map(
                SCRIPT, iter(seconds), return_failures=True, in_flight=in_flight, idempotency_key=key
            )
            pairs = [pair async for pair in results.as_completed()] if not ordered else []
            pairs = pairs or list(zip(seconds, await results, strict=True))
            assert sorted(payload for payload, _ in pairs) == sorted(seconds)
            assert all(isinstance(result, continuum.TaskFailed) if n < 0 else result == n for n, result in pairs)
            assert database.most_open <= in_flight
            assert c.flights == set()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- progress ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal on stderr shows."""
    shown = io.StringIO()

    def console(**_: object) -> Console:
        return Console(file=shown, force_terminal=True, width=100, color_system=None)

    monkeypatch.setattr("rich.console.Console", console)
    return shown


async def test_a_bar_is_shown_at_a_terminal_with_those_that_failed(
    autojump_clock: MockClock, c: Client, screen: io.StringIO
) -> None:
    await c.map(SCRIPT, [1, -2, 3], progress=True, name="a [bold] name", return_failures=True)
    assert "a [bold] name" in screen.getvalue()
    assert "3/3 1 failed" in screen.getvalue()
    await c.map(SCRIPT, iter([1]), progress=True)
    assert "script.py" in screen.getvalue()


async def test_nothing_is_shown_where_nobody_watches(
    autojump_clock: MockClock, c: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    await c.map(SCRIPT, [1], progress=True)
    assert capsys.readouterr() == ("", "")


async def test_two_bars_at_once_do_not_break_each_other(
    autojump_clock: MockClock, c: Client, screen: io.StringIO
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: c.map(SCRIPT, [1, 2], progress=True)._all())


def test_a_bar_is_stopped_by_an_exception(screen: io.StringIO) -> None:
    with pytest.raises(OSError, match="x"), progress_module.progress_bar("work", 3) as show:
        show(1, 0)
        raise OSError("x")
    assert "1/3" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h"), "the cursor is back"


async def test_options_reach_each_task(autojump_clock: MockClock, c: Client, database: Played) -> None:
    later = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    await c.map(
        SCRIPT, [1], name="n", priority=4, tenant="acme", timeout=9.0, run_at=later, webhook="https://x.example"
    )
    task = database.tasks[1]
    assert (task.name, task.priority, task.tenant, task.timeout) == ("n", 4, "acme", 9.0)
