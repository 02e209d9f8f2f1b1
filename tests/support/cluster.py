"""A CockroachDB cluster on loopback whose nodes a test may kill, hang, drain and restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import trio

from tests.support.postgres import free_port

START_DEADLINE = 90.0
STOP_DEADLINE = 45.0
DATABASE = "continuum"


def find_cockroach() -> str | None:
    """The `cockroach` of COCKROACH_BIN, or the one on PATH."""
    return os.environ.get("COCKROACH_BIN") or shutil.which("cockroach")


@dataclass
class Node:
    """One node: its ports, its store, and its process while it has one. `starts` counts its processes."""

    number: int
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"postgresql://root@{self.address}/{DATABASE}?sslmode=disable"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"


class Cluster:
    """Insecure nodes with stores on disk, numbered from 1; database `continuum`, user root."""

    def __init__(self, binary: str, folder: Path, nodes: int = 3) -> None:
        self._binary = binary
        self.nodes = {number: Node(number, folder / f"node{number}") for number in range(1, nodes + 1)}

    @property
    def url(self) -> str:
        """All nodes, one chosen at random by each connection."""
        return self.url_through([node.port for node in self.nodes.values()])

    def url_through(self, ports: list[int]) -> str:
        """The same, reached by other ports on loopback."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        options = "sslmode=disable&load_balance_hosts=random&connect_timeout=3&tcp_user_timeout=5000"
        return f"postgresql://root@{hosts}/{DATABASE}?{options}"

    def running(self, number: int) -> bool:
        process = self.nodes[number].process
        return process is not None and process.poll() is None

    # -- what a test does to a node ----------------------------------------------------------------------------------

    async def kill(self, number: int) -> None:
        """kill -9, and wait until it is gone."""
        self._signal(number, signal.SIGKILL)
        await self._gone(number)

    async def start(self, number: int) -> None:
        """Start a node that does not run. Returns at once; see `ready`."""
        node = self.nodes[number]
        assert not self.running(number), f"node {number} runs already"
        node.folder.mkdir(exist_ok=True)
        join = ",".join(each.address for each in self.nodes.values())
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                [
                    self._binary,
                    "start",
                    "--insecure",
                    f"--listen-addr={node.address}",
                    "--http-addr=127.0.0.1:0",
                    f"--store={node.folder / 'store'}",
                    f"--join={join}",
                    "--cache=64MiB",
                    "--max-sql-memory=128MiB",
                ],
                cwd=node.folder,
                env={**os.environ, "COCKROACH_SKIP_ENABLING_DIAGNOSTIC_REPORTING": "true"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        node.starts += 1
        await trio.lowlevel.checkpoint()

    def pause(self, number: int) -> None:
        """SIGSTOP: it answers nothing any more, and its connections stay up."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT."""
        self._signal(number, signal.SIGCONT)

    async def drain(self, number: int) -> None:
        """SIGTERM, and wait until the node has handed over what it had and ended."""
        self._signal(number, signal.SIGTERM)
        await self._gone(number)

    async def restart(self, number: int) -> None:
        """Drain a node, start it again, and wait until it serves."""
        await self.drain(number)
        await self.start(number)
        await self.ready(number)

    async def ready(self, number: int, seconds: float = START_DEADLINE) -> None:
        """Wait until a node answers queries; fail with its log after so many seconds."""
        node = self.nodes[number]
        with trio.move_on_after(seconds):
            while not await self._answers(node, "defaultdb", "SELECT count(*) FROM system.namespace"):
                assert self.running(number), f"node {number} ended:\n{self._tail(node)}"
                await trio.sleep(0.1)
            return
        raise AssertionError(f"node {number} did not answer within {seconds} s:\n{self._tail(node)}")

    # -- the whole cluster -------------------------------------------------------------------------------------------

    async def up(self) -> None:
        """Start all nodes, make them one cluster, and create the database."""
        for number in self.nodes:
            await self.start(number)
        first = self.nodes[1]
        with trio.move_on_after(START_DEADLINE) as scope:
            while (await self._command("init", f"--host={first.address}")).returncode:
                assert self.running(1), self._tail(first)
                await trio.sleep(0.2)
        assert not scope.cancelled_caught, f"no cluster within {START_DEADLINE} s:\n{self._tail(first)}"
        for number in self.nodes:
            await self.ready(number)
        assert await self._answers(first, "defaultdb", f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
        assert await self._answers(first, "defaultdb", "SET CLUSTER SETTING kv.rangefeed.enabled = true")
        with trio.fail_after(START_DEADLINE):
            while not await self._answers(first, "defaultdb", FULLY_REPLICATED):
                await trio.sleep(0.2)

    def down(self) -> None:
        """End every node at once."""
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
        for node in self.nodes.values():
            if node.process is not None:
                node.process.wait(STOP_DEADLINE)

    def _signal(self, number: int, what: signal.Signals) -> None:
        process = self.nodes[number].process
        assert process is not None, f"node {number} does not run"
        assert process.poll() is None, f"node {number} has ended:\n{self._tail(self.nodes[number])}"
        process.send_signal(what)

    async def _gone(self, number: int) -> None:
        process = self.nodes[number].process
        assert process is not None
        with trio.fail_after(STOP_DEADLINE):
            while process.poll() is None:
                await trio.sleep(0.02)

    async def _command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        with trio.fail_after(START_DEADLINE):
            return await trio.run_process(
                [self._binary, *arguments, "--insecure"],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )

    async def _answers(self, node: Node, database: str, statement: str) -> bool:
        """Run a statement on one node; whether it worked, and said neither nothing nor false."""

        def ask() -> bool:
            url = f"postgresql://root@{node.address}/{database}?sslmode=disable"
            options = "-c statement_timeout=15s"
            with (
                suppress(psycopg.Error),
                psycopg.connect(url, connect_timeout=2, autocommit=True, options=options) as connection,
            ):
                cursor = connection.execute(statement.encode())
                return cursor.description is None or (cursor.fetchone() or (False,))[0] is not False
            return False

        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)

    def _tail(self, node: Node) -> str:
        return node.log.read_text(errors="replace")[-3000:] if node.log.exists() else "(no log)"


FULLY_REPLICATED = "SELECT min(array_length(replicas, 1)) >= 3 FROM [SHOW CLUSTER RANGES]"
"""Whether every range has its three replicas: only then does the cluster outlive any one node."""


@asynccontextmanager
async def start_cluster(binary: str, nodes: int = 3) -> AsyncIterator[Cluster]:
    """A cluster for the length of the block; its processes and stores are gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="ctm-roach-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(binary, Path(folder), nodes)
        try:
            await cluster.up()
            yield cluster
        finally:
            cluster.down()
