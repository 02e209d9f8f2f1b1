"""The service of webhooks on the virtual clock, alone and in the tree."""

from __future__ import annotations

import datetime as dt
import email.utils
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum.db.memory import MemoryDatabase
from continuum.model import NewTask, WebhookDelivery
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState
from continuum.nursery.webhook_lanes import LONGEST_PUT_OFF, MOST_REMEMBERED, NARROW, SHORTEST_PUT_OFF, Lanes, Passage
from continuum.nursery.webhooks import (
    CONCURRENCY,
    DELAYS,
    GRACE,
    JITTER,
    LEASE,
    LONGEST_RETRY_AFTER,
    Answer,
    DeliveryFailed,
    Result,
    Unusable,
    Webhooks,
    failed,
    judge,
)
from continuum.telemetry import Telemetry
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import worker

URL = "https://hooks.example/done?key=secret"
NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
INTERVAL = 15.0


# -- what becomes of a try ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_success_is_delivered(status: int) -> None:
    assert judge(Answer(status), 1, 0, NOW).result is Result.DELIVERED


def test_who_is_gone_is_told_nothing_more() -> None:
    assert judge(Answer(410), 1, 0, NOW) == judge(Answer(410), 8, 1, NOW)
    assert judge(Answer(410), 1, 0, NOW).again_in is None


@given(st.sampled_from([100, 199, 300, 302, 304, 400, 401, 404, 429, 500, 503]), st.integers(1, 20), st.floats(-1, 1))
def test_everything_else_is_tried_again_as_long_as_there_are_tries(status: int, tries: int, jitter: float) -> None:
    verdict = judge(Answer(status), tries, jitter, NOW)
    if tries > len(DELAYS):
        assert (verdict.result, verdict.again_in) == (Result.GIVEN_UP, None)
    else:
        step = DELAYS[tries - 1]
        assert verdict.again_in is not None
        assert step * (1 - JITTER) <= verdict.again_in <= step * (1 + JITTER)
        assert verdict == failed(f"HTTP {status}", tries, jitter)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("120", 120.0),
        ("0", 5.0),
        ("1", 5.0),
        ("999999999999999999999999", LONGEST_RETRY_AFTER),
        (email.utils.format_datetime(NOW + dt.timedelta(minutes=5), usegmt=True), 300.0),
        (email.utils.format_datetime(NOW - dt.timedelta(days=5), usegmt=True), 5.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Sun Nov 29 00:10:00 2026", 600.0),
        *(
            (text, 5.0)
            for text in ("", "-1", "soon", "1e9", "٣", "nan", "\x00", "99:99", "Mon, 99 Foo 2026 99:99:99 GMT")
        ),
        (None, 5.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_receiver_may_put_the_next_try_off_and_not_hasten_it(
    asked: str | None, seconds: float, status: int
) -> None:
    assert judge(Answer(status, asked), 1, 0, NOW).again_in == pytest.approx(seconds)


def test_only_who_is_busy_is_asked_when() -> None:
    assert judge(Answer(500, "3600"), 1, 0, NOW).again_in == DELAYS[0]


@given(st.text(max_size=40))
def test_no_retry_after_crashes_a_worker(text: str) -> None:
    verdict = judge(Answer(503, text), 1, 0, NOW)
    assert verdict.again_in is not None
    assert DELAYS[0] <= verdict.again_in <= LONGEST_RETRY_AFTER


# -- the service alone -------------------------------------------------------------------------------

Behaviour = Callable[[WebhookDelivery], Awaitable[Answer]]


async def accepts(_: WebhookDelivery) -> Answer:
    return Answer(200)


@dataclass
class FakeSender:
    """Answers as the test wants. `sent` has each try with its moment."""

    behaviour: Behaviour = accepts
    sent: list[tuple[float, WebhookDelivery]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    rests: int = 0

    async def send(self, delivery: WebhookDelivery) -> Answer:
        self.sent.append((trio.current_time(), delivery))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.lowlevel.checkpoint()
            return await self.behaviour(delivery)
        finally:
            self.now -= 1

    async def rest(self) -> None:
        self.rests += 1

    @property
    def ids(self) -> list[int]:
        return [each.task_id for _, each in self.sent]


@dataclass
class Service:
    webhooks: Webhooks
    database: MemoryDatabase
    sender: FakeSender
    state: WorkerState
    due: Signal
    shutdown: Shutdown


@asynccontextmanager
async def service(
    behaviour: Behaviour = accepts, database: MemoryDatabase | None = None, interval: float = INTERVAL
) -> AsyncIterator[Service]:
    database, sender, due = database or MemoryDatabase(), FakeSender(behaviour), Signal()
    state = WorkerState(id="worker", slots=4)
    webhooks = Webhooks(database, state, Telemetry(), sender, interval, due)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(webhooks.run)
        yield Service(webhooks, database, sender, state, due, Shutdown())
        nursery.cancel_scope.cancel()


class Counting(MemoryDatabase):
    claims = 0
    put_offs = 0

    async def claim_webhooks(self, limit: int, *, lease: float) -> list[WebhookDelivery]:
        self.claims += 1
        return await super().claim_webhooks(limit, lease=lease)

    async def put_off_webhooks(self, delays: Mapping[WebhookDelivery, float]) -> None:
        self.put_offs += len(delays)
        await super().put_off_webhooks(delays)


async def ended(
    database: MemoryDatabase, count: int = 1, url: str | None = URL, tenant: str | None = None
) -> list[int]:
    """Tasks that have ended, cancelled before they ran."""
    ids = await database.submit([NewTask(code="x", webhook=url, tenant=tenant)] * count)
    for each in ids:
        await database.cancel(each)
    return ids


async def due(database: MemoryDatabase) -> int:
    """How many deliveries would be taken, now or ever."""
    return sum(at is not None for at, _ in database._webhooks.values())


async def test_what_is_due_is_delivered_once(autojump_clock: MockClock) -> None:
    async with service() as s:
        ids = await ended(s.database, 5)
        await ended(s.database, 3, url=None)
        s.due.notify()
        await trio.sleep(24 * 3600)
        assert sorted(s.sender.ids) == ids
        assert await due(s.database) == 0


async def test_it_looks_at_once_when_told_and_by_the_clock_for_what_others_left(autojump_clock: MockClock) -> None:
    async with service() as s:
        await trio.sleep(1)
        began = trio.current_time()
        await ended(s.database)
        s.due.notify()
        await trio.sleep(0.5)
        assert s.sender.sent[0][0] - began < 0.1
        await ended(s.database)
        await trio.sleep(INTERVAL * 1.2)
        assert len(s.sender.sent) == 2


async def test_a_receiver_that_fails_is_tried_by_the_schedule_and_then_given_up(autojump_clock: MockClock) -> None:
    async def fails(_: WebhookDelivery) -> Answer:
        raise DeliveryFailed("no answer within 15 s")

    async with service(fails) as s:
        await ended(s.database)
        s.due.notify()
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(3 * 24 * 3600)
        moments = [moment for moment, _ in s.sender.sent]
        for pause, step in zip(
            (later - earlier for earlier, later in itertools.pairwise(moments)), DELAYS, strict=True
        ):
            assert step * (1 - JITTER) <= pause <= step * (1 + JITTER) + INTERVAL * 1.2
        assert moments[1] - moments[0] < DELAYS[0] * (1 + JITTER) + 0.2, (
            "the first retry does not wait for the next look"
        )
        assert [each.tries for _, each in s.sender.sent] == list(range(1, len(DELAYS) + 2))
        assert await due(s.database) == 0
    assert [line["event"] for line in logs].count("a webhook is given up") == 1
    assert not any("secret" in str(line) or "/done" in str(line) for line in logs)
    assert all(line["receiver"] == "https://hooks.example" for line in logs)


@pytest.mark.parametrize(("answer", "result"), [(Answer(410), "HTTP 410"), (Unusable("no URL"), "no URL")])
async def test_what_cannot_succeed_is_not_tried_again(
    answer: Answer | Unusable, result: str, autojump_clock: MockClock
) -> None:
    async def behaves(_: WebhookDelivery) -> Answer:
        if isinstance(answer, Unusable):
            raise answer
        return answer

    async with service(behaves) as s:
        await ended(s.database)
        s.due.notify()
        with structlog.testing.capture_logs() as logs:
            await trio.sleep(24 * 3600)
        assert len(s.sender.sent) == 1
    assert [line["reason"] for line in logs] == [result]


async def test_no_more_are_under_way_at_once_than_may_be_and_all_get_their_turn(autojump_clock: MockClock) -> None:
    async def takes_a_second(_: WebhookDelivery) -> Answer:
        await trio.sleep(1)
        return Answer(200)

    async with service(takes_a_second) as s:
        ids = await ended(s.database)
        s.due.notify()
        await trio.sleep(2)  # from now on it is known that this receiver is quick enough
        ids += await ended(s.database, 4 * CONCURRENCY)
        s.due.notify()
        began = trio.current_time()
        with trio.fail_after(10):
            while len(s.sender.sent) < len(ids):
                await trio.sleep(0.1)
        assert trio.current_time() - began < 6
        assert s.sender.most == CONCURRENCY
        assert sorted(s.sender.ids) == ids


async def test_an_outage_of_the_database_delays_and_ends_nothing(autojump_clock: MockClock) -> None:
    async with service() as s:
        await ended(s.database)
        s.database.unavailable = True
        s.due.notify()
        await trio.sleep(600)
        assert "database" in s.state.health.problems
        assert not s.sender.sent
        s.database.unavailable = False
        await trio.sleep(INTERVAL * 1.2)
        assert len(s.sender.sent) == 1
        assert s.state.health.ready


async def test_a_delivery_that_cannot_be_written_down_is_made_again_at_worst(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()

    async def cuts_the_database_off(_: WebhookDelivery) -> Answer:
        database.unavailable = len(s.sender.sent) == 1
        return Answer(200)

    async with service(cuts_the_database_off, database) as s:
        await ended(database)
        s.due.notify()
        await trio.sleep(20)
        database.unavailable = False
        await trio.sleep(5)
        assert await due(database) == 0
        await trio.sleep(2 * LEASE)
        assert len(s.sender.sent) == 1


async def test_what_a_dead_worker_had_taken_is_delivered_by_another(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    (task_id,) = await ended(database)
    (taken,) = await database.claim_webhooks(10, lease=LEASE)
    async with service(database=database) as s:
        await trio.sleep(LEASE - 1)
        assert not s.sender.sent
        await trio.sleep(INTERVAL * 1.2 + 1)
        assert s.sender.ids == [task_id]
        assert not await database.settle_webhook(taken, 5.0), "the dead worker came back, and changed nothing"
        await trio.sleep(24 * 3600)
        assert len(s.sender.sent) == 1


async def test_at_the_end_it_looks_once_more_and_what_is_under_way_gets_a_grace(autojump_clock: MockClock) -> None:
    async def takes_two_seconds(_: WebhookDelivery) -> Answer:
        await trio.sleep(2)
        return Answer(200)

    async with service(takes_two_seconds) as s:
        await ended(s.database, 2)
        s.due.notify()
        await trio.sleep(1)
        await ended(s.database)
        began = trio.current_time()
        await s.webhooks.finish(s.shutdown)
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        assert len(s.sender.sent) == 3
        assert await due(s.database) == 0
        await ended(s.database)
        await trio.sleep(600)
        assert len(s.sender.sent) == 3


@pytest.mark.parametrize(("urgent", "seconds"), [(False, GRACE), (True, 0.5)])
async def test_the_grace_is_short_and_a_second_signal_ends_it(
    urgent: bool, seconds: float, autojump_clock: MockClock
) -> None:
    async def hangs(_: WebhookDelivery) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    database = MemoryDatabase()
    async with service(hangs, database) as s:
        await ended(database)
        s.due.notify()
        await trio.sleep(0.1)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.webhooks.finish, s.shutdown)
            await trio.sleep(0.5)
            s.shutdown.request()
            if urgent:
                s.shutdown.request()
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)
    assert s.sender.rests >= 1
    # Another one delivers it once the lease has expired.
    async with service(database=database) as other:
        await trio.sleep(LEASE + 2 * INTERVAL)
        assert len(other.sender.sent) == 1


async def test_workers_share_what_is_due(autojump_clock: MockClock) -> None:
    async def takes_a_second(_: WebhookDelivery) -> Answer:
        await trio.sleep(1)
        return Answer(200)

    database = MemoryDatabase()
    ids = await ended(database, 3 * CONCURRENCY)
    async with service(takes_a_second, database) as one, service(takes_a_second, database) as two:
        await trio.sleep(60)
        assert sorted(one.sender.ids + two.sender.ids) == ids
        assert one.sender.ids
        assert two.sender.ids


# -- receivers that are slow -------------------------------------------------------------------------


async def by_name(delivery: WebhookDelivery) -> Answer:
    """Hosts with `slow` in their name hold each delivery until its deadline."""
    if "slow" in delivery.url:
        await trio.sleep(15)
        raise DeliveryFailed("no answer within 15 s")
    await trio.sleep(0.05)
    return Answer(200)


@pytest.mark.parametrize(
    ("urls", "tenant"),
    [
        (["https://slow.example/"], None),
        ([f"https://n{number}.slow.example/" for number in range(400)], "mallory"),
        ([f"https://slow{number}.example/" for number in range(10)], None),
    ],
    ids=["one receiver", "one tenant with many names", "many receivers"],
)
async def test_slow_receivers_leave_room_for_all_others(
    urls: list[str], tenant: str | None, autojump_clock: MockClock
) -> None:
    database = Counting()
    async with service(by_name, database) as s:
        for number in range(400):
            await ended(s.database, url=urls[number % len(urls)], tenant=tenant)
        s.due.notify()
        await trio.sleep(60)
        waits = []
        for _ in range(20):
            began = trio.current_time()
            (task_id,) = await ended(s.database, url="https://quick.example/", tenant="alice")
            s.due.notify()
            with trio.fail_after(30):
                while task_id not in s.sender.ids:
                    await trio.sleep(0.01)
            waits.append(trio.current_time() - began)
            await trio.sleep(1)
        assert max(waits) < 1.0
        assert database.put_offs < 2000, "a statement takes many of them"
        slow = [each for _, each in s.sender.sent if "slow" in each.url]
        assert len({each.task_id for each in slow}) > 40, "they have their turn, too"
        assert max(each.tries for each in slow) <= 4, "and to wait for it costs none of their tries"


async def test_a_burst_to_a_quick_receiver_has_all_the_room(autojump_clock: MockClock) -> None:
    async with service(by_name) as s:
        await ended(s.database, 1000, url="https://quick.example/")
        s.due.notify()
        began = trio.current_time()
        with trio.fail_after(60):
            while len(s.sender.sent) < 1000:
                await trio.sleep(0.1)
        assert s.sender.most > CONCURRENCY // 2
        assert trio.current_time() - began < 2 * 1000 / CONCURRENCY * 0.1
        await trio.sleep(60)
        assert await due(s.database) == 0


async def test_what_was_put_off_is_put_off_for_about_as_long_as_it_would_have_queued(autojump_clock: MockClock) -> None:
    lanes = Lanes(CONCURRENCY)
    with must(lanes.enter(["slow"])):
        await trio.sleep(12)
    assert [isinstance(lanes.enter(["slow"]), Passage) for _ in range(NARROW)] == [True] * NARROW
    delays = [lanes.enter(["slow"]) for _ in range(100)]
    assert all(isinstance(delay, float) for delay in delays)
    expected = [SHORTEST_PUT_OFF + number * 12 / NARROW for number in range(1, 101)]
    assert delays == pytest.approx(expected)
    assert isinstance(lanes.enter(["slow", "quick"]), float)
    assert isinstance(lanes.enter(["quick"]), Passage)
    for _ in range(10_000):
        delay = lanes.enter(["slow"])
        assert isinstance(delay, float)
        assert delay <= LONGEST_PUT_OFF
    await trio.sleep(24 * 3600)
    assert isinstance(lanes.enter(["other"]), Passage)


async def test_a_receiver_that_is_quick_again_gets_its_room_back(autojump_clock: MockClock) -> None:
    lanes = Lanes(CONCURRENCY)
    with must(lanes.enter(["x"])):
        await trio.sleep(15)
    for _ in range(10):
        with must(lanes.enter(["x"])):
            await trio.sleep(0.1)
    assert all(isinstance(lanes.enter(["x"]), Passage) for _ in range(CONCURRENCY))


async def test_lanes_are_forgotten(autojump_clock: MockClock) -> None:
    lanes = Lanes(CONCURRENCY)
    held = must(lanes.enter(["held"]))
    for number in range(3 * MOST_REMEMBERED):
        with must(lanes.enter([str(number)])):
            pass
    assert len(lanes) <= MOST_REMEMBERED
    with held:
        pass


def must(passage: Passage | float) -> Passage:
    assert isinstance(passage, Passage)
    return passage


# -- how much is asked of the database ---------------------------------------------------------------


async def test_an_idle_service_asks_seldom(autojump_clock: MockClock) -> None:
    database = Counting()
    async with service(database=database):
        await trio.sleep(3600)
    assert database.claims <= 3600 / (INTERVAL * 0.8) + 1


async def test_a_busy_service_asks_in_proportion(autojump_clock: MockClock) -> None:
    async def takes_a_moment(_: WebhookDelivery) -> Answer:
        await trio.sleep(0.02)
        return Answer(200)

    database = Counting()
    async with service(takes_a_moment, database) as s:
        await ended(database, 20 * CONCURRENCY)
        for _ in range(1000):
            s.due.notify()
            await trio.sleep(0.002)
        assert len(s.sender.sent) == 20 * CONCURRENCY
        assert database.claims <= 2 * 20 + 5


# -- any history -------------------------------------------------------------------------------------

step = st.tuples(
    st.sampled_from([Answer(200), Answer(500), Answer(503, "40"), Answer(410), None]),
    st.floats(0, 30),
    st.sampled_from(["", "", "database", "crash"]),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(step, min_size=1, max_size=6))
def test_whatever_happens_each_is_delivered_or_given_up_and_after_a_success_was_written_never_again(
    steps: list[tuple[Answer | None, float, str]],
) -> None:
    async def play() -> None:
        database = MemoryDatabase()
        script = iter(steps)
        settled: list[bool] = []

        async def behaves(delivery: WebhookDelivery) -> Answer:
            answer, seconds, event = next(script, (Answer(200), 0.0, ""))
            assert not settled, "delivered and written down, and yet made again"
            await trio.sleep(min(seconds, 14))
            if event == "database":
                database.unavailable = True
                database_back.notify()
            if event == "crash":
                crash.notify()
                await trio.sleep_forever()
            if answer is None:
                raise DeliveryFailed("lost")
            return answer

        database_back, crash = Signal(), Signal()

        async def heal() -> None:
            while True:
                await database_back.wait(float("inf"))
                await trio.sleep(45)
                database.unavailable = False

        settle = database.settle_webhook

        async def watch(delivery: WebhookDelivery, again_in: float | None) -> bool:
            written = await settle(delivery, again_in)
            if written and again_in is None:
                settled.append(True)
                crash.notify()
            return written

        database.settle_webhook = watch  # type: ignore[method-assign]
        await ended(database)
        with trio.move_on_after(4 * 24 * 3600):
            while not settled:
                async with service(behaves, database, 300.0), trio.open_nursery() as nursery:
                    nursery.start_soon(heal)
                    await crash.wait(3600)
                    nursery.cancel_scope.cancel()
                database.unavailable = False
        assert settled
        assert await due(database) == 0

    trio.run(play, clock=MockClock(autojump_threshold=0))


# -- in the tree -------------------------------------------------------------------------------------


async def test_the_end_of_a_task_is_told_at_once_however_it_ends(autojump_clock: MockClock) -> None:
    database, sender = MemoryDatabase(), FakeSender()
    async with worker(database, sender=sender) as w:
        await trio.sleep(30)
        for code, status in (("hello", "completed"), ("exit 3", "failed")):
            (task_id,) = await w.submit(code, webhook=URL, max_attempts=1)
            await w.wait_for(task_id)
            began = trio.current_time()
            await trio.sleep(1)
            moment, told = sender.sent[-1]
            assert (told.task_id, told.status, told.attempt) == (task_id, status, 1)
            assert moment - began < 0.1
        (running,) = await w.submit("sleep 1000", webhook=URL)
        await w.wait_for(running, status="processing")
        await database.cancel(running)
        await w.wait_for(running)
        await trio.sleep(1)
        assert sender.sent[-1][1].status == "cancelled"
        assert await due(database) == 0
    assert len(sender.sent) == 3


async def test_a_try_that_failed_is_not_the_end(autojump_clock: MockClock) -> None:
    database, sender = MemoryDatabase(), FakeSender()
    async with worker(database, sender=sender) as w:
        (task_id,) = await w.submit("exit 3", webhook=URL, max_attempts=3)
        await w.wait_for(task_id)
        await trio.sleep(60)
        assert [(told.status, told.attempt) for _, told in sender.sent] == [("failed", 3)]


async def test_a_worker_without_a_secret_delivers_nothing_and_another_does(autojump_clock: MockClock) -> None:
    database, sender = Counting(), FakeSender()
    async with worker(database) as without:
        (task_id,) = await without.submit("hello", webhook=URL)
        await without.wait_for(task_id)
        await trio.sleep(600)
        assert database.claims == 0
        async with worker(database, sender=sender):
            await trio.sleep(INTERVAL * 1.2)
            assert sender.ids == [task_id]


async def test_the_last_tasks_before_a_shutdown_are_told_of_while_there_is_time(autojump_clock: MockClock) -> None:
    database, sender = MemoryDatabase(), FakeSender()
    async with worker(database, sender=sender, shutdown_grace=25) as w:
        (task_id,) = await w.submit("sleep 10", webhook=URL)
        await w.wait_for(task_id, status="processing")
        w.shutdown.request()
        await w.stopped.wait()
    assert sender.ids == [task_id]
    assert await due(database) == 0


async def test_an_idle_worker_stops_at_once_with_webhooks(autojump_clock: MockClock) -> None:
    async with worker(MemoryDatabase(), sender=FakeSender()) as w:
        await trio.sleep(30)
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began < 0.5


async def test_a_database_that_is_away_at_the_end_holds_nothing_up_for_long(autojump_clock: MockClock) -> None:
    database = MemoryDatabase()
    async with worker(database, FakeBackend(), sender=FakeSender()) as w:
        await ended(database)
        database.unavailable = True
        await trio.sleep(60)
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began < 20
