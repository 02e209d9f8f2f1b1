"""A socket of which can be told at once what it takes and what has come."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from continuum.sandbox.streams import PromptSocketStream

Ends = tuple[PromptSocketStream, socket.socket]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    near, far = socket.socketpair()
    with far:
        async with PromptSocketStream(near) as stream:
            yield stream, far


async def test_what_has_come_is_received_at_once(ends: Ends) -> None:
    stream, far = ends
    assert stream.receive_nowait(10) is None
    far.send(b"some")
    assert [stream.receive_nowait(3), stream.receive_nowait(3), stream.receive_nowait(3)] == [b"som", b"e", None]


async def test_an_end_is_received_at_once_and_again(ends: Ends) -> None:
    stream, far = ends
    far.send(b"some")
    far.close()
    assert [stream.receive_nowait(10) for _ in range(3)] == [b"some", b"", b""]
    assert await stream.receive_some() == b""


async def test_no_more_is_sent_at_once_than_is_taken(ends: Ends) -> None:
    stream, far = ends
    data = bytes(10_000_000)
    sent = stream.send_nowait(data)
    assert 0 < sent < len(data)
    assert stream.send_nowait(data) == 0

    received = 0
    far.setblocking(False)
    theirs = trio.socket.from_stdlib_socket(far)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data[sent:])
        while received < len(data):
            received += len(await theirs.recv(65536))


async def test_a_far_end_that_does_not_listen_breaks_the_stream(ends: Ends) -> None:
    stream, far = ends
    far.shutdown(socket.SHUT_RD)
    with pytest.raises(trio.BrokenResourceError):
        stream.send_nowait(b"some")
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"some")


async def test_a_far_end_that_is_reset_breaks_the_stream() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    async with PromptSocketStream(near) as stream:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_closed_stream_says_so_to_whoever_asks_and_whoever_waits(ends: Ends) -> None:
    stream, _ = ends
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        stream.send_nowait(b"some")
    with pytest.raises(trio.ClosedResourceError):
        stream.receive_nowait(1)
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def test_a_stream_of_trios_goes_on_as_one(ends: Ends) -> None:
    near, far = trio.socket.socketpair()
    theirs = trio.SocketStream(far)
    async with theirs, PromptSocketStream.of(trio.SocketStream(near)) as stream:
        await stream.send_all(b"some")
        await stream.send_eof()
        assert [await theirs.receive_some(), await theirs.receive_some()] == [b"some", b""]


async def test_it_keeps_what_trio_asks_of_a_stream() -> None:
    async def make() -> tuple[PromptSocketStream, PromptSocketStream]:
        await trio.lowlevel.checkpoint()
        near, far = socket.socketpair()
        return PromptSocketStream(near), PromptSocketStream(far)

    async def make_clogged() -> tuple[PromptSocketStream, PromptSocketStream]:
        near, far = await make()
        for end in (near, far):
            while end.send_nowait(bytes(65536)):
                pass
        return near, far

    with trio.fail_after(5):
        await trio.testing.check_half_closeable_stream(make, make_clogged)
