"""What attacks are run against: each target's lanes, and the running of attacks on them."""

from __future__ import annotations

import secrets
import tempfile
import unittest.mock
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import trio
from psycopg import sql

from continuum.config import Settings
from continuum.db import open_database
from continuum.sandbox import docker_network
from continuum.sandbox.bubblewrap import BubblewrapBackend
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.protocol import Backend, BackendUnavailable
from tests.attacks.attack import (
    CPUS,
    DISK_MB,
    MEMORY_MB,
    OUTPUT_LIMIT,
    PIDS,
    SCRIPT_UID,
    VICTIM_MARK,
    WORKER_MARK,
    Attack,
    Onlooker,
    Place,
    Result,
)  # fmt: skip
from tests.attacks.control import ControlBackend, careless_host
from tests.attacks.lane import Lane, WatchedBackend, open_lane
from tests.attacks.prelude import VICTIM_SCRIPT
from tests.attacks.probe import Host, host_name
from tests.attacks.world import World, open_world
from tests.support import docker as lab
from tests.support.postgres import PostgresServer

TARGETS = ("control", "docker", "runsc", "bubblewrap")
PLAIN_LANES = 3
"""Workers side by side, beside one with a network and one for the neighbour."""
NETWORK_LANE, NEIGHBOUR_LANE = 90, 91
VICTIM_TIMEOUT = 900.0
CONTROL_UID = 1_900_000_077
"""Whom unprotected scripts become that use up what a user may have: nobody on this machine."""

Progress = Callable[[Result], None]


@dataclass(frozen=True, slots=True)
class Range:
    """Where a suite runs: an empty database, and the machine that must not be harmed."""

    database_url: str
    host: Host

    def settings(self, lane: int, **values: Any) -> Settings:
        """A worker's that claims one lane's tasks, with little room for scripts."""
        return lab.settings(
            database_url=self.database_url,
            min_priority=lane,
            max_priority=lane,
            **{
                "slots": 1,
                "output_limit": OUTPUT_LIMIT,
                "container_disk_mb": DISK_MB,
                "container_pids_limit": PIDS,
                "container_cpu_limit": CPUS,
                "shutdown_grace": 0.0,
                **values,
            },
        )


@dataclass
class Target:
    """Lanes that stand ready."""

    plain: list[Lane]
    network: Lane

    async def run(self, attacks: Sequence[Attack], progress: Progress) -> list[Result]:
        """Run attacks, several at a time, and return their results in the given order."""
        results: dict[str, Result] = {}

        async def work(lane: Lane, waiting: list[Attack]) -> None:
            while waiting:
                result = await lane.attempt(waiting.pop(0))
                results[result.attack] = result
                progress(result)

        over_network = [attack for attack in attacks if attack.place is Place.NETWORK]
        plain = [attack for attack in attacks if attack.place is Place.PLAIN]
        async with trio.open_nursery() as nursery:
            for lane in self.plain:
                nursery.start_soon(work, lane, plain)
            nursery.start_soon(work, self.network, over_network)
        return [results[attack.name] for attack in attacks]


@asynccontextmanager
async def open_target(name: str, place: Range, attacks: Sequence[Attack]) -> AsyncIterator[Target]:
    """The lanes of a target, as many as the attacks need. Raises `BackendUnavailable` where the target cannot be had."""
    async with open_database(place.settings(1)) as database:
        await database.migrate()
    async with AsyncExitStack() as stack:
        marker = f"marker-{secrets.token_hex(8)}"
        facts: dict[str, Any] = {
            "victim_mark": VICTIM_MARK,
            "worker_mark": WORKER_MARK,
            "marker": marker,
            "host_name": host_name(),
            "shared_uid": CONTROL_UID if name == "control" else SCRIPT_UID,
            "gateway_port": 1,
            "too_much_memory": MEMORY_MB[name] + 48,
        }
        wants_network = any(attack.place is Place.NETWORK for attack in attacks)
        make, world = await _maker(name, place, facts, wants_network, stack)
        if world is not None:
            facts = facts | world.facts
        reuse = name != "control"

        async def lane(number: int, neighbour: Lane | None = None, **values: Any) -> Lane:
            networked = number == NETWORK_LANE
            settings = place.settings(number, container_memory_mb=MEMORY_MB[name], **values)
            backend = WatchedBackend(make(settings, networked), place.host, world if networked else None)
            opened = open_lane(name, backend, settings, facts, place.host, reuse=reuse, neighbour=neighbour)
            return await stack.enter_async_context(opened)

        neighbour = None
        if name != "control" or any(attack.onlooker is Onlooker.NEIGHBOUR for attack in attacks):
            neighbour = await lane(NEIGHBOUR_LANE, slots=2)
        if name != "control" and neighbour is not None:
            victim = VICTIM_SCRIPT.replace("VICTIM_MARK", repr(VICTIM_MARK))
            started = await neighbour.submit(victim, None, tenant="neighbour", timeout=VICTIM_TIMEOUT)
            with trio.fail_after(30):
                while not neighbour.backend.output_of.get(started):
                    await trio.sleep(0.02)
        plain = [await lane(number + 1, neighbour) for number in range(PLAIN_LANES)]
        network = await lane(NETWORK_LANE, neighbour) if wants_network else plain[0]
        yield Target(plain, network)


Maker = Callable[[Settings, bool], Backend]


async def _maker(
    name: str, place: Range, facts: dict[str, Any], wants_network: bool, stack: AsyncExitStack
) -> tuple[Maker, World | None]:
    """What makes a target's backends, with a network or without, and the world of those that have one."""
    if name == "control":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="continuum-attack-")))
        careless = stack.enter_context(careless_host(folder, facts["marker"]))
        (careless / "dot.env").write_text(f"DB_PASSWORD={WORKER_MARK}-password-on-disk\n")
        environment = {
            "DATABASE_URL": f"postgresql://continuum:{WORKER_MARK}-password@database.internal/continuum",
            "WORKER_HOST": facts["host_name"],
        }
        world = await stack.enter_async_context(open_world()) if wants_network else None

        def unprotected(settings: Settings, networked: bool) -> Backend:
            if networked and world is not None:
                return ControlBackend(world.network, careless, environment, world.gateway)
            return ControlBackend("none", careless, environment)

        return unprotected, world
    if name == "bubblewrap":
        return lambda settings, _: BubblewrapBackend(settings, f"attack-{settings.min_priority}"), None

    runtime, world = ("runsc" if name == "runsc" else ""), None
    if wants_network and not runtime:  # what has a network stack of its own gets no network
        world = await stack.enter_async_context(open_world())
        stack.enter_context(unittest.mock.patch.object(docker_network, "NETWORK", world.network))
        stack.enter_context(unittest.mock.patch.object(docker_network, "NETWORK_OPTIONS", {}))

    def docker(settings: Settings, networked: bool) -> Backend:
        egress = "public" if networked and world is not None else "none"
        changed = {"sandbox": "docker", "container_runtime": runtime, "egress": egress}
        return DockerBackend(settings.model_copy(update=changed), lab.new_worker())

    return docker, world


def make_database(server: PostgresServer, name: str) -> str:
    """The URL of an empty database of a target's own."""
    with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url_of(name)


def missing(name: str) -> str:
    """Why a target cannot be had on this machine; empty when it can."""
    if name == "bubblewrap":
        try:
            trio.run(BubblewrapBackend(lab.settings(), "attack").check)
        except BackendUnavailable as error:
            return str(error)
        return ""
    try:
        with lab.api() as client:
            client.inspect_image(lab.IMAGE)
            runtimes = client.info().get("Runtimes") or {}
    except Exception as error:
        return f"no Docker daemon with the image {lab.IMAGE}: {error}"
    if name == "runsc" and "runsc" not in runtimes:
        return f"the Docker daemon knows no runtime runsc, but {', '.join(sorted(runtimes))}"
    return ""
