"""Learning that there is work: from the database where it can tell, by asking every POLLING_INTERVAL in any case.

A wake-up may be spurious or repeated, never lost: after every new connection the claim service is woken once for
what may have come while nobody listened, and its own wait never lasts longer than the polling interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
import trio

from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable
from continuum.db.protocol import Database
from continuum.model import Wakeup
from continuum.nursery.backoff import Backoff, note_database_failure, until_available
from continuum.nursery.signals import Signal
from continuum.nursery.state import WorkerState

log = structlog.get_logger(__name__)

STEADY = 10.0
"""Seconds after which a connection that breaks is replaced at once."""


@dataclass(slots=True)
class WakeUps:
    """The wake-up service: passes the database's wake-ups on to the services they concern."""

    database: Database
    state: WorkerState
    settings: Settings
    work: Signal
    heartbeat_now: Signal
    schedule_changed: Signal
    schedules_changed: Signal = field(default_factory=Signal)
    gated: Signal = field(default_factory=Signal)
    _backoff: Backoff = field(default_factory=Backoff)

    async def run(self) -> None:
        """Listen and keep the schedule; never return."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.listen)
            nursery.start_soon(self.promote_when_due)

    async def listen(self) -> None:
        """Pass wake-ups on, connecting again whenever the connection breaks."""
        while True:
            began = trio.current_time()
            try:
                await self.database.listen(self)
            except DatabaseUnavailable as error:
                note_database_failure(self.state, "wake-up", error)
                if trio.current_time() - began > STEADY:
                    self._backoff.reset()
                await trio.sleep(self._backoff.next_delay())

    async def promote_when_due(self) -> None:
        """Make scheduled tasks claimable when their time has come, and end those that were not begun in time."""
        while True:
            promoted = await until_available(self.state, "wake-up", self.database.promote)
            if promoted.count:
                self.work.notify()
            if promoted.expires_in is not None and promoted.expires_in <= 0 and await self.cancel_late():
                continue
            times = [
                seconds for seconds in (promoted.next_in, promoted.expires_in) if seconds is not None and seconds >= 0
            ]
            await self.schedule_changed.wait(min([*times, self.settings.polling_interval]))

    async def cancel_late(self) -> int:
        """End tasks that were not begun by their `expires_at`; return how many. Those that are left are somebody else's."""
        ended = await until_available(self.state, "wake-up", lambda: self.database.cancel_late(self.state.id))
        if ended:
            log.info("cancelled tasks that were not begun in time", count=ended)
        return ended

    # -- as the database's listener ---------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        return self.state.id

    @property
    def claimed(self) -> int:
        return self.state.claimed

    @property
    def running(self) -> int:
        return len(self.state.running)

    @property
    def saturated(self) -> bool:
        return len(self.state.running) >= self.state.slots

    def wake(self, wakeup: Wakeup) -> None:
        match wakeup:
            case Wakeup.PENDING:
                self.work.notify()
            case Wakeup.CANCEL:
                self.heartbeat_now.notify()
            case Wakeup.SCHEDULED:
                self.schedule_changed.notify()
            case Wakeup.SCHEDULES:
                self.schedules_changed.notify()
            case Wakeup.GATED:
                self.gated.notify()
