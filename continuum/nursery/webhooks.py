"""Webhooks: whoever asked for it is told that a task has ended, at least once, by whichever worker comes first.

The database holds what is due; a delivery is taken under a lease, tried, and settled: made, due again later, or given up. A
worker that dies meanwhile lets the lease expire, and another one makes the delivery. Repeats are told by their `webhook-id`.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import enum
import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import WebhookDelivery
from continuum.nursery.backoff import Backoff, note_database_failure, note_database_success, until_available
from continuum.nursery.signals import Shutdown, Signal
from continuum.nursery.state import WorkerState
from continuum.nursery.webhook_lanes import Lanes, Passage
from continuum.telemetry import Telemetry
from continuum.webhook import origin_of

log = structlog.get_logger(__name__)

CONCURRENCY = 32
"""Deliveries under way at once."""
LEASE = 60.0
"""Seconds for which a delivery is this worker's: the deadline of a try, and time to write down what came of it."""
DELAYS = (5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Seconds from a try that failed to the next; the one after the last is given up."""
JITTER = 0.2
"""By what part a delay is longer or shorter, so that what failed together does not come back together."""
LONGEST_RETRY_AFTER = DELAYS[-1]
"""Seconds that a receiver may ask for."""
LINGER = 0.05
"""Seconds between two looks at the least: more becomes due meanwhile."""
GRACE = 3.0
"""Seconds that deliveries under way have when the worker ends."""

GONE = 410
BUSY = (429, 503)


class DeliveryFailed(Exception):
    """No answer came; the message says why and holds nothing secret."""


class Unusable(Exception):
    """Nothing can ever be delivered to this URL; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said. retry_after: that header, as it came."""

    status: int
    retry_after: str | None = None


class Sender(Protocol):
    """Makes deliveries; see `webhook_sender`."""

    async def send(self, delivery: WebhookDelivery) -> Answer:
        """Make a delivery once, within a deadline. Raises `Unusable` and `DeliveryFailed`."""
        ...

    async def rest(self) -> None:
        """Nothing is to be delivered for a while."""
        ...


class Result(enum.StrEnum):
    """What came of a try."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It is tried again."""
    GIVEN_UP = "given_up"
    """It was the last try."""
    GONE = "gone"
    """The receiver wants no more of it."""
    REFUSED = "refused"
    """No such URL may ever be delivered to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A try's result, and in how many seconds the next one is due. reason: in words, for the log."""

    result: Result
    again_in: float | None = None
    reason: str = ""


def judge(answer: Answer, tries: int, jitter: float, now: dt.datetime) -> Verdict:
    """What an answer means after so many tries, this one included. jitter: from -1 to 1."""
    if 200 <= answer.status < 300:
        return Verdict(Result.DELIVERED)
    reason = f"HTTP {answer.status}"
    if answer.status == GONE:
        return Verdict(Result.GONE, reason=reason)
    asked = _seconds(answer.retry_after, now) if answer.status in BUSY else 0.0
    return failed(reason, tries, jitter, at_least=min(asked, LONGEST_RETRY_AFTER))


def failed(reason: str, tries: int, jitter: float, *, at_least: float = 0.0) -> Verdict:
    """After a try that failed: another one, or none."""
    if tries > len(DELAYS):
        return Verdict(Result.GIVEN_UP, reason=reason)
    return Verdict(Result.FAILED, max(at_least, DELAYS[tries - 1] * (1 + JITTER * jitter)), reason)


def _seconds(retry_after: str | None, now: dt.datetime) -> float:
    """What a Retry-After header asks for, 0 where it says nothing that can be understood."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


class Webhooks:
    """The service of webhooks. interval: seconds between two looks for what others left. due: raised when there may be some."""

    def __init__(
        self,
        database: Database,
        state: WorkerState,
        telemetry: Telemetry,
        sender: Sender,
        interval: float,
        due: Signal,
    ) -> None:
        self._database = database
        self._state = state
        self._telemetry = telemetry
        self._sender = sender
        self._interval = interval
        self._due = due
        self._lanes = Lanes(CONCURRENCY)
        self._under_way = 0
        self._more = False
        """Whether as many were taken as there was room for: there may be more."""
        self._due_at: list[float] = []
        """A heap: when those that we took are due again, as far as that is before the next look by the clock."""
        self._closed = False
        self._finished = trio.Event()

    async def run(self) -> None:
        """Deliver what is due, until `finish`."""
        try:
            async with trio.open_nursery() as deliveries:
                await self._look_again_and_again(deliveries)
            self._finished.set()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await self._sender.rest()

    async def _look_again_and_again(self, deliveries: trio.Nursery) -> None:
        backoff = Backoff()
        ending = False
        while not ending:
            ending = self._closed
            try:
                taken = await self._take()
            except DatabaseUnavailable as error:
                note_database_failure(self._state, "webhooks", error)
                await trio.sleep(backoff.next_delay())
                continue
            backoff.reset()
            note_database_success(self._state)
            put_off: dict[WebhookDelivery, float] = {}
            for delivery in taken:
                passage = self._lanes.enter((f"receiver {origin_of(delivery.url)}", f"tenant {delivery.tenant}"))
                if isinstance(passage, float):
                    put_off[delivery] = passage
                else:
                    self._under_way += 1
                    deliveries.start_soon(self._deliver, delivery, passage)
            if put_off:
                await self._put_off(put_off)
            if not self._under_way:
                await self._sender.rest()
            if not ending:
                await trio.sleep(LINGER)
                await self._due.wait(self._pause())

    async def finish(self, shutdown: Shutdown) -> None:
        """Look once more, for what this worker's last tasks left, and wait for what is under way: GRACE seconds at most, and no
        longer than a second signal lets us. What is not settled then is due again when its lease has expired."""
        self._closed = True
        self._due.notify()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + GRACE
            nursery.start_soon(_cancel_after, shutdown.urgent, nursery.cancel_scope)
            await self._finished.wait()
            nursery.cancel_scope.cancel()

    async def _take(self) -> list[WebhookDelivery]:
        room = CONCURRENCY - self._under_way
        if not room:
            return []
        taken = await self._database.claim_webhooks(room, lease=LEASE)
        self._more = len(taken) == room
        return taken

    def _pause(self) -> float:
        """Seconds until the next look, unless there is reason for one before."""
        now = trio.current_time()
        while self._due_at and self._due_at[0] <= now:
            heapq.heappop(self._due_at)
        pause = self._interval * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        return min(pause, self._due_at[0] - now) if self._due_at else pause

    async def _put_off(self, delays: Mapping[WebhookDelivery, float]) -> None:
        for delay in delays.values():
            self._look_in(delay)
        if self._more:  # what comes behind them may have room
            self._due.notify()
        try:
            await self._database.put_off_webhooks(delays)
        except DatabaseUnavailable as error:  # they are due again when their lease has expired
            note_database_failure(self._state, "webhooks", error)

    async def _deliver(self, delivery: WebhookDelivery, passage: Passage) -> None:
        try:
            with passage:
                verdict = await self._try(delivery)
            self._note(delivery, verdict)
            await until_available(
                self._state, "webhooks", lambda: self._database.settle_webhook(delivery, verdict.again_in)
            )
        finally:
            self._under_way -= 1
            if self._more:
                self._due.notify()
        if verdict.again_in is not None:
            self._look_in(verdict.again_in)
            self._due.notify()

    def _look_in(self, seconds: float) -> None:
        """Something is due then."""
        if seconds < self._interval:
            heapq.heappush(self._due_at, trio.current_time() + seconds + LINGER)

    async def _try(self, delivery: WebhookDelivery) -> Verdict:
        jitter = random.uniform(-1, 1)  # noqa: S311
        try:
            answer = await self._sender.send(delivery)
        except Unusable as error:
            return Verdict(Result.REFUSED, reason=str(error))
        except DeliveryFailed as error:
            return failed(str(error), delivery.tries, jitter)
        return judge(answer, delivery.tries, jitter, dt.datetime.now(dt.UTC))

    def _note(self, delivery: WebhookDelivery, verdict: Verdict) -> None:
        self._telemetry.webhook_tried(verdict.result.value)
        told = {
            "task_id": delivery.task_id,
            "attempt": delivery.attempt,
            "receiver": origin_of(delivery.url),
            "tries": delivery.tries,
        }
        if verdict.result is Result.DELIVERED:
            log.debug("a webhook was delivered", **told)
        elif verdict.result is Result.FAILED:
            log.info("a webhook was not delivered", **told, reason=verdict.reason, again_in=verdict.again_in)
        else:
            log.warning("a webhook is given up", **told, reason=verdict.reason)


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
