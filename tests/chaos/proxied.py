"""Faults between the workers and their database: a proxy that misbehaves."""

from __future__ import annotations

import random
from dataclasses import replace

import trio

from tests.chaos.checker import Rules
from tests.chaos.plan import Break, Fault, Reporter, every
from tests.support import proxy
from tests.support.proxy import FaultProxy

AWAY = 3.0
"""Seconds that the database is away; longer than half a lease."""
SILENT = 5.5
"""Seconds that it says nothing; longer than the deadline of a call."""
DELAY = 0.1
"""Seconds that every answer and every question takes."""
CUTS, CUT, UNCUT = 4, 0.3, 0.5
"""How often in a row answers are cut, for how many seconds, and how many lie between."""
FIRST = 1.5
"""Seconds until the first fault: the workers begin."""

CLOSE = Rules(bound=2.5, recovery=4.0)
"""The database is near and answers at once; who could not reach it tries again after 3 s at most. What is left of the
time between two outages must be longer than this, or nobody is held to law 7."""
FAR = replace(CLOSE, bound=5.0)
"""Every round trip takes twice `DELAY`, and a new connection several of them."""


class Proxied:
    """One database server behind a `FaultProxy`."""

    def __init__(self, url: str, port: int, between: FaultProxy) -> None:
        self.watching = url
        self.url = url.replace(f":{port}/", f":{between.port}/")
        self._proxy = between
        self.faults = {
            fault.name: fault
            for fault in (
                Fault("refuse", self._for_seconds(proxy.Fault.REFUSE, AWAY, 15.0), CLOSE),
                Fault("reset", self._reset, CLOSE),
                Fault("swallow", self._for_seconds(proxy.Fault.SWALLOW, SILENT, 17.0), CLOSE),
                Fault("delay", self._delay, FAR),
                Fault("cut", self._cut, CLOSE),
                Fault("all", self._anything, CLOSE),
            )
        }

    async def heal(self) -> None:
        self._proxy.delay = 0.0
        self._proxy.set(proxy.Fault.NONE)
        await trio.lowlevel.checkpoint()

    async def _misbehave(self, report: Reporter, fault: proxy.Fault, seconds: float, *, outage: bool = True) -> None:
        async with report.fault(fault.value, outage=outage):
            self._proxy.set(fault)
            try:
                await trio.sleep(seconds)
            finally:
                self._proxy.set(proxy.Fault.NONE)

    def _for_seconds(self, fault: proxy.Fault, seconds: float, interval: float) -> Break:
        async def run(report: Reporter) -> None:
            async def act() -> None:
                await self._misbehave(report, fault, seconds)

            await trio.sleep(FIRST)
            await every(interval, act)

        return run

    async def _reset(self, report: Reporter) -> None:
        """Every connection is reset, every second."""

        async def act() -> None:
            self._proxy.reset_all()
            await trio.lowlevel.checkpoint()

        async with report.fault("resets"):
            await every(1.0, act)

    async def _delay(self, report: Reporter) -> None:
        """Every answer and every question takes its time."""
        self._proxy.delay = DELAY
        await self._misbehave(report, proxy.Fault.DELAY, float("inf"), outage=False)

    async def _cut(self, report: Reporter) -> None:
        """A few times in a row, whatever answer is under way is cut."""

        async def act() -> None:
            for _ in range(CUTS):
                await self._misbehave(report, proxy.Fault.CUT_ANSWER, CUT)
                await trio.sleep(UNCUT)

        await trio.sleep(FIRST)
        await every(12.0, act)

    async def _anything(self, report: Reporter) -> None:
        """Three faults in a row, by chance, and a time of peace."""
        self._proxy.delay = DELAY
        await trio.sleep(random.uniform(0.5, 1.5))
        while True:
            for _ in range(3):
                await trio.sleep(random.uniform(0.2, 1))
                kind = random.choice([each for each in proxy.Fault if each is not proxy.Fault.NONE])
                await self._misbehave(report, kind, random.uniform(0.2, 2))
            await trio.sleep(random.uniform(8, 9))
