"""A whole installation for end-to-end tests: a server of its own, a schema, and the means to look for leftovers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from continuum.config import Settings
from continuum.db import open_database
from continuum.db.protocol import Database
from continuum.sandbox.docker_owner import DATABASE_LABEL, WORKER_LABEL, Owner
from tests.support.postgres import PostgresServer
from tests.support.proxy import FaultProxy, fault_proxy


@dataclass
class Installation:
    """What a test needs of it: `database`, the queue at `url`, for producing and reading, `environment` for its workers."""

    server: PostgresServer
    url: str
    database: Database
    environment: dict[str, str]
    sandbox: str

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[tuple[FaultProxy, dict[str, str]]]:
        """A fault proxy in front of the server, and the variables of a worker that goes through it."""
        async with fault_proxy(self.server.port) as proxy:
            yield (
                proxy,
                self.environment | {"DATABASE_URL": self.url.replace(f":{self.server.port}/", f":{proxy.port}/")},
            )

    async def sandboxes(self) -> list[str]:
        """With Docker, the owner of each container of this installation's workers, running or not; with bubblewrap, every
        sandbox on this host whose worker is gone."""
        if self.sandbox != "docker":
            found = subprocess.run(["pgrep", "-x", "bwrap"], capture_output=True, text=True, check=False).stdout
            return [pid for pid in found.split() if not _descends_from_python(pid)]
        command = ["docker", "ps", "-a", "--filter", f"label={DATABASE_LABEL}={self._database_label()}"]
        command += ["--format", f'{{{{.Label "{WORKER_LABEL}"}}}}']
        return (await trio.run_process(command, capture_stdout=True)).stdout.decode().split()

    def _database_label(self) -> str:
        settings = Settings.model_validate({"database_url": self.environment["DATABASE_URL"]})
        return Owner.current(settings, "").database

    async def sandboxes_only_of_live_workers(self, seconds: float = 20) -> None:
        """Wait until every container belongs to a worker that the record calls alive."""
        dead: list[str] = []
        with trio.move_on_after(seconds):
            while True:
                live = {worker.id for worker in await self.database.workers() if worker.alive}
                dead = [owner for owner in await self.sandboxes() if owner not in live]
                if not dead:
                    return
                await trio.sleep(0.2)
        raise AssertionError(f"sandboxes of dead workers left after {seconds} s: {dead}")

    async def no_sandbox_left(self, seconds: float = 20) -> None:
        """Wait until no sandbox is left."""
        left: list[str] = []
        with trio.move_on_after(seconds):
            while left := await self.sandboxes():
                await trio.sleep(0.2)
            return
        raise AssertionError(f"sandboxes left after {seconds} s: {left}")


def _descends_from_python(pid: str) -> bool:
    """Whether a process is a worker's, or a test's; one that has ended meanwhile is nobody's concern."""
    try:
        while pid != "0":
            name, parent = re.findall(r"^(?:Name|PPid):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            if name.startswith(("python", "continuum")):
                return True
            pid = parent
    except FileNotFoundError:
        return True
    return False


@asynccontextmanager
async def installation(sandbox: str, server: PostgresServer, url: str) -> AsyncIterator[Installation]:
    """An installation on an empty queue. sandbox: `docker` or `bubblewrap`. url: of the queue, on `server`."""
    async with open_database(Settings.model_validate({"database_url": url})) as database:
        yield Installation(server, url, database, {"DATABASE_URL": url, "SANDBOX": sandbox, "EGRESS": "none"}, sandbox)
