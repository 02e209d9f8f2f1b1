"""The daemon's socket and the streams of containers, against servers of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from continuum.sandbox import docker_stream
from continuum.sandbox.docker_stream import (
    ContainerStream,
    Endpoint,
    EngineError,
    EngineNotFound,
    EngineRefused,
    attach,
    ping,
)
from continuum.sandbox.protocol import BackendUnavailable
from continuum.sandbox.streams import PromptStream
from tests.support.streams import stream_pair

Handler = Callable[[trio.SocketStream], Awaitable[None]]
Ends = tuple[PromptStream, trio.SocketStream]


def frame(channel: int, data: bytes) -> bytes:
    return bytes([channel, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@asynccontextmanager
async def daemon(folder: Path, handler: Handler) -> AsyncIterator[Endpoint]:
    """A server on a Unix socket that treats each connection as `handler` says."""
    path = str(folder / "docker.sock")
    listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with listening:
        await listening.bind(path)
        listening.listen()
        listener = trio.SocketListener(listening)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, [listener])
            yield Endpoint.from_environment({"DOCKER_HOST": f"unix://{path}"})
            nursery.cancel_scope.cancel()


def answering(answer: bytes) -> Handler:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    return handle


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    max_bytes=st.one_of(st.none(), st.integers(1, 10)),
)
def test_frames_cut_anywhere_come_out_whole_and_in_order(
    frames: list[tuple[int, bytes]], cuts: list[int], max_bytes: int | None
) -> None:
    wire = b"".join(frame(channel, data) for channel, data in frames)

    async def main() -> None:
        ours, theirs = stream_pair()
        stream = ContainerStream(ours, wire[: cuts[0]])

        async def feed() -> None:
            rest, turn = wire[cuts[0] :], 0
            while rest:
                size = cuts[turn % len(cuts)]
                await theirs.send_all(rest[:size])
                rest, turn = rest[size:], turn + 1
            await theirs.send_eof()

        received = []
        async with stream, theirs, trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            while piece := await stream.receive_some(max_bytes):
                assert max_bytes is None or len(piece) <= max_bytes
                received.append(piece)
        assert b"".join(received) == b"".join(data for channel, data in frames if channel == 1)
        stderr = b"".join(data for channel, data in frames if channel == 2)
        assert stream.diagnosis == stderr.decode(errors="replace").strip()

    trio.run(main)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """Of a stream to the daemon: ours and the daemon's."""
    ours, theirs = stream_pair()
    async with ours, theirs:
        yield ours, theirs


async def test_a_flood_of_errors_is_kept_only_at_its_end(ends: Ends) -> None:
    ours, theirs = ends
    stream = ContainerStream(ours)

    async def feed() -> None:
        for _ in range(100):
            await theirs.send_all(frame(2, b"x" * 1000))
        await theirs.send_all(frame(2, b"the last words"))
        await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert await stream.receive_some() == b""
    assert stream.diagnosis.endswith("the last words")
    assert len(stream.diagnosis) <= 4096


async def test_a_receive_that_is_cancelled_loses_nothing(ends: Ends) -> None:
    stream = ContainerStream(ends[0], frame(1, b"first") + frame(1, b"second"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive_some()
    assert scope.cancelled_caught
    assert [await stream.receive_some(), await stream.receive_some()] == [b"first", b"second"]


async def test_what_has_come_is_told_at_once_and_so_is_the_end(ends: Ends) -> None:
    ours, theirs = ends
    stream = ContainerStream(ours, frame(1, b"early"))
    assert [stream.receive_nowait(100), stream.receive_nowait(100)] == [b"early", None]
    await theirs.send_all(frame(2, b"a warning") + frame(1, b"whole") + frame(1, b"cut")[:-1])
    assert [stream.receive_nowait(3) for _ in range(4)] == [b"who", b"le", b"cu", None]
    await theirs.send_all(frame(1, b"cut")[-1:] + frame(2, b"another"))
    assert [stream.receive_nowait(100), stream.receive_nowait(100)] == [b"t", None]
    await theirs.aclose()
    assert stream.receive_nowait(100) == b""
    assert stream.diagnosis == "a warninganother"


async def test_a_daemon_that_hangs_up_within_a_frame_is_the_end_of_the_stream(ends: Ends) -> None:
    ours, theirs = ends
    await theirs.send_all(frame(1, b"whole") + frame(1, b"cut")[:-1])
    await theirs.send_eof()
    stream = ContainerStream(ours)
    assert await stream.receive_some() == b"whole"
    assert await stream.receive_some() == b"cu"
    assert await stream.receive_some() == b""


async def test_what_follows_the_answer_in_the_same_packet_is_not_lost(tmp_path: Path) -> None:
    head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    async with (
        daemon(tmp_path, answering(head + frame(1, b"early"))) as endpoint,
        await attach(endpoint, "1.41", "some", stdin=True) as stream,
    ):
        assert await stream.receive_some() == b"early"
        assert await stream.receive_some() == b""


async def test_the_streams_input_can_be_closed_while_its_output_goes_on(tmp_path: Path) -> None:
    async def echo_all(stream: trio.SocketStream) -> None:
        request = await stream.receive_some()
        assert request.startswith(b"POST /v1.41/containers/some/attach?")
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        sent = b"".join([piece async for piece in stream])
        await stream.send_all(frame(1, sent + b" and end of input"))
        await stream.aclose()

    async with (
        daemon(tmp_path, echo_all) as endpoint,
        await attach(endpoint, "1.41", "some", stdin=True) as stream,
    ):
        await stream.send_all(b"input")
        await stream.send_eof()
        assert await stream.receive_some() == b"input and end of input"


@pytest.mark.parametrize(("status", "kind"), [(b"404 Not Found", EngineNotFound), (b"409 Conflict", EngineRefused)])
async def test_a_refusal_is_told_in_the_daemons_words(tmp_path: Path, status: bytes, kind: type[EngineError]) -> None:
    body = b'{"message":"No such container: some"}'
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with daemon(tmp_path, answering(answer)) as endpoint:
        with pytest.raises(kind, match=r"^Docker: No such container: some$"):
            await attach(endpoint, "1.41", "some", stdin=False)


@pytest.mark.parametrize("answer", [b"", b"220 mail.example ready\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_what_is_not_a_docker_daemon_is_an_engine_error(tmp_path: Path, answer: bytes) -> None:
    async with daemon(tmp_path, answering(answer)) as endpoint:
        with pytest.raises(EngineError):
            await ping(endpoint)


async def test_a_daemon_that_accepts_and_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_stream, "ANSWER_DEADLINE", 0.1)

    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with daemon(tmp_path, say_nothing) as endpoint:
        with trio.fail_after(5), pytest.raises(EngineError, match="did not answer within"):
            await ping(endpoint)


async def test_a_socket_that_is_not_there_says_to_start_the_daemon(tmp_path: Path) -> None:
    endpoint = Endpoint.from_environment({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    with pytest.raises(EngineError, match=r"no Docker daemon at unix://.*start it, or set DOCKER_HOST"):
        await ping(endpoint)


async def test_a_port_where_nobody_listens_says_so() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint.from_environment({"DOCKER_HOST": f"tcp://127.0.0.1:{unused.getsockname()[1]}"})
        with pytest.raises(EngineError, match=r"cannot be reached .*set DOCKER_HOST"):
            await ping(endpoint)


async def test_a_socket_without_permission_says_which_group(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(path: str) -> trio.SocketStream:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, to whom no socket is closed.
    monkeypatch.setattr(trio, "open_unix_socket", refuse)
    with pytest.raises(EngineError, match=r"no permission .*socket's group \(docker\)"):
        await ping(Endpoint.from_environment({}))


def test_docker_host_names_a_socket_or_plain_tcp() -> None:
    assert Endpoint.from_environment({}).path == "/var/run/docker.sock"
    assert Endpoint.from_environment({"DOCKER_HOST": ""}).path == "/var/run/docker.sock"
    assert (
        Endpoint.from_environment({"DOCKER_HOST": "unix:///run/user/7/docker.sock"}).path == "/run/user/7/docker.sock"
    )
    tcp = Endpoint.from_environment({"DOCKER_HOST": "tcp://127.0.0.1"})
    assert (tcp.path, tcp.host, tcp.port) == (None, "127.0.0.1", 2375)


@pytest.mark.parametrize(
    "environment",
    [
        {"DOCKER_HOST": "ssh://user@host"},
        {"DOCKER_HOST": "npipe:////./pipe/docker_engine"},
        {"DOCKER_HOST": "tcp://127.0.0.1:none"},
        {"DOCKER_HOST": "unix://"},
        {"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1"},
    ],
)
def test_another_docker_host_is_refused_with_what_to_give_instead(environment: dict[str, str]) -> None:
    with pytest.raises(BackendUnavailable, match=r"unix:///path/to/docker\.sock"):
        Endpoint.from_environment(environment)
