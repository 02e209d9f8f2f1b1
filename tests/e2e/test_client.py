"""The client against a real database; a worker's part is played by the test, so that it can stop wherever it likes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import continuum
from continuum.client import tasks as tasks_module
from continuum.client import trio_client
from continuum.client.logs import what_follows
from continuum.config import Settings
from continuum.db.errors import DatabaseUnavailable, InvalidTask, SchemaMismatch
from continuum.db.protocol import Database
from continuum.model import Cancellation, Completion, NewTask, PartialOutput, Status, Stream
from tests.support.postgres import PostgresServer, free_port
from tests.support.proxy import Fault, fault_proxy

WORKER = "the test"
DEADLINE = 20.0


def settings(url: str) -> Settings:
    return Settings.model_validate({"database_url": url})


@pytest.fixture
async def client(url: str) -> AsyncIterator[continuum.Client]:
    async with continuum.Client(settings(url)) as opened:
        yield opened


def completion(task_id: int, attempt: int = 1, **values: object) -> Completion:
    fields: dict[str, object] = {
        "status": Status.COMPLETED, "exit_code": 0, "output": "done\n", "error_output": "", "last_error": None,
    }  # fmt: skip
    return Completion(task_id=task_id, attempt=attempt, **fields | values)  # type: ignore[arg-type]


async def work(database: Database, limit: int = 10_000) -> None:
    """Claim what is there and complete it."""
    tasks = await database.claim(WORKER, limit, lease=30)
    await database.complete(WORKER, [completion(task.id, task.attempt) for task in tasks])


# -- submitting ------------------------------------------------------------------------------------------------------


async def test_what_is_submitted_is_what_a_worker_gets(client: continuum.Client) -> None:
    task_id = await client.submit(
        "print(payload)", {"ä": [1, None, "☃"]}, name="one", priority=3, max_attempts=7, timeout=2.5, tenant="acme"
    )
    (task,) = await client.database.claim(WORKER, 5, lease=30)
    assert (task.id, task.code, task.name, task.priority) == (task_id, "print(payload)", "one", 3)
    assert (task.max_attempts, task.timeout, task.tenant) == (7, 2.5, "acme")
    assert json.loads(task.payload) == {"ä": [1, None, "☃"]}


async def test_a_script_may_be_given_as_the_path_of_its_file(client: continuum.Client, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('äöü')", encoding="utf-8")
    await client.submit(script)
    (task,) = await client.database.claim(WORKER, 5, lease=30)
    assert task.code == "print('äöü')"
    with pytest.raises(FileNotFoundError):
        await client.submit(tmp_path / "missing.py")


async def test_no_payload_is_null_and_so_is_none(client: continuum.Client) -> None:
    ids = [await client.submit("pass"), await client.submit("pass", None), await client.submit("pass", 0)]
    assert [record.payload for record in await client.fetch_many(ids)] == [None, "null", "0"]


@pytest.mark.parametrize(
    ("payload", "values", "message"),
    [
        ({1, 2}, {}, "payload is not JSON: Object of type set is not JSON serializable"),
        (float("nan"), {}, "payload is not JSON: Out of range float values are not JSON compliant"),
        ("a\0b", {}, "payload holds the escape"),
        ("\ud800", {}, "payload holds a lone surrogate"),
        ("x" * (64 * 1024 * 1024), {}, "payload has 67108866 characters; at most 67108864 are allowed"),
        (None, {"name": "a\0b"}, "name holds a NUL character at position 1"),
        (None, {"name": 3}, "name is of type int; use a text"),
        (None, {"description": "\udfff"}, "description holds a lone surrogate"),
        (None, {"priority": 2**31}, "priority 2147483648 does not fit an INTEGER column"),
        (None, {"priority": "high"}, "priority is of type str; use a whole number"),
        (None, {"max_attempts": 0}, "max_attempts 0 is out of range"),
        (None, {"timeout": -1}, "timeout -1 is out of range"),
        (None, {"timeout": "soon"}, "timeout is of type str; use a number"),
        (None, {"tenant": "x" * 300}, "tenant has 300 characters; at most 255 are allowed"),
        (None, {"idempotency_key": "x" * 300}, "idempotency_key has 300 characters"),
        (None, {"code_id": "00000000-0000-0000-0000-000000000000"}, "give code or code_id, not both"),
    ],
)
async def test_a_task_that_cannot_be_is_refused_with_the_name_of_its_field(
    client: continuum.Client, payload: object, values: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidTask, match=message.replace("(", r"\(")):
        await client.submit("pass", payload, **values)  # type: ignore[arg-type]
    assert (await client.statistics()).total == 0


async def test_a_payload_that_is_no_json_text_is_refused_by_the_database_in_one_line(client: continuum.Client) -> None:
    with pytest.raises(InvalidTask, match="the database refused a task: invalid input syntax for type json") as caught:
        await client.submit_many([NewTask(code="pass", payload="{nonsense")])
    assert "\n" not in str(caught.value)


async def test_an_idempotency_key_yields_the_first_task_again(client: continuum.Client) -> None:
    first = await client.submit("pass", 1, idempotency_key="order 7")
    assert await client.submit("pass", 2, idempotency_key="order 7") == first
    assert await client.submit("pass", 2, idempotency_key="order 7", tenant="other") != first


async def test_many_tasks_go_in_batches_and_keep_their_order(
    client: continuum.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "SUBMIT_BATCH", 100)
    monkeypatch.setattr(trio_client, "FETCH_BATCH", 100)
    ids = await client.submit_many([continuum.new_task("pass", number) for number in range(1050)])
    assert [record.payload for record in await client.fetch_many(ids)] == [str(number) for number in range(1050)]


def test_batches_are_limited_in_number_and_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "SUBMIT_BATCH", 3)
    monkeypatch.setattr(tasks_module, "SUBMIT_SIZE", 100)
    tasks = [NewTask(code="x" * size) for size in (10, 10, 10, 10, 95, 200, 1, 1)]
    sizes = [[len(task.code or "") for task in batch] for batch in tasks_module.batches_of(tasks)]
    assert sizes == [[10, 10, 10], [10], [95], [200], [1, 1]]


async def test_the_current_trace_goes_on_in_the_task(client: continuum.Client) -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        task_id = await client.submit("pass")
    traced = f"{span.get_span_context().trace_id:032x}"
    assert (await client.fetch(task_id)).traceparent is not None
    assert traced in ((await client.fetch(task_id)).traceparent or "")
    given = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    with tracer.start_as_current_span("request"):
        assert (await client.fetch(await client.submit("pass", traceparent=given))).traceparent == given
    assert not trace.get_current_span().get_span_context().is_valid
    assert (await client.fetch(await client.submit("pass"))).traceparent is None


# -- waiting and reading ---------------------------------------------------------------------------------------------


async def test_waiting_ends_when_the_task_does(client: continuum.Client) -> None:
    task_id = await client.submit("pass")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, client.database)
        record = await client.wait(task_id, DEADLINE)
    assert (record.id, record.status, record.output) == (task_id, Status.COMPLETED, "done\n")


async def test_many_are_waited_for_in_few_questions(client: continuum.Client) -> None:
    ids = await client.submit_many([NewTask(code="pass")] * 800)
    progress: list[int] = []
    asked = 0
    still_open = client.database.still_open

    async def counted(task_ids: list[int]) -> frozenset[int]:
        nonlocal asked
        asked += 1
        return await still_open(task_ids)

    client.database.still_open = counted  # type: ignore[method-assign,assignment]
    async with trio.open_nursery() as nursery:

        async def work_in_steps() -> None:
            for _ in range(8):
                await work(client.database, 100)

        nursery.start_soon(work_in_steps)
        records = await client.wait_many([*ids, ids[0]], DEADLINE, progress.append)
    assert [record.id for record in records] == [*ids, ids[0]]
    assert progress == sorted(set(progress))
    assert progress[-1] == 800
    assert asked < 200


async def test_the_time_to_wait_is_limited(client: continuum.Client) -> None:
    ids = await client.submit_many([NewTask(code="pass")] * 3)
    await work(client.database, 1)
    began = trio.current_time()
    with pytest.raises(continuum.WaitTimeout, match=r"2 of 3 tasks had not ended in 0\.3 s"):
        await client.wait_many(ids, 0.3)
    assert trio.current_time() - began < 2


async def test_nothing_to_wait_for_is_nothing(client: continuum.Client) -> None:
    assert await client.wait_many([]) == []
    assert await client.submit_many([]) == []


async def test_a_task_that_does_not_exist_is_told_by_its_number(client: continuum.Client) -> None:
    for call in (client.fetch, client.wait, client.cancel):
        with pytest.raises(continuum.TaskNotFound, match="there is no task 987654"):
            await call(987654)
    with pytest.raises(continuum.TaskNotFound):
        async for _ in client.logs(987654):
            pass


async def test_a_pending_task_is_cancelled_and_a_running_one_asked_to_stop(client: continuum.Client) -> None:
    running, pending = await client.submit_many([NewTask(code="pass")] * 2)
    await client.database.claim(WORKER, 1, lease=30)
    assert await client.cancel(pending) is Cancellation.CANCELLED
    assert await client.cancel(running) is Cancellation.REQUESTED
    assert await client.cancel(pending) is Cancellation.FINISHED
    assert (await client.wait(pending)).status == Status.CANCELLED


# -- logs ------------------------------------------------------------------------------------------------------------


async def test_output_is_followed_as_it_grows_until_the_end(client: continuum.Client) -> None:
    task_id = await client.submit("pass", max_attempts=2)
    pieces: list[tuple[Stream, str]] = []
    database = client.database

    async def until(number: int) -> None:
        with trio.fail_after(DEADLINE):
            while len(pieces) < number:
                await trio.sleep(0.01)

    async def play() -> None:
        (first,) = await database.claim(WORKER, 1, lease=30)
        await database.progress(WORKER, [PartialOutput(task_id, first.attempt, "one\n", "")])
        await until(1)
        await database.progress(WORKER, [PartialOutput(task_id, first.attempt, "one\ntwo\n", "oh\n")])
        await until(3)
        again = completion(task_id, first.attempt, status=Status.PENDING, retry_in=0.0, output="one\ntwo\n")
        await database.complete(WORKER, [again])
        await database.promote()
        (second,) = await database.claim(WORKER, 1, lease=30)
        await database.progress(WORKER, [PartialOutput(task_id, second.attempt, "one\n", "")])
        await until(4)
        await database.complete(WORKER, [completion(task_id, second.attempt, output="one\n[cut]")])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        with trio.fail_after(DEADLINE):
            async for piece in client.logs(task_id):
                pieces.append(piece)  # noqa: PERF401 - watched while it grows
    out, err = Stream.OUTPUT, Stream.ERROR
    assert pieces == [(out, "one\n"), (out, "two\n"), (err, "oh\n"), (out, "one\n"), (out, "[cut]")]


async def test_without_following_there_is_what_there_is_now(client: continuum.Client) -> None:
    task_id = await client.submit("pass")
    assert [piece async for piece in client.logs(task_id, follow=False)] == []
    await work(client.database)
    assert [piece async for piece in client.logs(task_id, follow=False)] == [(Stream.OUTPUT, "done\n")]


async def test_following_may_be_left_before_the_end(client: continuum.Client) -> None:
    task_id = await client.submit("pass")
    await client.database.claim(WORKER, 1, lease=30)
    await client.database.progress(WORKER, [PartialOutput(task_id, 1, "one\n", "")])
    async for piece in client.logs(task_id):
        assert piece == (Stream.OUTPUT, "one\n")
        break


@pytest.mark.parametrize(
    ("shown", "text", "new"),
    [
        ("", "abc", "abc"),
        ("ab", "abc", "c"),
        ("abc", "abc", ""),
        ("abX", "abcd", "cd"),
        ("abcd", "ab", ""),
        ("x", "", ""),
    ],
)
def test_what_follows_is_what_was_not_shown(shown: str, text: str, new: str) -> None:
    assert what_follows(shown, text) == new


# -- when the database is not well -----------------------------------------------------------------------------------


async def test_no_database_is_told_at_once() -> None:
    url = f"postgresql://nobody:hunter2@127.0.0.1:{free_port()}/continuum"
    async with continuum.connect(database_url=url) as client:
        with trio.fail_after(8), pytest.raises(DatabaseUnavailable, match="refused") as caught:
            await client.wait(1)
    assert "hunter2" not in str(caught.value)


async def test_a_missing_schema_names_the_command_that_makes_it(empty_url: str) -> None:
    async with continuum.Client(settings(empty_url)) as client:
        with pytest.raises(SchemaMismatch, match="run `continuum migrate`"):
            await client.submit("pass")


async def test_waiting_goes_on_through_an_outage(url: str, shared_server: PostgresServer) -> None:
    async with fault_proxy(shared_server.port) as proxy:
        through = url.replace(str(shared_server.port), str(proxy.port))
        async with continuum.Client(settings(url)) as direct, continuum.Client(settings(through)) as client:
            task_id = await client.submit("pass")
            async with trio.open_nursery() as nursery:

                async def break_and_heal() -> None:
                    proxy.set(Fault.REFUSE)
                    await work(direct.database)
                    refused = proxy.connections + 2
                    with trio.fail_after(DEADLINE):
                        while proxy.connections < refused:
                            await trio.sleep(0.02)
                    proxy.set(Fault.NONE)

                answered = trio.Event()
                still_open = client.database.still_open

                async def told(task_ids: list[int]) -> frozenset[int]:
                    result = await still_open(task_ids)
                    if not answered.is_set():
                        answered.set()
                        nursery.start_soon(break_and_heal)
                    return result

                client.database.still_open = told  # type: ignore[method-assign,assignment]
                assert (await client.wait(task_id, DEADLINE)).status == Status.COMPLETED


async def test_a_client_that_is_not_open_says_how_to_open_it(url: str) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await continuum.Client(settings(url)).submit("pass")


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, continuum; assert not {'trio', 'psycopg', 'pydantic'} & set(sys.modules);"
        "continuum.Client; assert 'trio' in sys.modules; assert sorted(continuum.__all__) == sorted(set(continuum.__all__));"
        "[getattr(continuum, name) for name in continuum.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = continuum.nonsense


# -- the blocking twin -----------------------------------------------------------------------------------------------


def worked_by(url: str) -> threading.Thread:
    """A thread that plays the worker once."""

    async def play() -> None:
        async with continuum.Client(settings(url)) as client:
            with trio.fail_after(DEADLINE):
                while not (tasks := await client.database.claim(WORKER, 10, lease=30)):
                    await trio.sleep(0.01)
            await client.database.complete(WORKER, [completion(task.id) for task in tasks])

    thread = threading.Thread(target=trio.run, args=(play,))
    thread.start()
    return thread


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("continuum")]


def test_the_blocking_client_does_the_same_without_trio(url: str) -> None:
    with continuum.BlockingClient(settings(url)) as client:
        task_id = client.submit("pass", payload={"order": 42})
        worker = worked_by(url)
        record = client.wait(task_id, seconds=DEADLINE)
        assert (record.status, record.output) == ("completed", "done\n")
        assert list(client.logs(task_id)) == [(Stream.OUTPUT, "done\n")]
        more = client.submit_many([continuum.new_task("pass")] * 3)
        assert client.cancel(more[0]) is Cancellation.CANCELLED
        assert [each.id for each in client.fetch_many(more)] == more
        with pytest.raises(continuum.WaitTimeout):
            client.wait_many(more, 0.05)
        assert client.statistics().pending == 2
        assert client.fetch(more[0]).status == "cancelled"
        worker.join()
    assert client_threads() == []


def test_errors_come_out_of_the_blocking_client_as_they_are(url: str) -> None:
    with continuum.BlockingClient(settings(url)) as client:
        with pytest.raises(InvalidTask, match="payload"):
            client.submit("pass", payload=object())
        with pytest.raises(continuum.TaskNotFound):
            list(client.logs(987654))
    with pytest.raises(RuntimeError, match=r"continuum\.connect_blocking"):
        client.fetch(1)


def test_logs_may_be_left_before_their_end(url: str) -> None:
    with continuum.BlockingClient(settings(url)) as client:
        task_id = client.submit("pass")
        worker = worked_by(url)
        for _, text in client.logs(task_id):
            assert text == "done\n"
            break
        worker.join()
    assert client_threads() == []


def test_closing_ends_what_other_threads_wait_for(url: str) -> None:
    client = continuum.BlockingClient(settings(url)).open()
    task_id = client.submit("pass")
    ended: list[BaseException] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            client.wait(task_id)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(DEADLINE)
    client.close()
    client.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert client_threads() == []


def test_a_blocking_client_may_be_opened_again_and_used_by_many_threads(url: str) -> None:
    client = continuum.BlockingClient(settings(url))
    ids: list[int] = []
    for _ in range(3):
        with client:
            with pytest.raises(RuntimeError, match="open already"):
                client.open()
            threads = [threading.Thread(target=lambda: ids.append(client.submit("pass"))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(set(ids)) == 24


def test_a_blocking_client_that_cannot_open_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad = Settings.model_validate({"db_dialect": "embedded", "embedded_dir": tmp_path / "file" / "folder"})
    with pytest.raises(Exception, match="cannot be used"), continuum.BlockingClient(bad):
        pass
    assert client_threads() == []


def test_the_blocking_client_carries_the_current_trace(url: str) -> None:
    with (
        continuum.BlockingClient(settings(url)) as client,
        TracerProvider().get_tracer("test").start_as_current_span("request") as span,
    ):
        traced = f"{span.get_span_context().trace_id:032x}"
        assert traced in (client.fetch(client.submit("pass")).traceparent or "")
