"""Faults between the workers and their database: a proxy that misbehaves."""

from __future__ import annotations

import random

import trio

from tests.chaos.checker import Rules
from tests.chaos.plan import Break, Fault, Reporter, every
from tests.support import proxy
from tests.support.proxy import FaultProxy

AWAY = 3.0
"""Seconds that the database is away; longer than half a lease."""


class Proxied:
    """One database server behind a `FaultProxy`."""

    def __init__(self, url: str, port: int, between: FaultProxy) -> None:
        self.watching = url
        self.url = url.replace(f":{port}/", f":{between.port}/")
        self._proxy = between
        self.faults = {
            fault.name: fault
            for fault in (
                Fault("refuse", self._for_seconds(proxy.Fault.REFUSE, AWAY, 6.0), Rules()),
                Fault("reset", self._reset, Rules()),
                Fault("swallow", self._for_seconds(proxy.Fault.SWALLOW, 2 * AWAY, 12.0), Rules()),
                Fault("delay", self._delay, Rules()),
                Fault("cut", self._for_seconds(proxy.Fault.CUT_ANSWER, 0.3, 1.5), Rules()),
                Fault("all", self._anything, Rules()),
            )
        }

    async def heal(self) -> None:
        self._proxy.delay = 0.0
        self._proxy.set(proxy.Fault.NONE)
        await trio.lowlevel.checkpoint()

    async def _misbehave(self, report: Reporter, fault: proxy.Fault, seconds: float) -> None:
        async with report.fault(fault.value, outage=True):
            self._proxy.set(fault)
            try:
                await trio.sleep(seconds)
            finally:
                self._proxy.set(proxy.Fault.NONE)

    def _for_seconds(self, fault: proxy.Fault, seconds: float, interval: float) -> Break:
        async def run(report: Reporter) -> None:
            async def act() -> None:
                await trio.sleep((interval - seconds) / 2)
                await self._misbehave(report, fault, seconds)

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
        """Every answer and every question takes 150 ms."""
        self._proxy.delay = 0.15
        await self._misbehave(report, proxy.Fault.DELAY, float("inf"))

    async def _anything(self, report: Reporter) -> None:
        """One fault after another, by chance."""
        while True:
            await trio.sleep(random.uniform(0.5, 2))
            kind = random.choice([each for each in proxy.Fault if each is not proxy.Fault.NONE])
            self._proxy.delay = 0.15
            await self._misbehave(report, kind, random.uniform(0.2, AWAY))
