"""Faults of a cluster's nodes: killed, hung, drained, restarted, and too many at once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Protocol

import trio

from tests.chaos.checker import Rules
from tests.chaos.plan import Fault, Reporter, every

ONE_NODE = Rules(bound=12.0, recovery=3.0)
"""Losing one node is no outage: within this time work goes on. A lease on data passes to another node in 3 to 9 s. Where
nobody had an answer meanwhile, workers try again after 3 s at most."""
NO_QUORUM = Rules(bound=8.0, recovery=12.0)
"""Without a quorum nobody is held to anything; before, and when the nodes have found each other, all of them are there."""
LONGEST_PAUSE = 12.0
"""Seconds that all workers together may stand still while single nodes are killed, one right after the other."""
LONGEST_BREAKING = 90.0
LONGEST_HEALING = 90.0


class Nodes(Protocol):
    """Nodes that can be broken, by their names."""

    names: list[str]

    async def kill(self, name: str) -> None: ...

    async def start(self, name: str) -> None:
        """Start a node that was killed or drained, and return when it serves."""
        ...

    async def drain(self, name: str) -> None:
        """End a node in peace."""
        ...

    async def pause(self, name: str) -> None:
        """Have a node hang."""
        ...

    async def resume(self, name: str) -> None: ...


class Clustered:
    """A cluster whose nodes break. `url` names all of them."""

    def __init__(self, url: str, nodes: Nodes, *, interval: float = 5.0, down: float = 3.0) -> None:
        self.url = self.watching = url
        self._nodes = nodes
        self._interval = interval
        self._down = down
        self._broken: dict[str, str] = {}
        self.faults = {
            fault.name: fault
            for fault in (
                Fault("kill", self._kill, ONE_NODE, LONGEST_PAUSE),
                Fault("hang", self._hang, ONE_NODE),
                Fault("drain", self._drain, ONE_NODE),
                Fault("restart", self._restart, ONE_NODE),
                Fault("quorum", self._lose_quorum, NO_QUORUM),
            )
        }

    async def heal(self) -> None:
        """Resume or start every node that is broken."""
        with trio.fail_after(LONGEST_HEALING):
            for name in list(self._broken):
                await self._mend(name)

    async def _break(self, name: str, how: str) -> None:
        """Break a node to the end: one that is still draining when the run is over could not be started again."""
        self._broken[name] = how
        with trio.fail_after(LONGEST_BREAKING, shield=True):
            await getattr(self._nodes, how)(name)

    async def _mend(self, name: str) -> None:
        await (self._nodes.resume(name) if self._broken[name] == "pause" else self._nodes.start(name))
        del self._broken[name]

    async def _again_and_again(
        self, names: Iterator[str], report: Reporter, how: str, said: str, down: float, interval: float
    ) -> None:
        async def act() -> None:
            name = next(names)
            began = trio.current_time()
            async with report.fault(f"{name} {said}"):
                await self._break(name, how)
                await trio.sleep_until(began + down)
                await self._mend(name)
            # All nodes are there for as long as was meant, however long this one took to start: it is one that is away.
            await trio.sleep(interval - down)

        await trio.sleep(self._interval / 2)
        await every(interval, act)

    def _any(self) -> Iterator[str]:
        while True:
            yield random.choice(self._nodes.names)

    async def _kill(self, report: Reporter) -> None:
        """kill -9 of one node, whichever, and of one again when it was started and serves."""
        await self._again_and_again(self._any(), report, "kill", "killed", self._down, self._interval)

    async def _hang(self, report: Reporter) -> None:
        """SIGSTOP of one node, SIGCONT long after its leases must have passed on."""
        await self._again_and_again(self._any(), report, "pause", "hangs", 8 * self._down, 8 * self._interval)

    async def _drain(self, report: Reporter) -> None:
        """One node is drained and stays away for a while."""
        await self._again_and_again(self._any(), report, "drain", "drained", self._down, 3 * self._interval)

    async def _restart(self, report: Reporter) -> None:
        """A rolling restart: each node is drained and started at once, and the next follows when it serves."""
        names = itertools.cycle(self._nodes.names)
        await self._again_and_again(names, report, "drain", "restarted", 0, 0)

    async def _lose_quorum(self, report: Reporter) -> None:
        """The majority of the nodes is killed, and stays away for 15 s; but first everything runs for 20 s."""
        lost = self._nodes.names[: len(self._nodes.names) // 2 + 1]

        async def act() -> None:
            await trio.sleep(4 * self._interval)
            async with report.fault(f"{' and '.join(lost)} killed: no quorum", outage=True):
                for name in lost:
                    await self._break(name, "kill")
                await trio.sleep(5 * self._down)
                async with trio.open_nursery() as nursery:
                    for name in lost:
                        nursery.start_soon(self._mend, name)

        await every(60.0, act)
