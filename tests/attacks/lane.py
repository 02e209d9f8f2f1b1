"""One worker with one sandbox at a time, to which attacks go one after the other through the database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from continuum.client import Client
from continuum.config import Settings
from continuum.db import open_database
from continuum.model import Outcome, RunRequest, Stream, TaskRecord
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.requirements import Requirements
from continuum.sandbox.protocol import Backend, Layer, OutputSink, Sandbox, SandboxLost
from continuum.telemetry import Telemetry
from tests.attacks.attack import (
    CPUS,
    HONEST,
    HONEST_PAYLOAD,
    VICTIM_MARK,
    Attack,
    Evidence,
    Onlooker,
    Place,
    Result,
    judged,
)  # fmt: skip
from tests.attacks.prelude import PRELUDE
from tests.attacks.probe import PROBE, Host, NotASandbox
from tests.attacks.world import World, visit
from tests.support import docker as lab

PATIENCE = 60.0
"""Seconds for a task to end, waiting for a sandbox included."""
SECRET = f"{VICTIM_MARK}-earlier-payload-5f3a91c7"


class WatchedBackend:
    """A backend whose sandboxes are probed before anybody may use them, and which knows what ran where.

    world: the network in which its sandboxes are, when they have one.
    """

    def __init__(self, inner: Backend, host: Host, world: World | None) -> None:
        self.name = inner.name
        self._inner = inner
        self._host = host
        self._world = world
        self.sandbox_of: dict[int, str] = {}
        self.output_of: dict[int, str] = {}
        self.condemned: set[str] = set()
        self.networked = False
        """Whether a sandbox of this backend had a network."""

    @property
    def description(self) -> str:
        return self._inner.description

    async def prepare(self) -> None:
        await self._inner.prepare()

    def layer(self, requirements: Requirements) -> AbstractAsyncContextManager[Layer]:
        return self._inner.layer(requirements)

    async def start(self, layer: Layer | None = None) -> WatchedSandbox:
        sandbox = await self._inner.start(layer)
        try:
            request = RunRequest(0, 1, PROBE, self._host.payload, 20.0, 65536)
            outcome = await sandbox.run(request, lambda *_: None)
            await self.admit(sandbox.name, outcome.output)
        except BaseException:
            with trio.CancelScope(shield=True):
                await sandbox.aclose()
            raise
        return WatchedSandbox(self, sandbox)

    async def admit(self, sandbox: str, printed: str) -> None:
        """Raise `NotASandbox` unless a probe has shown a sandbox whose network, if any, is the test's own."""
        interfaces = self._host.judge(printed)
        if set(interfaces) - {"lo"}:
            if self._world is None:
                raise NotASandbox(f"it has the interfaces {interfaces}, and no network of the test's is there")
            await self._world.admit(sandbox)
            self.networked = True

    async def check(self) -> None:
        await self._inner.check()

    async def sweep(self, live_workers: Set[str]) -> int:
        return await self._inner.sweep(live_workers)

    async def aclose(self) -> None:
        await self._inner.aclose()


class WatchedSandbox:
    """A probed sandbox."""

    def __init__(self, backend: WatchedBackend, inner: Sandbox) -> None:
        self.name = inner.name
        self._backend = backend
        self._inner = inner

    @property
    def reusable(self) -> bool:
        return self._inner.reusable

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        if self.name in self._backend.condemned:
            raise SandboxLost("another attack has used it", started=False)
        self._backend.sandbox_of[request.task_id] = self.name

        def note(stream: Stream, text: str) -> None:
            before = self._backend.output_of.get(request.task_id, "")
            self._backend.output_of[request.task_id] = (before + text)[:4096]
            sink(stream, text)

        return await self._inner.run(request, note)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Lane:
    """A worker of its own that claims the tasks of one priority.

    target: whose attacks these are. reuse: whether a sandbox is used for attack after attack, as a worker does; the
    unprotected one would carry the traces of one attack into the next.
    """

    target: str
    priority: int
    backend: WatchedBackend
    client: Client
    facts: dict[str, Any]
    reuse: bool
    neighbour: Lane | None = None
    state: WorkerState = field(default_factory=lambda: WorkerState(id="", slots=1))

    async def submit(self, code: str, payload: object, *, tenant: str | None = None, timeout: float = 20.0) -> int:
        return await self.client.submit(
            code, payload, priority=self.priority, max_attempts=1, timeout=timeout, tenant=tenant
        )

    async def task(self, code: str, payload: object, **values: Any) -> TaskRecord:
        """Run a task to its end."""
        return await self.client.wait(await self.submit(code, payload, **values), PATIENCE)

    async def probe(self, host: Host) -> None:
        """Raise `NotASandbox` unless a task, submitted like every attack, runs in a sandbox."""
        record = await self.task(PROBE, list(host.markers))
        if record.status != "completed":
            raise NotASandbox(f"the probe {record.status}: {record.last_error}")
        host.judge(record.output or "")

    async def attempt(self, attack: Attack) -> Result:
        """Run one attack with all that belongs to it, and judge it."""
        if attack.place is Place.NETWORK and self.backend.networked and "neighbour" not in self.facts:
            raise NotASandbox("a network attack would leave the test's own network")
        evidence = await self._gather(attack)
        verdict, detail = judged(attack, evidence)
        if not self.reuse:
            if attack.mess or attack.aftermath or evidence.lost:
                self.backend.condemned |= set(self.backend.sandbox_of.values())
            else:
                await self.task("import os\nos._exit(0)", None)  # the next attack gets an interpreter of its own
        return Result(attack.name, self.target, verdict, detail, evidence.seconds)

    async def _gather(self, attack: Attack) -> Evidence:
        tenants = ("victim", "attacker") if attack.tenants and self.reuse else (None, None)
        before = aftermath = honest = None
        if attack.before:
            before = await self.task(attack.before, {"secret": SECRET}, tenant=tenants[0])
            assert before.status == "completed", before
        number = await self.submit(PRELUDE + attack.code, self.facts, tenant=tenants[1], timeout=attack.timeout)
        seen, measured = await self._look_on(attack, number)
        record = await self.client.wait(number, PATIENCE)
        if attack.aftermath:
            aftermath = await self.task(PRELUDE + attack.aftermath, self.facts, tenant=tenants[1])
        if self.reuse:
            honest = await self.task(HONEST, HONEST_PAYLOAD, tenant=tenants[1])
        ran_in = self.backend.sandbox_of
        return Evidence(
            attack=record,
            before=before,
            aftermath=aftermath,
            honest=honest,
            seconds=(record.finished - record.started).total_seconds() if record.finished and record.started else 0.0,
            same_sandbox=aftermath is not None and ran_in.get(aftermath.id) == ran_in.get(number),
            shared=before is not None and ran_in.get(before.id) == ran_in.get(number),
            seen=seen,
            measured=measured,
        )

    async def _look_on(self, attack: Attack, number: int) -> tuple[str, str]:
        """Take part from outside while an attack runs; what was seen of its success, or else measured."""
        if attack.onlooker is Onlooker.NOBODY or not await self._has_begun(number):
            return "", ""
        sandbox = self.backend.sandbox_of[number]
        match attack.onlooker:
            case Onlooker.VISITOR if self.backend.networked:
                address = await trio.to_thread.run_sync(_address, sandbox)
                return (await trio.to_thread.run_sync(visit, address) if address else ""), ""
            case Onlooker.METER if self.target != "bubblewrap":
                share = await trio.to_thread.run_sync(_processors, sandbox)
                measured = f"{share:.2f} processors, measured on the host"
                return (measured, "") if share > CPUS * 1.3 else ("", measured)
            case Onlooker.NEIGHBOUR:
                assert self.neighbour is not None
                record = await self.neighbour.task(PRELUDE + attack.neighbour, self.facts)
                if record.status != "completed":
                    return f"a task in another sandbox did not complete: {record.last_error}", ""
                return (record.output or "").partition("SUCCEEDED: ")[2].strip(), ""
        return "", ""

    async def _has_begun(self, number: int) -> bool:
        """Wait until a script has said something, or has ended; whether it still runs."""
        with trio.move_on_after(PATIENCE):
            while not self.backend.output_of.get(number):
                if (await self.client.fetch(number)).finished_for_good:
                    return False
                await trio.sleep(0.02)
        return "STOPPED: " not in self.backend.output_of.get(number, "")


def _address(sandbox: str) -> str:
    with lab.api() as client:
        networks: dict[str, dict[str, Any]] = client.inspect_container(sandbox)["NetworkSettings"]["Networks"]
    return next((network["IPAddress"] for network in networks.values() if network.get("IPAddress")), "")


def _processors(sandbox: str) -> float:
    """How many processors a container uses, for most of a second."""
    with lab.api() as client:
        used, at = [], []
        for pause in (0.7, 0.0):
            used.append(client.stats(sandbox, stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"])
            at.append(time.monotonic_ns())
            time.sleep(pause)
    return float(used[1] - used[0]) / (at[1] - at[0])


@asynccontextmanager
async def open_lane(
    target: str, backend: WatchedBackend, settings: Settings, facts: dict[str, Any], host: Host, *, reuse: bool = True,
    neighbour: Lane | None = None,
) -> AsyncIterator[Lane]:  # fmt: skip
    """A running worker, probed; it is shut down when the block ends."""
    shutdown = Shutdown()
    state = WorkerState(id=f"attack-{target}-{settings.min_priority}", slots=settings.slots)
    async with open_database(settings) as database, Client(settings) as client, trio.open_nursery() as nursery:
        nursery.start_soon(supervise, settings, state, database, backend, Telemetry(), shutdown)
        lane = Lane(target, settings.min_priority, backend, client, facts, reuse, neighbour, state)
        try:
            await lane.probe(host)
            yield lane
        finally:
            shutdown.request()
            shutdown.request()
