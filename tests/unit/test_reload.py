"""Settings taken over while a worker runs: what changes, when, and what does not."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trio.testing import MockClock

from continuum import reload, systemd
from continuum.config import NAMED_FILE, ConfigurationError, Settings, load_settings, read_env_file
from continuum.db.memory import MemoryDatabase
from continuum.reload import RELOADABLE, Reloads
from continuum.sandbox.pool import open_pool
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import RunningWorker, worker

ROOT = Path(__file__).parents[2]
Entries = list[Any]


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a `.env` that counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    return tmp_path


@contextmanager
def said() -> Iterator[Entries]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def problems(entries: Entries) -> list[str]:
    return [entry["problem"] for entry in entries if entry["log_level"] == "error"]


# -- a whole worker, on the virtual clock ------------------------------------------------------------------------------------


async def until(holds: Any, seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.01)


async def running(w: RunningWorker, *scripts: str) -> list[int]:
    ids = await w.submit(*scripts)
    await until(lambda: w.backend.running == min(len(ids), w.state.slots))
    return ids


async def test_more_slots_claim_more_at_once(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, slots=2, polling_interval=3600) as w:
        ids = await running(w, *["sleep 20"] * 6)
        began = trio.current_time()
        await w.reload(slots=5, polling_interval=3600)
        await until(lambda: w.backend.running == 5)
        assert trio.current_time() - began < 1.5, "a cold start, and no poll"
        (told,) = await database.workers()
        assert (w.state.slots, told.slots) == (5, 5)
        await w.wait_for(*ids, status="completed")
    assert w.backend.most_running == 5
    assert w.backend.alive == 0


async def test_fewer_slots_let_what_runs_finish_and_claim_no_more_until_there_is_room(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=5) as w:
        await running(w, *["sleep 100"] * 5)
        waiting = await w.submit(*["sleep 10"] * 4)
        await w.reload(slots=2)
        w.backend.most_running = 0
        await trio.sleep(95)
        assert w.backend.running == 5
        await trio.sleep(10)
        assert w.backend.running == 2
        await until(lambda: w.backend.alive == 2)
        records = await w.wait_for(*waiting, status="completed")
        assert {record.attempt for record in records} == {1}
        assert w.backend.alive <= 2


async def test_slots_that_change_at_every_moment_lose_no_task(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, FakeBackend(cold_start=0.3), slots=3) as w:
        ids = await w.submit(*[f"sleep {0.1 + 0.07 * (number % 5)}" for number in range(200)], tenant="one")
        ids += await w.submit(*["sleep 0.2"] * 50, tenant="two")
        for number in range(120):
            await w.reload(
                slots=1 + number * 7 % 9,
                container_memory_mb=64 + number // 10,
                max_tasks_per_sandbox=number % 3,
            )
            await trio.sleep(0.11)
        records = await w.wait_for(*ids, status="completed")
        assert {record.attempt for record in records} == {1}
        assert w.backend.most_running <= 9
        w.reloads.settings.take_over(w.reloads.load(), [])
        await w.reload(slots=2)
        await until(lambda: w.backend.alive <= 2)
    assert w.backend.alive == 0


async def test_sandboxes_with_old_limits_run_nothing_more(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, slots=3) as w:
        first = await running(w, "sleep 5", "sleep 20", "sleep 20")
        await w.wait_for(first[0])
        assert w.backend.alive == 3
        old = {one.sandbox for one in w.state.running.values()}
        await w.reload(container_memory_mb=1024)
        await until(lambda: w.backend.closed == 1)
        await until(lambda: w.backend.started == 4)
        await w.wait_for(*first, status="completed")
        await until(lambda: w.backend.closed == 3)
        second = await w.submit(*["sleep 1"] * 3)
        await until(lambda: len(w.state.running) == 3)
        await until(lambda: all(one.sandbox for one in w.state.running.values()))
        assert not old & {one.sandbox for one in w.state.running.values()}
        await w.wait_for(*second)
        started = w.backend.started
        await w.reload(container_memory_mb=1024, task_timeout=7)
        await trio.sleep(10)
        assert w.backend.started == started, "nothing that bounds a sandbox has changed"


async def test_a_sandbox_whose_start_had_begun_with_old_limits_runs_nothing(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, FakeBackend(cold_start=10), slots=1) as w:
        (task,) = await w.submit("hello", tenant="one")
        await w.wait_for(task)
        (task,) = await w.submit("hello", tenant="two")
        await trio.sleep(5)
        await w.reload(slots=1, container_pids_limit=64)
        began = trio.current_time()
        await w.wait_for(task, status="completed")
        assert trio.current_time() - began > 10


async def test_limits_of_tasks_hold_for_those_that_begin_afterwards(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    async with worker(database, slots=1) as w:
        before, after = await w.submit("sleep 50", "sleep 50", max_attempts=1)
        await until(lambda: w.backend.running == 1)
        await w.reload(slots=1, task_timeout=20, output_limit=2048)
        (record,) = await w.wait_for(before)
        assert record.status == "completed"
        (record,) = await w.wait_for(after)
        assert record.status == "failed"
        assert "20 s" in str(record.last_error)
    assert [request.output_limit for request in w.backend.ran] == [1024 * 1024, 2048]


async def test_priorities_and_intervals_hold_at_once(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, min_priority=5, polling_interval=3600) as w:
        (low,) = await w.submit("hello", priority=1)
        await trio.sleep(60)
        assert (await w.record(low)).status == "pending"
        await w.reload(min_priority=1, polling_interval=3600)
        await w.wait_for(low, status="completed", seconds=2)


async def test_what_is_past_a_new_retention_is_deleted(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database) as w:
        (task,) = await w.submit("hello")
        await w.wait_for(task)
        await trio.sleep(1000)
        assert task in database.tasks
        await w.reload(retention_days=0.01)
        await trio.sleep(120)
        assert task not in database.tasks


async def test_a_new_grace_holds_for_the_next_shutdown(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, shutdown_grace=1000) as w:
        await running(w, "sleep 500")
        await w.reload(shutdown_grace=3)
        began = trio.current_time()
        w.shutdown.request()
        await w.stopped.wait()
        assert trio.current_time() - began < 4


async def test_a_shutdown_wins(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, slots=1) as w:
        ids = await running(w, "sleep 10", "sleep 10", "sleep 10")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.reload)
            await trio.lowlevel.checkpoint()
            w.shutdown.request()
        with said() as entries:
            await w.reload(slots=8)
        assert entries[0]["event"] == "settings are not reloaded: shutting down"
        await w.stopped.wait()
    assert w.state.slots == 1
    assert [(await w.record(task)).status for task in ids] == ["completed", "pending", "pending"]


async def test_it_needs_no_database(autojump_clock: MockClock, database: MemoryDatabase) -> None:
    async with worker(database, slots=1) as w:
        await until(lambda: w.backend.started == 1)
        database.unavailable = True
        await trio.sleep(60)
        await w.reload(slots=3)
        await until(lambda: w.state.slots == 3, 0.1)
        database.unavailable = False
        await running(w, *["sleep 10"] * 3)


async def test_one_that_comes_while_the_database_is_awaited_holds_from_the_start(
    autojump_clock: MockClock, database: MemoryDatabase
) -> None:
    database.unavailable = True
    async with worker(database, slots=1) as w:
        await trio.sleep(30)
        await w.reload(slots=3)
        database.unavailable = False
        await until(lambda: w.state.slots == 3)
        await running(w, *["sleep 10"] * 3)


change = st.tuples(st.integers(1, 5), st.integers(0, 3), st.booleans(), st.floats(0, 0.7))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["one", "two", None]), st.floats(0, 2), st.floats(0, 1)), max_size=30),
    st.lists(change, max_size=15),
)
def test_a_pool_that_changes_all_the_time_serves_everybody_and_ends_at_its_size(
    uses: list[tuple[str | None, float, float]], changes: list[tuple[int, int, bool, float]]
) -> None:
    backend = FakeBackend(cold_start=0.3)

    async def run() -> None:
        async with open_pool(backend, 3) as pool:
            async with trio.open_nursery() as nursery:

                async def use(tenant: str | None, after: float, seconds: float) -> None:
                    await trio.sleep(after)
                    with trio.fail_after(120):
                        async with pool.sandbox(tenant) as sandbox:
                            began = pool._generation
                            generations[sandbox.name] = generations.get(sandbox.name, began)
                            assert generations[sandbox.name] == began, "it was started with other limits"
                            await trio.sleep(seconds)

                generations: dict[str, int] = {}
                for one in uses:
                    nursery.start_soon(use, *one)
                for size, scripts, renew, pause in changes:
                    await trio.sleep(pause)
                    pool.resize(size, scripts)
                    if renew:
                        pool.renew()
            pool.resize(2, 0)
            await trio.sleep(5)
            assert pool.total == backend.alive <= 2
        assert backend.alive == 0

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("scripts", "renewed"), [(0, True), (1, False), (2, False)])
async def test_a_pool_that_has_shrunk_starts_nothing_more_than_it_may_keep(
    autojump_clock: MockClock, scripts: int, renewed: bool
) -> None:
    backend = FakeBackend()
    async with open_pool(backend, 6, scripts) as pool:

        async def use() -> None:
            async with pool.sandbox():
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(use)
            await trio.sleep(1.2)
            assert (pool.total, backend.running, pool.idle) == (6, 0, 0)
            pool.resize(2, scripts)
            if renewed:
                pool.renew()
        await trio.sleep(5)
        pool.remove_idle(0)
        await trio.sleep(5)
        assert pool.total == 0


# -- what is read, and what is said ------------------------------------------------------------------------------------------


def make_reloads(**fields: Any) -> Reloads:
    return Reloads(load_settings(), load_settings, lambda: None, **fields)


async def test_it_says_what_has_changed_and_what_needs_a_restart(folder: Path) -> None:
    (folder / ".env").write_text("SLOTS=2\nDB_PASSWORD=hunter2\nLOG_LEVEL=info\n")
    told: list[frozenset[str]] = []
    reloads = make_reloads(changed=told.append)
    (folder / ".env").write_text("SLOTS=3\nDB_PASSWORD=hunter3\nLOG_LEVEL=debug\nMIN_PRIORITY=1\n")
    with said() as entries:
        await reloads.reload()
    assert told == [{"slots", "log_level", "min_priority"}]
    changed, late = entries
    assert changed["changed"] == {"SLOTS": "2 -> 3", "LOG_LEVEL": "info -> debug", "MIN_PRIORITY": "0 -> 1"}
    assert late["settings"] == ["DB_PASSWORD"]
    assert "hunter" not in str(entries)
    assert (reloads.settings.slots, reloads.settings.db_password.get_secret_value()) == (3, "hunter2")
    with said() as entries:
        await reloads.reload()
    assert [entry.get("changed") for entry in entries] == [{}, None], "told again, until it is restarted"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"SLOTS=0\nMIN_PRIORITY=low\n",
            ["SLOTS='0': use a whole number, at least 1 and at most 1024", "MIN_PRIORITY"],
        ),
        (b"SLOTS=4\nMIN_PRIORITY=9\nMAX_PRIORITY=1\n", ["MAX_PRIORITY=1 is below MIN_PRIORITY=9"]),
        (b"SLOTS 4\nTASK_TIMEOUT=5\n", [".env line 1 is not NAME=value"]),
        (b"SLOTS=4\nDB_PASSWORD='hunter2\n", [".env line 2 is not NAME=value"]),
        (b"SLOTS=\xff\xfe\n", [".env cannot be read"]),
        (None, ["the file of settings is gone"]),
    ],
)
async def test_a_file_with_anything_wrong_changes_nothing(
    folder: Path, content: bytes | None, expected: list[str]
) -> None:
    (folder / ".env").write_text("SLOTS=7\nTASK_TIMEOUT=1h\n")
    reloads = make_reloads()
    if content is None:
        (folder / ".env").unlink()
    else:
        (folder / ".env").write_bytes(content)
    with said() as entries:
        await reloads.reload()
    assert len(problems(entries)) == len(expected) == len(entries)
    assert all(line.startswith(start) for line, start in zip(problems(entries), expected, strict=True))
    assert "hunter" not in str(entries)
    assert (reloads.settings.slots, reloads.settings.task_timeout) == (7, 3600)
    (folder / ".env").write_text("SLOTS=9\n")
    await reloads.reload()
    assert reloads.settings.slots == 9


async def test_a_folder_where_the_file_was_is_told(folder: Path) -> None:
    (folder / ".env").write_text("SLOTS=7\n")
    reloads = make_reloads()
    (folder / ".env").unlink()
    (folder / ".env").mkdir()
    with said() as entries:
        await reloads.reload()
    assert problems(entries)
    assert reloads.settings.slots == 7


async def test_a_process_without_a_file_reloads_to_no_effect(folder: Path) -> None:
    reloads = make_reloads()
    with said() as entries:
        await reloads.reload()
    assert [entry["changed"] for entry in entries] == [{}]


async def test_the_environment_wins_over_dotenv_and_that_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOTS", "2")
    (folder / ".env").write_text("SLOTS=2\nTASK_TIMEOUT=10\n")
    reloads = make_reloads()
    (folder / ".env").write_text("SLOTS=8\nTASK_TIMEOUT=20\n")
    with said() as entries:
        await reloads.reload()
    assert (reloads.settings.slots, reloads.settings.task_timeout) == (2, 20)
    assert entries[0]["settings"] == ["SLOTS"]
    with said() as entries:
        await reloads.reload()
    assert len(entries) == 1, "told once for each change"


async def test_a_named_file_wins_over_the_environment_at_a_start_and_at_a_reload(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOTS", "2")
    monkeypatch.setenv("TASK_TIMEOUT", "30")
    monkeypatch.setenv(NAMED_FILE, str(folder / "limits"))
    (folder / ".env").write_text("OUTPUT_LIMIT=4096\n")
    (folder / "limits").write_text("SLOTS=4\nTASK_TIMEOUT=\n")
    reloads = make_reloads()
    found = reloads.settings
    assert (found.slots, found.task_timeout, found.output_limit) == (4, 30, 1024 * 1024), "and .env is not read"
    (folder / "limits").write_text("SLOTS=8\n")
    with said() as entries:
        await reloads.reload()
    assert len(entries) == 1
    assert load_settings() == reloads.settings, "a restart does not undo it"
    (folder / "limits").unlink()
    with pytest.raises(ConfigurationError, match="limits cannot be read"):
        load_settings()
    with said() as entries:
        await reloads.reload()
    assert "limits cannot be read" in problems(entries)[0]
    assert reloads.settings.slots == 8


async def test_a_disk_that_hangs_holds_one_thread_and_nothing_else(
    folder: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads = make_reloads()
    hung = 0
    began, healed = threading.Event(), threading.Event()

    def hang() -> None:
        nonlocal hung
        hung += 1
        began.set()
        healed.wait(60)

    monkeypatch.setattr(reload, "read_env_file", hang)
    with said() as entries:
        for _ in range(50):
            await reloads.reload()
    assert began.wait(60), "virtual time may pass before the thread has begun"
    assert (problems(entries), hung) == (["not read within 10 s"] * 50, 1)
    healed.set()


def test_what_can_be_read_only_once_is_no_file_of_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe")
    monkeypatch.setenv(NAMED_FILE, str(folder / "pipe"))
    with pytest.raises(ConfigurationError, match="pipe cannot be read: it is no regular file"):
        load_settings()


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.tuples(st.sampled_from([name.upper() for name in Settings.model_fields]), st.text(max_size=20)),
            max_size=4,
        ).map(lambda pairs: "\n".join(f"{name}={value}" for name, value in pairs).encode("utf-8", "surrogatepass")),
    )
)
def test_whatever_is_in_the_file_is_settings_or_a_complaint(folder: Path, content: bytes) -> None:
    (folder / ".env").write_bytes(content)
    try:
        read_env_file()
        load_settings()
    except ConfigurationError:
        pass


def test_the_documentation_names_what_can_be_reloaded() -> None:
    told = (ROOT / "docs/how-to/deployment.md").read_text().split("## Changing limits")[1].split("\n## ")[0]
    assert {name.upper() for name in RELOADABLE} == {
        name for name in (field.upper() for field in Settings.model_fields) if f"`{name}`" in told
    }


# -- signals -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _survives() -> Iterator[None]:
    """What the command does before anything else: signals that nobody has taken when the service ends are not the end."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_survives")
async def test_a_storm_of_signals_is_a_few_reloads_of_which_the_last_sees_the_last_change(folder: Path) -> None:
    (folder / ".env").write_text("SLOTS=1\n")
    reads = 0

    def load() -> Settings:
        nonlocal reads
        reads += 1
        return load_settings()

    reloads = Reloads(load_settings(), load, lambda: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(reloads.run)
        for number in range(300):
            (folder / "next").write_text(f"SLOTS={2 + number}\n")
            (folder / "next").rename(folder / ".env")
            os.kill(os.getpid(), signal.SIGHUP)
            await trio.lowlevel.checkpoint()
        with trio.fail_after(10):
            while reloads.settings.slots != 301:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert reads < 100


async def test_systemd_is_told_of_a_reload(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(folder / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        await make_reloads().reload()
        began, ended = receiver.recv(200).decode(), receiver.recv(200).decode()
    assert began.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert ended == "READY=1"


def test_systemd_may_be_absent_or_deaf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.tell_ready()
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "nobody"))
    systemd.tell_status("all\nis well")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_interval() is None
