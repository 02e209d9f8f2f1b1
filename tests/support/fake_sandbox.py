"""A backend without processes, for tests of the worker on the virtual clock.

A "script" is a line of words: `hello`, `sleep 5`, `exit 3`, `hog`, `lost`, or `say TEXT` and then a sleep. The fake
enforces the request's timeout as the real runner does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from continuum.model import Ending, Outcome, RunRequest, Stream
from continuum.requirements import Requirements, parse_requirements
from continuum.sandbox.protocol import BackendUnavailable, Layer, LayerGone, OutputSink, SandboxLost


@dataclass
class FakeBackend:
    """Counts what happens to it. Set `unavailable` to a message to make it fail."""

    cold_start: float = 0.5
    unavailable: str | None = None
    name: str = "fake"
    description: str = "fake, no isolation"
    started: int = 0
    closed: int = 0
    prepared: int = 0
    swept_with: list[frozenset[str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    ran: list[RunRequest] = field(default_factory=list)
    dead_on_arrival: int = 0
    dead_sandboxes: set[str] = field(default_factory=set)
    """Names of sandboxes that have died, though nobody knows yet."""
    deadly_requests: set[str] = field(default_factory=set)
    """Scripts that no sandbox takes to their end."""
    uninstallable: Exception | None = None
    gone_layers: int = 0

    async def prepare(self) -> None:
        await self.check()
        self.prepared += 1

    @asynccontextmanager
    async def layer(self, requirements: Requirements) -> AsyncIterator[Layer]:
        """Installs in no time, unless `uninstallable` says why it cannot."""
        await self.check()
        if self.uninstallable is not None:
            raise self.uninstallable
        yield Layer(f"layer-{requirements.digest[:8]}", requirements.digest)

    async def start(self, layer: Layer | None = None) -> FakeSandbox:
        await self.check()
        await trio.sleep(self.cold_start)
        await self.check()
        if layer is not None and self.gone_layers:
            self.gone_layers -= 1
            raise LayerGone(f"{layer.name} was removed")
        self.started += 1
        return FakeSandbox(self, f"fake-{self.started}", layer)

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.unavailable is not None:
            raise BackendUnavailable(self.unavailable)

    async def sweep(self, live_workers: Set[str]) -> int:
        await self.check()
        self.swept_with.append(frozenset(live_workers))
        return 0

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    @property
    def alive(self) -> int:
        return self.started - self.closed


@dataclass
class FakeSandbox:
    """One fake sandbox; refuses to be used by two tasks at once, or after it was closed."""

    backend: FakeBackend
    name: str
    layer: Layer | None = None
    busy: bool = False
    closed: bool = False
    reusable: bool = True

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        assert not self.busy, "two tasks in one sandbox"
        assert not self.closed, "a closed sandbox was used"
        required = parse_requirements(request.requirements or "")
        assert (self.layer.key if self.layer else None) == (required.digest if required.lines else None)
        if self.backend.dead_on_arrival:
            self.backend.dead_on_arrival -= 1
            raise SandboxLost("it was dead", started=False)
        if self.name in self.backend.dead_sandboxes:
            raise SandboxLost("it had died", started=False)
        if request.code in self.backend.deadly_requests:
            raise SandboxLost("it ended while it took the request", started=False, amid_request=True)
        self.busy = True
        self.backend.running += 1
        self.backend.most_running = max(self.backend.most_running, self.backend.running)
        self.backend.ran.append(request)
        try:
            return await self._run(request, sink)
        finally:
            self.busy = False
            self.backend.running -= 1

    async def _run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        word, _, rest = request.code.partition(" ")
        with trio.move_on_after(request.timeout):
            match word:
                case "hello":
                    await trio.lowlevel.checkpoint()
                case "sleep":
                    await trio.sleep(float(rest))
                case "say":
                    sink(Stream.OUTPUT, rest)
                    await trio.sleep(10)
                case "exit":
                    return Outcome(Ending.FAILED, exit_code=int(rest), message=f"exit code {rest}")
                case "hog":
                    return Outcome(Ending.OUT_OF_MEMORY, message="Out of memory")
                case "lost":
                    await trio.sleep(0.1)
                    raise SandboxLost("it died")
                case _:
                    raise AssertionError(f"no such script: {request.code}")
            return Outcome(Ending.COMPLETED, exit_code=0, output=f"{word} {request.payload}")
        return Outcome(Ending.TIMED_OUT, message=f"Timeout: ran longer than {request.timeout:g} s")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.closed:
            self.closed = True
            self.backend.closed += 1
