"""The worker's end of the conversation: nothing that a sandbox sends is trusted, and nothing breaks it."""

from __future__ import annotations

import gc
import json
import signal
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from continuum.model import Ending, Outcome, RunRequest, Stream
from continuum.sandbox.channel import GRACE, RunnerChannel, RunnerConfig
from continuum.sandbox.frames import LARGEST_FRAME, Frame, FrameKind, FrameParser, OutputText
from continuum.sandbox.limits import Limits
from continuum.sandbox.protocol import SandboxLost
from continuum.sandbox.streams import PromptSocketStream
from tests.support.exits import told_exit
from tests.support.streams import stream_pair

LIMITS = Limits(memory_mb=512, disk_mb=16, files=4096, processes=40, open_files=1024, cpu_seconds=3)

OUTPUTS = (FrameKind.OUTPUT, FrameKind.ERROR)
frames = st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=300)).filter(
    lambda frame: frame.data or frame.kind not in OUTPUTS
)


def encode(kind: FrameKind, data: bytes = b"") -> bytes:
    return struct.pack("!cI", kind.value, len(data)) + data


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Data in pieces of these sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def exit_frame(status: int = 0, **values: Any) -> bytes:
    return encode(FrameKind.EXIT, told_exit(status, **values))


# -- frames from bytes -------------------------------------------------------------------------------------------------


@given(st.lists(frames), st.lists(st.integers(0, 400)))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[Frame], sizes: list[int]) -> None:
    parser = FrameParser()
    stream = b"".join(encode(frame.kind, frame.data) for frame in sent)
    assert [frame for piece in cut(stream, sizes) for frame in parser.feed(piece)] == sent


@given(st.binary(max_size=2000), st.lists(st.integers(0, 400)))
@example(b"R\xff\xff\xff\xff", [1])
@example(b"O\0\1\0\0" + bytes(65536), [])
def test_any_bytes_give_frames_or_a_lost_sandbox(data: bytes, sizes: list[int]) -> None:
    parser = FrameParser()
    consumed = 0
    for piece in cut(data, sizes):
        try:
            for frame in parser.feed(piece):
                assert len(frame.data) <= LARGEST_FRAME
                consumed += 5 + len(frame.data)
        except SandboxLost:
            return
    assert consumed + len(parser._buffer) == len(data)


@given(st.lists(frames), st.binary(max_size=100), st.integers(1, 1000))
def test_no_more_is_held_than_one_frame_and_one_piece(sent: list[Frame], rest: bytes, size: int) -> None:
    parser = FrameParser()
    stream = b"".join(encode(frame.kind, frame.data) for frame in sent) + rest
    for start in range(0, len(stream), size):
        try:
            for _ in parser.feed(stream[start : start + size]):
                pass
        except SandboxLost:
            return
        assert len(parser._buffer) < LARGEST_FRAME + 5


def test_a_frame_of_the_largest_size_is_held_until_complete_and_then_let_go() -> None:
    parser = FrameParser()
    stream = encode(FrameKind.OUTPUT, bytes(LARGEST_FRAME))
    assert list(parser.feed(stream[:-1])) == []
    assert [len(frame.data) for frame in parser.feed(stream[-1:])] == [LARGEST_FRAME]
    assert not parser._buffer


def test_a_frame_that_announces_too_much_is_refused_before_it_comes() -> None:
    with pytest.raises(SandboxLost, match="65537 bytes"):
        list(FrameParser().feed(struct.pack("!cI", b"O", LARGEST_FRAME + 1)))


def test_a_frame_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SandboxLost, match="no frame: b'Z'"):
        list(FrameParser().feed(b"Z\0\0\0\0"))


# -- output ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50)), st.integers(0, 5))
def test_any_output_becomes_text_that_a_database_can_hold(pieces: list[bytes], dropped: int) -> None:
    seen: list[str] = []
    text = OutputText(Stream.OUTPUT, lambda _, part: seen.append(part), 10_000)
    for piece in pieces:
        text.add(piece)
    whole = text.finish(dropped)
    whole.encode("utf-8")
    assert "\0" not in whole
    assert "".join(seen) == whole, "what was watched is what is kept"
    assert ("output cut" in whole) == bool(dropped)


@given(st.text(), st.lists(st.integers(0, 10)))
def test_text_survives_cuts_within_its_characters(original: str, sizes: list[int]) -> None:
    text = OutputText(Stream.ERROR, lambda *_: None, 10_000)
    for piece in cut(original.encode(), sizes):
        text.add(piece)
    assert text.finish(0) == original.replace("\0", "\N{REPLACEMENT CHARACTER}")


def test_the_cut_mark_tells_how_much_was_kept_of_how_much() -> None:
    text = OutputText(Stream.OUTPUT, lambda *_: None, 10)
    text.add(b"0123456789")
    assert text.finish(90) == "0123456789\n[output cut: the first 10 of 100 bytes are kept]\n"


def test_more_output_than_was_asked_for_is_refused() -> None:
    text = OutputText(Stream.OUTPUT, lambda *_: None, 10)
    text.add(b"0123456789")
    with pytest.raises(SandboxLost, match="more output than the limit"):
        text.add(b"x")


# -- conversations -----------------------------------------------------------------------------------------------------


class Conversation:
    """A channel, and the far end of its stream in the test's hands."""

    def __init__(self) -> None:
        self.near, self.far = stream_pair()
        self.channel = RunnerChannel(self.near, name="test", limits=LIMITS)

    async def aclose(self) -> None:
        await self.channel.aclose()
        await self.far.aclose()

    async def run(self, *answers: bytes, timeout: float = 5.0, close: bool = False) -> Outcome:
        """Run a script on a runner that says ready, then, asked, these answers, and then maybe hangs up."""
        await self.far.send_all(encode(FrameKind.READY))

        async def answer() -> None:
            await self.far.receive_some()
            await self.far.send_all(b"".join(answers))
            if close:
                await self.far.send_eof()

        outcome: Outcome | None = None
        lost: SandboxLost | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                outcome = await self.run_unanswered(timeout)
            except SandboxLost as error:
                lost = error
            nursery.cancel_scope.cancel()
        if lost is not None:
            raise lost
        assert outcome is not None
        return outcome

    async def run_unanswered(self, timeout: float = 5.0, payload: str = "null") -> Outcome:
        return await self.channel.run(RunRequest(1, 1, "pass", payload, timeout, 1000), lambda *_: None)


@pytest.fixture
async def conversation() -> AsyncIterator[Conversation]:
    conversation = Conversation()
    yield conversation
    await conversation.aclose()


async def test_an_outcome_has_the_outputs_and_the_cause(conversation: Conversation) -> None:
    said = encode(FrameKind.OUTPUT, b"some"), encode(FrameKind.ERROR, b"Traceback\nValueError: bad\n")
    outcome = await conversation.run(*said, exit_frame(1 << 8, dropped_error=3))
    assert (outcome.ending, outcome.exit_code, outcome.output) == (Ending.FAILED, 1, "some")
    assert outcome.error_output.startswith("Traceback\nValueError: bad\n\n[output cut: ")
    outcome = await conversation.run(*said, exit_frame(1 << 8))
    assert outcome.message == "ValueError: bad\nexit code 1"


async def test_a_timeout_has_no_exit_code(conversation: Conversation) -> None:
    outcome = await conversation.run(exit_frame(signal.SIGKILL, timed_out=True), timeout=0.25)
    assert (outcome.ending, outcome.exit_code) == (Ending.TIMED_OUT, None)
    assert outcome.message == "Timeout: ran longer than 0.25 s"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 60_000,
        json.dumps({"status": 0}).encode(),
        exit_frame(-1)[5:],
        exit_frame(1 << 16)[5:],
        exit_frame(0x137F)[5:],
        exit_frame(True)[5:],
        exit_frame(dropped_output=-1)[5:],
        exit_frame(dropped_error=1.5)[5:],
        exit_frame(timed_out=1)[5:],
        exit_frame(oom=None)[5:],
        exit_frame(dropped_output=10**30)[5:],
        exit_frame(out_of_cpu_time=1)[5:],
        exit_frame(too_many_processes="")[5:],
        exit_frame(full=None)[5:],
        exit_frame(full=[1])[5:],
        exit_frame(full=["/tmp\0"])[5:],
        exit_frame(full=["/tmp"] * 100)[5:],
    ],
)
async def test_an_exit_that_makes_no_sense_loses_the_sandbox(conversation: Conversation, data: bytes) -> None:
    with pytest.raises(SandboxLost, match="makes no sense") as caught:
        await conversation.run(encode(FrameKind.EXIT, data))
    assert caught.value.started


@given(st.lists(st.binary(max_size=50) | frames.map(lambda frame: encode(frame.kind, frame.data)), max_size=10))
def test_any_answer_gives_an_outcome_or_a_lost_sandbox(answers: list[bytes]) -> None:
    async def converse() -> None:
        conversation = Conversation()
        with suppress(SandboxLost):
            await conversation.run(*answers, close=True)
        await conversation.aclose()

    trio.run(converse)


async def test_ready_while_a_script_runs_loses_the_sandbox(conversation: Conversation) -> None:
    with pytest.raises(SandboxLost, match="ready while a script ran"):
        await conversation.run(encode(FrameKind.READY))


async def test_output_before_a_script_loses_the_sandbox_unstarted(conversation: Conversation) -> None:
    await conversation.run(exit_frame())
    with pytest.raises(SandboxLost, match="output instead of ready") as caught:
        await conversation.far.send_all(encode(FrameKind.OUTPUT, b"x"))
        await conversation.run()
    assert not caught.value.started


async def test_what_the_runner_says_at_its_end_is_passed_on(conversation: Conversation) -> None:
    with pytest.raises(SandboxLost, match="gave up: Unclean: /tmp"):
        await conversation.run(encode(FrameKind.FATAL, b"Unclean: /tmp"))


async def test_a_stream_that_ends_before_ready_was_said_is_lost_unstarted(conversation: Conversation) -> None:
    await conversation.far.aclose()
    with pytest.raises(SandboxLost) as caught:
        await conversation.run_unanswered()
    assert not caught.value.started


async def test_a_stream_that_was_closed_for_sending_after_ready_was_said_is_lost_unstarted(
    conversation: Conversation,
) -> None:
    """As the Docker daemon does when a container ends: what is sent is still taken."""
    await conversation.far.send_all(encode(FrameKind.READY))
    await conversation.far.send_eof()
    with pytest.raises(SandboxLost, match="ended") as caught:
        await conversation.run_unanswered()
    assert not caught.value.started
    assert conversation.near.sends == 0


async def test_a_cause_is_not_read_off_a_text_whose_end_was_cut(conversation: Conversation) -> None:
    errors = encode(FrameKind.ERROR, b"MemoryError\n")
    outcome = await conversation.run(errors, exit_frame(1 << 8, dropped_error=100))
    assert (outcome.ending, outcome.message) == (Ending.FAILED, "exit code 1")


async def test_a_request_that_cannot_be_sent_has_not_started(
    conversation: Conversation, autojump_clock: trio.testing.MockClock
) -> None:
    await conversation.far.send_all(encode(FrameKind.READY))
    conversation.far.socket.shutdown(socket.SHUT_RD)
    with pytest.raises(SandboxLost, match="ended") as caught:
        await conversation.run_unanswered()
    assert not caught.value.started
    assert caught.value.amid_request


async def test_an_end_over_a_request_that_is_not_read_is_told_and_the_channel_is_given_up() -> None:
    near, far = stream_pair()
    async with far:
        channel = RunnerChannel(near, name="test", limits=replace(LIMITS, memory_mb=100))
        request = RunRequest(1, 1, "pass", " " * 10_000_000, 60.0, 1000)
        await far.send_all(encode(FrameKind.READY))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def tell() -> None:
                await far.receive_some(1)
                await far.send_all(exit_frame(9, oom=True))

            with trio.fail_after(5):
                outcome = await channel.run(request, lambda *_: None)
        assert outcome.ending is Ending.OUT_OF_MEMORY
        with pytest.raises(SandboxLost) as caught:
            await channel.run(request, lambda *_: None)
        assert not caught.value.started


async def test_a_request_that_was_lost_with_its_sandbox_is_not_kept() -> None:
    size = 10_000_000
    gc.collect()
    gc.disable()  # what waits for a collection is kept, for as long as that does not come
    tracemalloc.start()
    try:
        for _ in range(3):
            near, far = stream_pair()
            channel = RunnerChannel(near, name="test", limits=replace(LIMITS, memory_mb=100))
            await far.send_all(encode(FrameKind.READY))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def end(far: trio.abc.Stream = far) -> None:
                    await far.receive_some(1)
                    await far.aclose()

                with pytest.raises(SandboxLost), trio.fail_after(5):
                    await channel.run(RunRequest(1, 1, "pass", " " * size, 60.0, 1000), lambda *_: None)
            await channel.aclose()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < size


async def test_a_request_larger_than_the_memory_is_out_of_it_and_is_not_sent() -> None:
    near, far = stream_pair()
    channel = RunnerChannel(near, name="test", limits=replace(LIMITS, memory_mb=1))
    outcome = await channel.run(RunRequest(1, 1, "pass", " " * 2**20, 5.0, 1000), lambda *_: None)
    assert (outcome.ending, outcome.message) == (
        Ending.OUT_OF_MEMORY,
        "Out of memory: its code and payload have 1.0 MB, more than the 1 MB that it may use",
    )
    await near.aclose()
    async with far:
        assert await far.receive_some() == b""


async def test_a_request_that_nobody_reads_is_given_up_at_its_deadline(
    conversation: Conversation, autojump_clock: trio.testing.MockClock
) -> None:
    await conversation.far.send_all(encode(FrameKind.READY))
    began = trio.current_time()
    with pytest.raises(SandboxLost, match="did not end a script at its timeout"):
        await conversation.run_unanswered(5.0, payload=" " * 10_000_000)
    assert trio.current_time() - began == pytest.approx(5.0 + GRACE)


async def test_what_a_runner_said_before_it_stopped_to_listen_is_heard() -> None:
    near, far = socket.socketpair()

    class Deafened(PromptSocketStream):
        """Of which the far end gives up between the last look at it and the request."""

        def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
            far.shutdown(socket.SHUT_RD)
            far.send(encode(FrameKind.FATAL, b"Unclean: /tmp"))
            return super().send_nowait(data)

    channel = RunnerChannel(Deafened(near), name="test", limits=LIMITS)
    with far:
        far.send(encode(FrameKind.READY))
        with pytest.raises(SandboxLost, match="gave up: Unclean: /tmp while it took the request") as caught:
            await channel.run(RunRequest(1, 1, "pass", "null", 5.0, 1000), lambda *_: None)
        assert not caught.value.started
        assert caught.value.amid_request
    await channel.aclose()


async def test_a_short_script_costs_one_send_one_wait_and_three_receives(conversation: Conversation) -> None:
    """Which is most of what it costs the worker: for ready, for that nothing follows it, and for all of the answer."""
    near, far = conversation.near, conversation.far
    for count in range(1, 4):
        await far.send_all(encode(FrameKind.READY))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def answer() -> None:
                await far.receive_some()
                await far.send_all(encode(FrameKind.OUTPUT, b"hello\n") + exit_frame())

            assert (await conversation.run_unanswered()).output == "hello\n"
        assert (near.sends, near.waits, near.receives) == (count, count, 3 * count)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_of_nothing_which_counts_towards_no_limit_is_no_runners(kind: FrameKind) -> None:
    with pytest.raises(SandboxLost, match="a frame of 0 bytes"):
        list(FrameParser().feed(encode(kind)))


async def test_a_runner_that_speaks_unasked_is_lost_unstarted(conversation: Conversation) -> None:
    await conversation.far.send_all(encode(FrameKind.READY))
    await conversation.far.send_all(encode(FrameKind.READY))
    with pytest.raises(SandboxLost, match="ready unasked") as caught:
        await conversation.run_unanswered()
    assert not caught.value.started


async def test_a_stream_that_ends_amid_a_script_is_lost_started(conversation: Conversation) -> None:
    with pytest.raises(SandboxLost, match="ended") as caught:
        await conversation.run(encode(FrameKind.OUTPUT, b"partial"), close=True)
    assert caught.value.started


async def test_silence_beyond_the_timeout_is_a_lost_sandbox(
    conversation: Conversation, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with pytest.raises(SandboxLost, match="did not end a script at its timeout") as caught:
        await conversation.run(timeout=60.0)
    assert caught.value.started
    assert trio.current_time() - began == pytest.approx(60.0 + GRACE)


async def test_silence_instead_of_ready_is_a_lost_sandbox(
    conversation: Conversation, autojump_clock: trio.testing.MockClock
) -> None:
    await conversation.run(exit_frame())
    with pytest.raises(SandboxLost, match="did not clean up") as caught:
        await conversation.run_unanswered()
    assert not caught.value.started


async def test_a_runner_that_does_not_start_is_lost(
    conversation: Conversation, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(SandboxLost, match="did not start") as caught:
        await conversation.channel.boot(RunnerConfig(uid=None, gid=None))
    assert not caught.value.started


async def test_a_cancelled_run_ends_at_once(conversation: Conversation, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await conversation.run(timeout=60.0)
    assert scope.cancelled_caught
