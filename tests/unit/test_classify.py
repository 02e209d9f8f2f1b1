"""The table of docs/explanation/reliability.md and what `classify` does are the same; what libpq says by itself is understood."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from continuum.config import Settings
from continuum.db import advice
from continuum.db.classify import BY_SQLSTATE, INTERNAL_BUT_TRANSIENT, Kind, classify, describe

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"


def server_error(sqlstate: str, message: str = "") -> psycopg.Error:
    """What psycopg raises when the server answers so."""
    try:
        return errors.lookup(sqlstate)(message)
    except KeyError:
        error = errors.get_base_exception(sqlstate)(message)
        error.sqlstate = sqlstate
        return error


def documented() -> dict[str, Kind]:
    """The table: sqlstates, or how they begin, each with its class."""
    table = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            for sqlstate in re.findall(r"`(\w+)`", cells[0]):
                table[sqlstate] = Kind(cells[2])
    return table


def test_the_page_has_every_rule_and_no_other() -> None:
    assert documented() == dict(BY_SQLSTATE)


@pytest.mark.parametrize("sqlstate", BY_SQLSTATE)
def test_every_row_is_true(sqlstate: str) -> None:
    longer = [other for other in BY_SQLSTATE if other.startswith(sqlstate) and other != sqlstate]
    for ending in ("", "P01", "000", "ZZZ"):
        code = (sqlstate + ending)[:5]
        if len(code) == 5 and not code.startswith(tuple(longer)):
            assert classify(server_error(code)) is documented()[sqlstate]


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("40001", Kind.CONFLICT),
        ("40P01", Kind.CONFLICT),
        ("40003", Kind.UNKNOWN),
        ("08000", Kind.UNKNOWN),
        ("08006", Kind.UNKNOWN),
        ("08C00", Kind.UNKNOWN),
        ("57P01", Kind.UNKNOWN),
        ("57P03", Kind.UNKNOWN),
        ("57014", Kind.UNKNOWN),
        ("58C00", Kind.UNKNOWN),
        ("XXUUU", Kind.UNKNOWN),
        ("25P03", Kind.UNKNOWN),
        ("25P04", Kind.UNKNOWN),
        ("53300", Kind.UNAVAILABLE),
        ("25006", Kind.UNAVAILABLE),
        ("42P01", Kind.SCHEMA),
        ("42601", Kind.BUG),
        ("23505", Kind.BUG),
        ("XX001", Kind.BUG),
    ],
)
def test_what_a_node_says_that_leaves_hangs_or_loses_a_conflict(sqlstate: str, kind: Kind) -> None:
    assert classify(server_error(sqlstate)) is kind


@pytest.mark.parametrize("words", INTERNAL_BUT_TRANSIENT)
def test_an_internal_error_is_transient_only_when_another_node_is_to_blame(words: str) -> None:
    assert classify(server_error("XX000", f"internal error: {words.upper()}")) is Kind.UNKNOWN
    assert classify(server_error("XX000", "internal error: invalid memory address")) is Kind.BUG
    assert f"`{words}`" in PAGE.read_text()


@pytest.mark.parametrize("error", [psycopg.OperationalError(), psycopg.InterfaceError(), psycopg.DatabaseError()])
def test_a_connection_that_was_lost_has_no_sqlstate(error: psycopg.Error) -> None:
    assert classify(error) is Kind.UNKNOWN


@pytest.mark.parametrize("error", [psycopg.ProgrammingError(), psycopg.DataError(), psycopg.NotSupportedError()])
def test_wrong_use_of_the_driver_is_a_bug(error: psycopg.Error) -> None:
    assert classify(error) is Kind.BUG


@contextmanager
def server_that_ends_with(last: bytes, *, reset: bool = False) -> Iterator[str]:
    """The address of a server that lets one client in, answers its first statement so, and closes the connection."""

    def serve() -> None:
        client, _ = listening.accept()
        with client:
            (length,) = struct.unpack("!i", client.recv(4))
            client.recv(length - 4)
            client.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
            client.recv(4096)
            client.sendall(last)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"host=127.0.0.1 port={listening.getsockname()[1]} user=u dbname=d sslmode=disable connect_timeout=5"
        thread.join(10)


@pytest.mark.parametrize(
    ("last", "reset"),
    [(b"", False), (b"", True), (b"T\0\0\0\x20\0\1", False), (b"HTTP/1.1 400 Bad Request", False)],
    ids=["closed", "reset", "cut in the middle of a message", "not the protocol"],
)
def test_a_connection_that_breaks_in_the_middle_is_never_taken_for_a_bug(last: bytes, reset: bool) -> None:
    with server_that_ends_with(last, reset=reset) as address, pytest.raises(psycopg.Error) as caught:
        psycopg.connect(address, autocommit=True).execute("SELECT 1")
    assert classify(caught.value) is Kind.UNKNOWN


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ('FATAL:  database "tasks" does not exist', "run `CREATE DATABASE tasks` on the server, or check DB_NAME"),
        ('FATAL:  password authentication failed for user "u"', "check DB_USER and DB_PASSWORD"),
        ("fe_sendauth: no password supplied", "check DB_USER and DB_PASSWORD"),
        ("SSL error: tlsv1 alert certificate expired", "let DB_SSLCERT name"),
        (
            'FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", no encryption',
            "DB_SSLMODE=verify-full",
        ),
        ("Connection refused\n\tIs the server running on that host?", "start the server, or check DB_HOST and DB_PORT"),
        ("failed to resolve host 'nowhere': [Errno -2] Name or service not known", "check the name in DB_HOST"),
        ('FATAL:  role "me" does not exist', "check DB_USER (or DATABASE_URL), or run `CREATE ROLE me LOGIN`"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("received invalid response to SSL negotiation: H", "no PostgreSQL or CockroachDB"),
        ("permission denied for table tasks", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES"),
        ("permission denied for schema public", "run `continuum migrate` as the database's owner"),
        ("must be owner of table tasks", "as the user who made the tables"),
        ("server closed the connection unexpectedly", ""),
        ("no pg_hba.conf entry for host, SSL encryption\nno pg_hba.conf entry for host, no encryption", ""),
    ],
)
def test_a_refused_connection_is_one_line_with_what_to_do_where_that_is_clear(said: str, advised: str) -> None:
    line = describe(psycopg.OperationalError(f'connection to server at "::1", port 1 failed: {said}\n'))
    assert "\n" not in line
    assert said.split()[0] in line
    assert advised in line
    assert bool(advice.advice_on(line)) is bool(advised)


def test_advice_names_only_settings_that_exist() -> None:
    named = set(re.findall(r"DB_[A-Z]+", Path(advice.__file__).read_text()))
    assert named <= {name.upper() for name in Settings.model_fields}
