"""The status server on real sockets: where it listens, what it survives, and that nothing is left when it ends."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from continuum.db.memory import MemoryDatabase
from continuum.nursery.state import WorkerState
from continuum.status import bodies
from continuum.status import connections as connections_module
from continuum.status.errors import StatusServerError
from continuum.status.server import serve_status
from continuum.telemetry import Telemetry
from tests.support.harness import settings

UPGRADE = b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\n"
STOP_LIMIT = 2 * connections_module.GRACE + 0.5


@asynccontextmanager
async def serving(database: MemoryDatabase | None = None, **values: object) -> AsyncIterator[str]:
    """A status server; its address."""
    state = WorkerState(id="worker-1", slots=4)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(
            serve_status, settings(**({"api_port": 0} | values)), state, database or MemoryDatabase(), Telemetry()
        )
        yield address
        nursery.cancel_scope.cancel()


async def connect(address: str) -> trio.SocketStream:
    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None
    return await trio.open_tcp_stream(parts.hostname, parts.port)


async def get(address: str, path: str = "/healthz") -> int:
    async with httpx.AsyncClient(timeout=5) as client:
        return (await client.get(address + path)).status_code


def open_files() -> set[str]:
    """What this process has open, each by a name of its own (`socket:[373653]`)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor, for one
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


async def nothing_stays_open_but(before: set[str]) -> None:
    """Wait until all that was opened since is closed; threads of other tests may still end theirs."""
    with trio.move_on_after(10):
        while open_files() - before:
            await trio.sleep(0.05)
    assert open_files() - before == set()


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def test_port_0_takes_a_free_port_and_says_which() -> None:
    async with serving() as address:
        assert urlsplit(address).hostname == "127.0.0.1"
        assert await get(address) == 200


async def test_a_name_with_several_addresses_is_served_on_one_port() -> None:
    async with serving(api_host="localhost") as address:
        assert address.startswith("http://localhost:")
        assert await get(address) == 200


async def test_ipv6_is_served() -> None:
    async with serving(api_host="::1") as address:
        assert address.startswith("http://[::1]:")
        assert await get(address) == 200


async def test_every_interface_is_shown_as_an_address_that_works_here() -> None:
    async with serving(api_host="0.0.0.0") as address:
        assert address.startswith("http://localhost:")
        assert await get(address) == 200


async def test_a_taken_port_is_one_clear_error_that_names_the_variables() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StatusServerError) as caught:
            await serve_status(settings(api_port=port), WorkerState(id="w", slots=1), MemoryDatabase(), Telemetry())
    assert f"API_HOST=127.0.0.1 API_PORT={port}: Address already in use" in str(caught.value)


async def test_a_host_that_is_not_ours_is_one_clear_error() -> None:
    with pytest.raises(StatusServerError, match=r"API_HOST=192\.0\.2\.1 API_PORT=0: Cannot assign"):
        await serve_status(
            settings(api_host="192.0.2.1", api_port=0), WorkerState(id="w", slots=1), MemoryDatabase(), Telemetry()
        )


async def test_a_port_is_free_again_as_soon_as_the_server_has_ended() -> None:
    port = a_free_port()
    for _ in range(3):
        async with serving(api_port=port) as address:
            assert await get(address) == 200


async def test_started_and_stopped_again_and_again_it_leaks_nothing() -> None:
    async def once() -> None:
        async with serving() as address, httpx.AsyncClient(timeout=5) as client:
            assert (await client.get(address + "/status")).status_code == 200  # and stays connected
            idle = await connect(address)
            halfway = await connect(address)
            await halfway.send_all(b"GET /status HTTP/1.1\r\nHost: x\r\n")
            gone = await connect(address)
            await gone.send_all(b"GET /status HTTP/1.1\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await gone.aclose()  # a reset
        await idle.aclose()
        await halfway.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        await once()  # what is set up once for the process is no leak
        gc.collect()
        before, tasks = open_files(), trio.lowlevel.current_statistics().tasks_living
        for _ in range(30):
            await once()
        gc.collect()
    await nothing_stays_open_but(before)
    assert trio.lowlevel.current_statistics().tasks_living == tasks


class StuckDatabase(MemoryDatabase):
    """Answers no question about its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()

    async def statistics(self, *, latest: bool = False):  # type: ignore[no-untyped-def]
        self.asked.set()
        await trio.sleep_forever()


async def test_it_stops_in_time_while_a_handler_waits_for_the_database() -> None:
    database = StuckDatabase()
    before = open_files()
    async with serving(database) as address:
        stream = await connect(address)
        await stream.send_all(b"GET /global-status HTTP/1.1\r\nHost: x\r\n\r\n")
        await database.asked.wait()
        began = time.monotonic()
    assert time.monotonic() - began < STOP_LIMIT
    await stream.aclose()
    await nothing_stays_open_but(before)


async def test_it_stops_in_time_while_a_client_asks_and_never_reads() -> None:
    before = open_files()
    async with serving() as address:
        stream = await connect(address)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        with trio.move_on_after(1.0) as scope:  # until neither side takes any more
            while True:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        assert scope.cancelled_caught
        began = time.monotonic()
    assert time.monotonic() - began < STOP_LIMIT
    await stream.aclose()
    await nothing_stays_open_but(before)


async def test_a_request_under_way_is_answered_before_it_stops() -> None:
    class AskedDatabase(StuckDatabase):
        async def statistics(self, *, latest: bool = False):  # type: ignore[no-untyped-def]
            self.asked.set()
            await trio.sleep(0.1)
            return await MemoryDatabase.statistics(self)

    database = AskedDatabase()
    answers: list[int] = []

    async def ask(address: str) -> None:
        answers.append(await get(address, "/global-status"))

    async with trio.open_nursery() as nursery, serving(database) as address:
        nursery.start_soon(ask, address)
        await database.asked.wait()
    assert answers == [200]


async def test_a_connection_too_many_is_closed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "CONNECTIONS", 2)
    async with serving() as address, httpx.AsyncClient(timeout=5) as first, await connect(address):
        assert (await first.get(address + "/healthz")).status_code == 200
        async with await connect(address) as third:
            with trio.fail_after(5):
                assert await third.receive_some() == b""
        assert (await first.get(address + "/healthz")).status_code == 200


@pytest.mark.parametrize("length", ["known", "unknown"])
async def test_who_sends_a_body_that_nobody_wants_is_answered_all_the_same(length: str) -> None:
    body = b"x" * 8_000_000

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with serving() as address, httpx.AsyncClient(timeout=10) as client:
        for _ in range(2):
            answer = await client.post(address + "/status", content=body if length == "known" else pieces())
            assert answer.status_code == 405


async def test_a_body_that_nobody_wants_and_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER", 0.1)
    async with serving() as address:
        stream = await connect(address)
        await stream.send_all(b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        answer = b""
        with trio.fail_after(5):
            while received := await stream.receive_some():
                answer += received
        assert answer.startswith(b"HTTP/1.1 405 ")
        await stream.aclose()


async def test_a_client_that_dawdles_over_its_request_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "KEEP_ALIVE", 0.2)
    async with serving() as address:
        stream = await connect(address)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\n")
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nx",
        b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        UPGRADE % b"websocket" + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        UPGRADE % b"h2c" + b"HTTP2-Settings: !!!\r\n\r\n",
    ],
)
async def test_no_client_can_end_the_server_by_what_it_sends(sent: bytes) -> None:
    async with serving() as address:
        stream = await connect(address)
        await stream.send_all(sent)
        with trio.move_on_after(0.3):
            while await stream.receive_some():
                pass
        await stream.aclose()
        assert await get(address) == 200
