"""How a worker learns of work on PostgreSQL: at once while it waits for work, and at nobody's cost while it is busy."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
import trio

from continuum.db import notifications
from continuum.db.errors import DatabaseUnavailable
from continuum.db.notifications import ALL_TELL, ASK, ASKING, QUEUES
from continuum.db.protocol import Database
from continuum.model import NewTask, Wakeup
from tests.support.listener import RecordingListener, listening
from tests.support.postgres import PostgresServer

HELLO = NewTask(code="print('hello')")
INSERT = "INSERT INTO tasks (name) VALUES ('n')"
INSERT_500 = "INSERT INTO tasks (name, status) SELECT 'n', 'pending' FROM generate_series(1, 500)"
AT_ONCE = 1.0
"""Seconds within which an idle worker must hear: far more than it takes, far less than any poll."""


async def notifications_of(url: str, statement: str, *, asking: bool = True) -> list[str]:
    """The payloads of all notifications that one committed statement brings. asking: whether the listener asks for them."""

    def listen() -> list[str]:
        with psycopg.connect(url, autocommit=True) as listener, psycopg.connect(url, autocommit=True) as writer:
            listener.execute("LISTEN tasks_updated")
            if asking:
                listener.execute(ASK.encode())
            writer.execute(statement.encode())
            writer.execute("NOTIFY tasks_updated, 'end of test'")
            seen: list[str] = []
            for notification in listener.notifies(timeout=10):
                if notification.payload == "end of test":
                    return seen
                seen.append(notification.payload)
            raise AssertionError("no notification at all")

    return await trio.to_thread.run_sync(listen)


@pytest.mark.parametrize(
    ("asking", "before", "statement", "expected"),
    [
        (True, "", INSERT_500, ["pending"]),
        (True, "", "INSERT INTO tasks (name, status) VALUES ('n', 'completed')", []),
        (True, "", "INSERT INTO tasks (name, run_at) VALUES ('n', now() + interval '1 hour')", ["scheduled"]),
        (True, INSERT_500, "UPDATE tasks SET status = 'processing'", []),
        (True, INSERT_500.replace("pending", "processing"), "UPDATE tasks SET status = 'completed'", []),
        (True, INSERT_500.replace("pending", "processing"), "UPDATE tasks SET status = 'pending'", ["pending"]),
        (True, INSERT_500, "UPDATE tasks SET name = 'm'", []),
        (True, INSERT_500, "UPDATE tasks SET run_at = now() + interval '1 hour'", ["scheduled"]),
        (True, INSERT_500.replace("pending", "processing"), "UPDATE tasks SET cancel_requested = true", ["cancel"]),
        (False, "", INSERT_500, []),
        (False, INSERT_500.replace("pending", "processing"), "UPDATE tasks SET status = 'pending'", []),
        (False, "", "INSERT INTO tasks (name, run_at) VALUES ('n', now() + interval '1 hour')", ["scheduled"]),
        (False, INSERT_500.replace("pending", "processing"), "UPDATE tasks SET cancel_requested = true", ["cancel"]),
    ],
)
async def test_a_statement_notifies_once_and_only_of_what_concerns_a_worker_and_of_work_only_who_asks(
    postgres: Database, empty_postgres: str, asking: bool, before: str, statement: str, expected: list[str]
) -> None:
    if before:
        await notifications_of(empty_postgres, before)
    assert await notifications_of(empty_postgres, statement, asking=asking) == expected


async def test_a_producer_needs_no_search_path_and_no_right_but_to_write(
    postgres: Database, empty_postgres: str
) -> None:
    with connect(empty_postgres) as owner, connect(empty_postgres) as worker:
        worker.execute(ASK.encode())
        owner.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM public")
        owner.execute("DROP ROLE IF EXISTS producer")
        owner.execute("CREATE ROLE producer")
        owner.execute("GRANT INSERT, SELECT, UPDATE ON tasks TO producer")
        owner.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO producer")
        try:
            owner.execute("SET ROLE producer; SET search_path = ''")
            owner.execute("INSERT INTO public.tasks (name, status) VALUES ('n', 'processing')")
            owner.execute("INSERT INTO public.tasks (name) VALUES ('n')")
            owner.execute("INSERT INTO public.tasks (name, run_at) VALUES ('n', now() + interval '1 hour')")
            owner.execute("UPDATE public.tasks SET status = 'pending' WHERE status = 'processing'")
        finally:
            owner.execute("RESET ROLE; RESET search_path; DROP OWNED BY producer; DROP ROLE producer")


@pytest.mark.parametrize("asking", [True, False])
async def test_a_producer_keeps_nobody_from_asking(postgres: Database, empty_postgres: str, asking: bool) -> None:
    mine = "SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    with psycopg.connect(empty_postgres) as producer, connect(empty_postgres) as worker:
        if asking:
            worker.execute(ASK.encode())
        producer.execute(INSERT)
        assert producer.execute(mine).fetchall() == [("ShareLock",)]
        assert worker.execute(ASK.encode()).fetchall() == [(True,)]
        assert worker.execute(ALL_TELL.encode()).fetchall() == [(False,)]
        producer.commit()
        assert producer.execute(mine).fetchall() == []
        assert worker.execute(ALL_TELL.encode()).fetchall() == [(True,)]


async def test_a_listener_learns_of_work_schedules_and_cancellations_at_once(postgres: Database) -> None:
    async with listening(postgres) as listener:
        for action, expected in (
            (lambda: postgres.submit([HELLO]), Wakeup.PENDING),
            (lambda: postgres.claim("one", 1, lease=30), None),
            (lambda: postgres.cancel(1), Wakeup.CANCEL),
        ):
            await action()
            if expected is not None:
                assert await listener.woken(1) is expected


async def test_a_listener_whose_connection_breaks_says_so_and_another_one_works(
    postgres: Database, empty_postgres: str
) -> None:
    def end_listeners() -> None:
        with connect(empty_postgres) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
            )

    async with listening(postgres) as listener:
        await trio.to_thread.run_sync(end_listeners)
        with pytest.raises(DatabaseUnavailable):
            await listener.woken()
    async with listening(postgres) as listener:
        await postgres.submit([HELLO])
        assert await listener.woken(1) is Wakeup.PENDING


# -- asking, and not asking any more ------------------------------------------------------------------------------------------


async def test_work_of_a_transaction_that_found_nobody_asking_is_found_once_it_commits(
    postgres: Database, empty_postgres: str
) -> None:
    with psycopg.connect(empty_postgres) as silent:
        silent.execute(INSERT)
        async with listening(postgres) as listener:
            await trio.sleep(0.5)
            assert await postgres.claim("one", 1, lease=30) == []
            silent.commit()
            listener.forget()
            await listener.woken(AT_ONCE, of=Wakeup.PENDING)
            assert len(await postgres.claim("one", 1, lease=30)) == 1
            # There is none any more: it is told of the next, and looks no more by the clock.
            await until_asking(empty_postgres, listener)
            listener.forget()
            silent.execute(INSERT)
            silent.commit()
            await listener.woken(AT_ONCE, of=Wakeup.PENDING)


async def test_a_worker_that_producers_queue_to_tell_lets_them_keep_silent_until_it_waits_for_work(
    postgres: Database, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "QUEUES", "SELECT true")
    async with listening(postgres, saturated=True) as listener:
        with connect(empty_postgres) as producer:
            with trio.fail_after(5):
                while held(producer):
                    await trio.to_thread.run_sync(producer.execute, INSERT)
        # It is busy: as many as like insert, and nobody is told. Nor does it look, without a slot.
        assert await notifications_of(empty_postgres, INSERT_500, asking=False) == []
        await postgres.cancel(1)
        assert await postgres.claim("one", 10, lease=30)
        with connect(empty_postgres) as observer:
            assert not held(observer)
            # It is not any more: it looks, finds less than it wants, then nothing, and asks.
            with trio.fail_after(5):
                while not held(observer):
                    await listener.woken(AT_ONCE, of=Wakeup.PENDING)
                    await postgres.claim("one", 1000, lease=30)
        await until_asking(empty_postgres, listener)
        listener.forget()
        await postgres.submit([HELLO])
        await listener.woken(AT_ONCE, of=Wakeup.PENDING)


async def test_a_busy_worker_is_told_of_cancellations(
    postgres: Database, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "QUEUES", "SELECT true")
    async with listening(postgres) as listener:
        with connect(empty_postgres) as producer:
            with trio.fail_after(5):
                while held(producer):
                    await trio.to_thread.run_sync(producer.execute, INSERT)
        (task,) = await postgres.claim("one", 1, lease=30)
        await postgres.cancel(task.id)
        await listener.woken(AT_ONCE, of=Wakeup.CANCEL)


async def test_producers_that_queue_to_notify_are_seen(server: PostgresServer) -> None:
    def producer() -> None:
        with connect(server.url) as connection:
            connection.execute("INSERT INTO anything SELECT 1 FROM pg_notify('tasks_updated', '')")

    with connect(server.url) as connection:
        connection.execute("CREATE TABLE anything (n int)")
        assert connection.execute(QUEUES.encode()).fetchall() == [(False,)]
        # Every commit waits for a standby that does not exist.
        await configure(connection, "nobody")
        try:
            threads = [threading.Thread(target=producer) for _ in range(3)]
            for thread in threads:
                thread.start()
            with trio.fail_after(5):
                while connection.execute(QUEUES.encode()).fetchall() == [(False,)]:
                    await trio.sleep(0.01)
        finally:
            await configure(connection, "")
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
        assert connection.execute(QUEUES.encode()).fetchall() == [(False,)]


async def test_no_work_is_missed_around_the_moment_in_which_a_worker_begins_to_ask(
    postgres: Database, empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks make a worker that never polls cease asking; a third one comes about when it asks again."""
    monkeypatch.setattr(notifications, "QUEUES", "SELECT true")
    monkeypatch.setattr(notifications, "OFTEN", 2)
    chance = random.Random(7)
    claimed: set[int] = set()

    async def work(listener: RecordingListener) -> None:
        while True:
            await listener.woken(30, of=Wakeup.PENDING)
            listener.forget()
            while tasks := await postgres.claim("one", 3, lease=30):
                claimed.update(task.id for task in tasks)
                if len(tasks) < 3:
                    break

    def produce() -> int:
        for _ in range(2):
            producer.execute(INSERT)
            producer.commit()
        time.sleep(chance.uniform(0, 0.12))  # so that it meets each step on the worker's way to asking again
        found = producer.execute(f"{INSERT} RETURNING id".encode()).fetchone()
        assert found is not None
        time.sleep(chance.uniform(0, 0.03))
        producer.commit()
        return int(found[0])

    async with listening(postgres) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(work, listener)
        with psycopg.connect(empty_postgres) as producer:
            for number in range(60):
                task = await trio.to_thread.run_sync(produce)
                with trio.move_on_after(AT_ONCE):
                    while task not in claimed:
                        await trio.sleep(0.005)
                assert task in claimed, f"task {number} was missed"
        nursery.cancel_scope.cancel()


@contextmanager
def connect(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def held(connection: psycopg.Connection) -> int:
    """How many ask."""
    found = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND objid = %s "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [ASKING % 2**32],
    ).fetchone()
    assert found is not None
    return int(found[0])


async def until_asking(url: str, listener: RecordingListener) -> None:
    """Wait until a listener asks and has looked for the last time by the clock."""
    with connect(url) as connection, trio.fail_after(5):
        while not held(connection):
            await trio.sleep(0.01)
    with trio.fail_after(5), suppress(trio.TooSlowError):
        while True:
            await listener.woken(2 * notifications.LONGEST_LOOK, of=Wakeup.PENDING)


async def configure(connection: psycopg.Connection, standby: str) -> None:
    connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'".encode())
    connection.execute("SELECT pg_reload_conf()")
    with trio.fail_after(5):
        while connection.execute("SHOW synchronous_standby_names").fetchall() != [(standby,)]:
            await trio.sleep(0.01)
