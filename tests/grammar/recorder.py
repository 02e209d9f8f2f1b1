"""A database that understands nothing: it hears every statement that the adapter sends to CockroachDB, and who sent it."""

from __future__ import annotations

import ast
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import trio
from psycopg.pq import TransactionStatus

ADAPTER = Path(__file__).resolve().parents[2] / "continuum" / "db"
NOT_COCKROACH = {"postgres.py", "notifications.py", "embedded.py", "memory.py"}
SENDERS = {"execute", "stream", "run", "read", "_run", "_read", "_try"}
"""Methods whose first argument is a statement."""
PASSED_THROUGH = ("._run", "._read", "._with_connection", "._try")
"""Functions that send what they were given, which says nothing of where it came from."""

PARAMETER = re.compile(r"%(?:%|\((?P<name>\w+)\)[sb])")

Answer = list[tuple[Any, ...]] | psycopg.Error


@cache
def places() -> dict[str, range]:
    """Every call in the adapter that sends a statement to CockroachDB: how to find it, and its lines."""
    found = {}
    for file in sorted(ADAPTER.glob("*.py")):
        if file.name in NOT_COCKROACH:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SENDERS:
                found[f"{file.name}:{node.lineno}"] = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return found


class Recorder:
    """Opens connections that remember.

    heard: each statement as the server would get it, and the function that it comes from.
    answers: what to answer to a statement, one after the other, the last one for ever; nothing is scripted: no rows.
    """

    def __init__(self, answers: Mapping[str, list[Answer]]) -> None:
        self.heard: dict[str, str] = {}
        self._lines: set[tuple[str, int]] = set()
        self._answers = {statement: list(each) for statement, each in answers.items()}
        self._silent, self._peer = socket.socketpair()

    def close(self) -> None:
        self._silent.close()
        self._peer.close()

    def not_reached(self) -> set[str]:
        """Calls of the adapter which have sent nothing yet."""
        return {
            place
            for place, lines in places().items()
            if not any((place.split(":")[0], n) in self._lines for n in lines)
        }

    async def connect(self, _: str) -> Any:
        """Instead of `continuum.db.connection.connect`."""
        await trio.lowlevel.checkpoint()
        return _Connection(self, self._silent)

    def hear(self, statement: str | bytes, parameters: Mapping[str, object] | None) -> list[tuple[Any, ...]]:
        """Note a statement, with everybody on the way to it. Returns or raises the answer."""
        text = statement.decode() if isinstance(statement, bytes) else statement
        origin = ""
        for file, line, function in _stack():
            self._lines.add((file, line))
            if not origin and not any(each in function for each in PASSED_THROUGH):
                origin = function
        if parameters is None:
            self.heard[text] = origin
        else:
            missing = set(PARAMETER.findall(text)) - {"", *parameters}
            assert not missing, f"{origin} gives no value for {missing}"
            self.heard[numbered(text)] = origin
        scripted = self._answers.get(text, [[]])
        answer = scripted.pop(0) if len(scripted) > 1 else scripted[0]
        if isinstance(answer, psycopg.Error):
            raise answer
        return answer


def numbered(statement: str) -> str:
    """A statement with parameters as psycopg sends it: with $1, $2, ..."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match["name"]
        return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

    return PARAMETER.sub(number, statement)


def _stack() -> Iterator[tuple[str, int, str]]:
    """File, line and function of every frame of the adapter, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == ADAPTER:
            yield path.name, frame.f_lineno, frame.f_code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]


class _Connection:
    """As much of a psycopg connection as the adapter uses."""

    closed = False

    def __init__(self, recorder: Recorder, silent: socket.socket) -> None:
        self._recorder = recorder
        self.pgconn = SimpleNamespace(socket=silent.fileno(), finish=lambda: None)
        self.info = SimpleNamespace(
            parameter_status=lambda _: "CockroachDB",
            transaction_status=TransactionStatus.IDLE,
            host="nowhere",
        )

    async def execute(
        self, statement: str | bytes, parameters: Mapping[str, object] | None = None, *, prepare: bool | None = None
    ) -> Any:
        await trio.lowlevel.checkpoint()
        return _Cursor(self._recorder, self._recorder.hear(statement, parameters))

    def cursor(self) -> Any:
        return _Cursor(self._recorder, [])

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        yield


class _Cursor:
    rowcount = 0
    description = (object(),)

    def __init__(self, recorder: Recorder, rows: list[tuple[Any, ...]]) -> None:
        self._recorder = recorder
        self._rows = rows

    async def fetchall(self) -> list[tuple[Any, ...]]:
        await trio.lowlevel.checkpoint()
        return self._rows

    def stream(
        self, statement: bytes, parameters: Mapping[str, object] | None = None
    ) -> AsyncIterator[tuple[Any, ...]]:
        return _then_silence(self._recorder.hear(statement, parameters))


async def _then_silence(rows: list[tuple[Any, ...]]) -> AsyncIterator[tuple[Any, ...]]:
    for row in rows:
        yield row
    await trio.sleep_forever()
