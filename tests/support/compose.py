"""The cluster of deploy/cockroach-compose.yml, as one sees it from outside."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import trio

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "cockroach-compose.yml"
NODES = {"roach1": 26257, "roach2": 26258, "roach3": 26259}
"""The nodes, and where their SQL is on loopback."""
COMMAND_DEADLINE = 120.0
BUILD_DEADLINE = 900.0
READY_DEADLINE = 90.0


class ComposeFailed(Exception):
    """A command that did not work, and what it said."""


def find_compose() -> list[str] | None:
    """`docker compose`, or what it was called before it was part of docker."""
    if shutil.which("docker"):
        probe = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False, timeout=30)
        if probe.returncode == 0:
            return ["docker", "compose"]
    old = shutil.which("docker-compose")
    return [old] if old else None


async def compose(*arguments: str, deadline: float = COMMAND_DEADLINE) -> bytes:
    """Run a command of compose on the cluster's file; return its output. Raises ComposeFailed."""
    program = await trio.to_thread.run_sync(find_compose)
    if program is None:
        raise ComposeFailed("no `docker compose`: install Docker's compose plugin, or Debian's docker-compose")
    command = [*program, "-f", str(FILE), *arguments]
    with trio.fail_after(deadline):
        done = await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise ComposeFailed(f"`{' '.join(command)}` ended with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


async def administrate(*statements: str, node: str = "roach1") -> None:
    """Run SQL as root, each statement by itself. Raises ComposeFailed."""
    said = [f"--execute={statement}" for statement in statements]
    await compose("exec", "-T", node, "cockroach", "sql", f"--host={node}", *said)


class ComposeNodes:
    """Nodes that a chaos run may break. certificates: a folder with those of the user `continuum`."""

    def __init__(self, certificates: Path) -> None:
        self.names = list(NODES)
        self._certificates = certificates

    def url(self, database: str, *names: str) -> str:
        """A database through these nodes, or through all of them, with TLS."""
        hosts = ",".join(f"127.0.0.1:{NODES[name]}" for name in names or NODES)
        return (
            f"postgresql://continuum@{hosts}/{database}?sslmode=verify-full&sslrootcert={self._certificates}/ca.crt"
            f"&sslcert={self._certificates}/client.continuum.crt&sslkey={self._certificates}/client.continuum.key"
            "&load_balance_hosts=random&connect_timeout=3"
        )

    async def kill(self, name: str) -> None:
        await compose("kill", name)

    async def start(self, name: str) -> None:
        await compose("start", name)
        with trio.fail_after(READY_DEADLINE):
            while not await trio.to_thread.run_sync(partial(_answers, self.url("defaultdb", name))):
                await trio.sleep(0.2)

    async def drain(self, name: str) -> None:
        await compose("stop", "--timeout", "60", name)

    async def pause(self, name: str) -> None:
        await compose("pause", name)

    async def resume(self, name: str) -> None:
        await compose("unpause", name)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2, autocommit=True, options="-c statement_timeout=5s") as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


@asynccontextmanager
async def compose_nodes() -> AsyncIterator[ComposeNodes]:
    """The nodes of the cluster that runs, and a copy of the worker's certificates for the length of the block."""
    archive = await compose(
        "run", "--rm", "--no-deps", "-T", "--entrypoint", "tar", "migrate", "-C", "/certs", "-c", "."
    )
    with TemporaryDirectory(prefix="continuum-certificates-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        for file in Path(folder).iterdir():
            file.chmod(0o600)  # libpq refuses a key that others may read
        yield ComposeNodes(Path(folder))
